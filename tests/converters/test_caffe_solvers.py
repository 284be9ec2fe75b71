"""Solver types, learning-rate policies and what a solver keeps, against a real Caffe's own training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel.caffe import read_solver, save_caffemodel
from onnxaccel.data import open_dataset
from onnxaccel.errors import ConversionError
from onnxaccel.graph.schedules import Moment
from onnxaccel.graph.solver import Solver
from tests.converters.real_caffe import Job, Results, caffe_train, needs_caffe
from tests.data.databases import datum, write_lmdb

NET = """
layer { name: "data" type: "Data" top: "data" top: "label"
  data_param { source: "FOLDER/db" batch_size: 8 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: 6 kernel_size: 3
    weight_filler { type: "xavier" } bias_filler { value: 0.1 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "hidden" type: "InnerProduct" bottom: "pool" top: "hidden" param { lr_mult: 0.5 decay_mult: 3 }
  inner_product_param { num_output: 10 weight_filler { type: "msra" } } }
layer { name: "slope" type: "PReLU" bottom: "hidden" top: "hidden" }
layer { name: "fixed" type: "InnerProduct" bottom: "hidden" top: "fixed"
  param { lr_mult: 0 } param { lr_mult: 0 }
  inner_product_param { num_output: 9
    weight_filler { type: "gaussian" std: 0.3 } bias_filler { value: 0.2 } } }
layer { name: "score" type: "InnerProduct" bottom: "fixed" top: "score"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }
"""
BLOBS = {"weight": 0, "bias": 1}
ITERATIONS = 25
SOLVERS = {
    "sgd": 'type: "SGD" base_lr: 0.05 momentum: 0.9 weight_decay: 0.01',
    "sgd without momentum": "base_lr: 0.1",
    "sgd with l1": 'base_lr: 0.05 momentum: 0.8 weight_decay: 0.01 regularization_type: "L1"',
    "nesterov": 'type: "Nesterov" base_lr: 0.03 momentum: 0.9 weight_decay: 0.01',
    "nesterov without momentum": 'type: "Nesterov" base_lr: 0.1',
    "adagrad": 'type: "AdaGrad" base_lr: 0.02 delta: 1e-6 weight_decay: 0.01',
    "rmsprop": 'type: "RMSProp" base_lr: 0.005 rms_decay: 0.95 delta: 1e-4 weight_decay: 0.01',
    "adadelta": 'type: "AdaDelta" base_lr: 1 momentum: 0.95 delta: 1e-6 weight_decay: 0.01',
    "adam": 'type: "Adam" base_lr: 0.005 momentum: 0.9 momentum2: 0.99 delta: 1e-6 weight_decay: 0.01',
    "the older solver_type": "solver_type: NESTEROV base_lr: 0.03 momentum: 0.9",
}


def files(folder: Path, settings: str) -> tuple[Path, Path]:
    """A network and its solver, with 100 random images in a database."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 2, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 4, 100)
    write_lmdb(folder / "db", [datum(image, int(y)) for image, y in zip(x, labels, strict=True)])
    net = folder / "net.prototxt"
    net.write_text(NET.replace("FOLDER", str(folder)))
    return net, solver_file(folder, net, settings)


def solver_file(folder: Path, net: Path, settings: str, name: str = "solver.prototxt") -> Path:
    """A solver with these settings, those that Caffe must have filled in."""
    defaults = {"lr_policy": '"fixed"', "max_iter": "1000", "snapshot_after_train": "false"}
    more = " ".join(f"{key}: {value}" for key, value in defaults.items() if key not in settings)
    (folder / name).write_text(f'net: "{net}" {settings} {more}')
    return folder / name


def cycled(folder: Path, batch: int) -> tuple[Any, Any]:
    """Batch number ``batch`` of 8, as Caffe takes them: on and on through the database."""
    x, labels = open_dataset(str(folder / "db")).take(np.arange(8 * batch, 8 * batch + 8) % 100)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), labels


def moved(model: Any, trained: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """The difference of each parameter to Caffe's, as a share of how far it has moved; 0 where it has not."""
    shares = {}
    for name, start in model.weights().items():
        layer, _, role = name.rpartition(".")
        expected = theirs[f"{layer}/{BLOBS[role]}"].reshape(start.shape)
        difference, way = np.abs(trained[name] - expected).max(), np.abs(expected - start).max()
        shares[name] = float(difference / way) if way else float(difference)
    return shares


@dataclass
class Trained:
    """One network, trained by real Caffe with each of the solvers."""

    folder: Path
    model: oa.Model
    results: dict[str, Results]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("solvers")
    net, first = files(folder, SOLVERS["sgd"])
    model = oa.convert(net, solver=first)
    start = save_caffemodel(model, net, folder / "start.caffemodel")
    jobs = []
    for name, settings in SOLVERS.items():
        path = solver_file(folder, net, settings, f"{name}.prototxt")
        jobs.append(Job(path, start, ITERATIONS))
    return Trained(folder, model, dict(zip(SOLVERS, caffe_train(*jobs), strict=True)))


@needs_caffe
@pytest.mark.parametrize("name", SOLVERS)
def test_weights_after_many_iterations_equal_a_real_caffe_s(name: str, trained: Trained) -> None:
    model, theirs = trained.model, trained.results[name]
    solver = read_solver(trained.folder / f"{name}.prototxt")
    trainer = oa.Trainer(model, optimizer=solver.optimizer(model.metadata.multipliers), metrics=False)
    losses = [trainer.step(*cycled(trained.folder, batch)) for batch in range(ITERATIONS)]
    np.testing.assert_allclose(losses, theirs["losses"], rtol=1e-5)
    assert losses[-1] < 0.7 * losses[0]
    shares = moved(model, trainer.model().weights(), theirs)
    assert shares["fixed.weight"] == shares["fixed.bias"] == 0.0, "lr_mult 0"
    assert max(shares.values()) < 1e-5


POLICIES = {
    "fixed": 'lr_policy: "fixed"',
    "step": 'lr_policy: "step" gamma: 0.5 stepsize: 7',
    "exp": 'lr_policy: "exp" gamma: 0.95',
    "inv": 'lr_policy: "inv" gamma: 0.1 power: 0.75',
    "multistep": 'lr_policy: "multistep" gamma: 0.5 stepvalue: 5 stepvalue: 12 stepvalue: 30',
    "multistep, two at once": 'lr_policy: "multistep" gamma: 0.5 stepvalue: 9 stepvalue: 9 stepvalue: 4',
    "poly": 'lr_policy: "poly" power: 1.5',
    "sigmoid": 'lr_policy: "sigmoid" gamma: -0.3 stepsize: 15',
}


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Results]]:
    """With a gradient of 1 throughout, the weight falls by the learning rate in each iteration."""
    folder = tmp_path_factory.mktemp("policies")
    net = folder / "net.prototxt"
    net.write_text(
        'layer { name: "data" type: "DummyData" top: "data"'
        "  dummy_data_param { shape { dim: 1 dim: 1 } data_filler { value: 1 } } }"
        'layer { name: "sum" type: "InnerProduct" bottom: "data" top: "loss" loss_weight: 1'
        "  inner_product_param { num_output: 1 bias_term: false } }"
    )
    paths = [
        solver_file(folder, net, f"base_lr: 0.25 max_iter: 40 {settings}", f"{name}.prototxt")
        for name, settings in POLICIES.items()
    ]
    results = caffe_train(*(Job(path, iterations=40) for path in paths))
    return {name: pair for name, *pair in zip(POLICIES, paths, results, strict=True)}  # type: ignore[misc]


@needs_caffe
@pytest.mark.parametrize("name", POLICIES)
def test_learning_rates_equal_a_real_caffe_s(name: str, rates: dict[str, tuple[Path, Results]]) -> None:
    path, results = rates[name]
    theirs = -np.diff(results["first"], prepend=0.0)
    solver = read_solver(path)
    schedule = solver.schedule()
    ours = [schedule.rate(solver.base_lr, Moment(step=step, epoch=0)) for step in range(40)]
    # the weight's own rounding: half a unit of its last place, twice
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=np.sum(ours) * 2**-23)
    assert name == "fixed" or len(set(ours)) > 2


def test_a_solver_is_read_whole(shared: Path) -> None:
    solver = read_solver(shared / "samples/caffe/lenet/solver.prototxt")
    assert (solver.type, solver.lr_policy, solver.max_iter) == ("SGD", "inv", 10_000)
    assert (solver.test_iter, solver.test_interval, solver.snapshot) == (100, 500, 5000)
    assert solver.base_lr == np.float32(0.01) and solver.weight_decay == np.float32(0.0005)
    assert solver.clip_gradients is None and solver.random_seed is None


def test_what_a_solver_says_is_kept_in_the_model(tmp_path: Path) -> None:
    settings = "base_lr: 0.1 momentum: 0.9 clip_gradients: 3 iter_size: 2 random_seed: 7 snapshot: 50"
    net, path = files(tmp_path, settings)
    model = oa.convert(net, solver=path, verify=False)
    again = oa.Model.from_proto(model.to_proto()).metadata
    assert Solver.of(again.solver or {}) == read_solver(path)
    assert again.batch_sizes == {"train": 8, "test": 8}
    assert {name: tuple(pair) for name, pair in again.multipliers.items()} == {
        "conv.bias": (2.0, 0.0),
        "hidden.weight": (0.5, 3.0),
    }
    assert "fixed.weight" not in (again.trainable or []) and "slope.weight" in (again.trainable or [])
    other = oa.convert(net, solver=path, verify=False).weights()
    assert all(np.array_equal(other[name], array) for name, array in model.weights().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("momentum: 0.9", "base_lr is missing"),
        ("base_lr: -1", "base_lr must be above 0, it is -1"),
        ('base_lr: 1 type: "LBFGS"', "unknown type 'LBFGS'; it is one of SGD, Nesterov"),
        ('base_lr: 1 lr_policy: "plateau"', "unknown lr_policy 'plateau'; it is one of fixed, step"),
        ('base_lr: 1 lr_policy: "step" gamma: 0.1', "needs a stepsize above 0"),
        ('base_lr: 1 regularization_type: "L3"', "unknown regularization_type 'L3'"),
        ('base_lr: 1 type: "AdaGrad" momentum: 0.9', "AdaGrad takes no momentum"),
        ('base_lr: 1 type: "SGD" solver_type: ADAM', "both type and the older solver_type"),
        ("base_lr: 1 iter_size: 0", "iter_size must be above 0"),
        ("base_lr: }", r"solver.prototxt:1:\d+"),
        ("base_lr: 1 learning_rate: 2", "learning_rate"),
    ],
)
def test_bad_solvers_are_one_clear_error(settings: str, message: str, tmp_path: Path) -> None:
    _, path = files(tmp_path, settings)
    with pytest.raises(ConversionError, match=message) as caught:
        read_solver(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
