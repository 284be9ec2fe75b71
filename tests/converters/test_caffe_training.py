"""Whole trainings by solver.prototxt: on real data beside a real Caffe, and on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import onnxaccel as oa
from onnxaccel.caffe import read_solver, save_caffemodel
from onnxaccel.cli import app
from onnxaccel.converters.caffe.schema import message
from onnxaccel.errors import ModelError, OutputError, TrainingError
from onnxaccel.graph.losses import CrossEntropy
from onnxaccel.graph.solver import Solver, loss_of
from onnxaccel.runtime.history import Tick
from onnxaccel.runtime.solving import Solved, solve
from tests.caffe_recipes import Recipe, cifar10_quick, lenet, reordered
from tests.converters.real_caffe import Job, caffe_train, needs_caffe
from tests.converters.test_caffe_solvers import files, moved


def losses_of(model: oa.Model, solver: Solver, *data: str) -> tuple[Solved, Any]:
    """What a solver gives, and each iteration's loss."""
    means: list[float] = []
    solved = solve(model, solver, *data, on_tick=lambda tick: means.append(tick.loss))
    return solved, np.diff(np.array(means) * np.arange(1, len(means) + 1), prepend=0.0)


@needs_caffe
@pytest.mark.parametrize(("recipe", "iterations", "calm"), [(lenet, 25, 25), (cifar10_quick, 10, 8)])
def test_loss_curves_on_real_images_are_a_real_caffe_s(
    recipe: Callable[[Path, Path], Recipe], iterations: int, calm: int, tmp_path: Path, shared: Path
) -> None:
    """They differ as two runs of Caffe do whose batches hold the same samples in another order.

    For ``calm`` iterations that is by float32's rounding; then the training itself makes it grow.
    """
    made = recipe(tmp_path, shared)
    model = oa.convert(made.net, solver=made.solver)
    start = save_caffemodel(model, made.net, tmp_path / "start.caffemodel")
    theirs, other = caffe_train(
        Job(made.solver, start, iterations, made.test_batches),
        Job(reordered(made, tmp_path), start, iterations),
    )
    solver = replace(read_solver(made.solver), max_iter=iterations)
    solved, losses = losses_of(model, solver, str(made.train), str(made.test))
    np.testing.assert_allclose(losses[:calm], theirs["losses"][:calm], rtol=1e-5)
    noise = np.abs(other["losses"] - theirs["losses"]).max()
    assert np.abs(losses - theirs["losses"]).max() < 10 * noise < 0.1
    assert losses.min() < losses[0] - 0.01
    before, after = solved.tests
    assert (before.iteration, after.iteration) == (0, iterations)
    assert after.loss == pytest.approx(float(theirs["test_loss"]), abs=10 * noise)
    assert abs((after.accuracy or 0) - float(theirs["accuracy"])) < 0.02

    trained = solved.trainer.model()
    saved = save_caffemodel(trained, made.net, tmp_path / "trained.caffemodel")
    again = oa.convert(made.net, saved)  # compared with what Caffe computes from these weights
    assert (again.metadata.max_relative_error or 1) < 1e-5
    assert all(np.array_equal(again.weights()[name], array) for name, array in trained.weights().items())
    (caffe_s,) = caffe_train(Job(made.solver, saved, 0, made.test_batches))
    assert float(caffe_s["accuracy"]) == pytest.approx(after.accuracy, abs=1e-6)


@needs_caffe
@pytest.mark.parametrize(
    "settings", ["iter_size: 3", "clip_gradients: 0.3", "iter_size: 2 clip_gradients: 0.5"]
)
def test_summed_and_clipped_gradients_are_a_real_caffe_s(settings: str, tmp_path: Path) -> None:
    net, path = files(tmp_path, f"base_lr: 0.05 momentum: 0.9 weight_decay: 0.01 {settings}")
    model = oa.convert(net, solver=path, verify=False)
    start = save_caffemodel(model, net, tmp_path / "start.caffemodel")
    (theirs,) = caffe_train(Job(path, start, 20))
    solved, _ = losses_of(model, replace(read_solver(path), max_iter=20), str(tmp_path / "db"))
    assert max(moved(model, solved.trainer.model().weights(), theirs).values()) < 2e-5
    assert solved.iterations == 20
    if "clip" in settings:  # it was needed
        plain = replace(read_solver(path), max_iter=20, clip_gradients=None)
        other = losses_of(model, plain, str(tmp_path / "db"))[0].trainer.model().weights()
        assert max(moved(model, other, theirs).values()) > 1e-2


@needs_caffe
def test_running_statistics_are_a_real_caffe_s(tmp_path: Path) -> None:
    """Also where a training starts from none, and goes on from those of a caffemodel."""
    net, path = files(tmp_path, "base_lr: 0.05 momentum: 0.9")
    norm = (
        'layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv"'
        " batch_norm_param { moving_average_fraction: 0.9 } }\n"
        'layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }\n'
    )
    relu = 'layer { name: "relu"'
    net.write_text(net.read_text().replace(relu, norm + relu))
    model = oa.convert(net, solver=path, verify=False)
    solver, data = replace(read_solver(path), max_iter=12), str(tmp_path / "db")
    start = save_caffemodel(model, net, tmp_path / "start.caffemodel")
    for part in ("first", "second"):
        (theirs,) = caffe_train(Job(path, start, 12))
        solved, losses = losses_of(model, solver, data)
        np.testing.assert_allclose(losses, theirs["losses"], rtol=1e-5)
        saved = save_caffemodel(solved.trainer.model(), net, tmp_path / f"{part}.caffemodel")
        stored = {
            layer.name: layer.blobs for layer in message("StoredNet").FromString(saved.read_bytes()).layer
        }
        for index in range(3):
            ours = np.array(stored["norm"][index].data, np.float32)
            np.testing.assert_allclose(ours, theirs[f"norm/{index}"], rtol=1e-4, atol=1e-5)
        model, start = oa.convert(net, saved, solver=path), saved
    assert model.metadata.running_factors["norm"] > 9


def test_a_solver_counts_tests_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = "base_lr: 0.05 momentum: 0.9 max_iter: 25 test_interval: 10 test_iter: 3 snapshot: 4"
    net, path = files(tmp_path, settings)
    model = oa.convert(net, solver=path, verify=False)
    solver, data = read_solver(path), str(tmp_path / "db")
    whole, _ = losses_of(model, solver, data, data)
    assert [test.iteration for test in whole.tests] == [0, 10, 20, 25] and whole.iterations == 25

    def stop(tick: Tick) -> None:
        if tick.step == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(model, solver, data, data, checkpoint_folder=tmp_path / "snapshots", on_tick=stop)
    rest = solve(model, solver, data, data, checkpoint_folder=tmp_path / "snapshots", resume=True)
    assert [test.iteration for test in rest.tests] == [10, 20, 25]
    assert rest.tests == whole.tests[1:]
    for name, array in whole.trainer.model().weights().items():
        assert np.array_equal(rest.trainer.model().weights()[name], array), name


def test_the_command_line_converts_and_trains_by_a_solver(tmp_path: Path) -> None:
    settings = (
        'base_lr: 0.05 momentum: 0.9 max_iter: 12 test_interval: 6 lr_policy: "step" stepsize: 5 gamma: 0.1'
    )
    net, path = files(tmp_path, settings)
    onnx, trained = tmp_path / "net.onnx", tmp_path / "trained.onnx"
    run = CliRunner().invoke

    def json_of(*arguments: object) -> dict[str, Any]:
        result = run(app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    converted = json_of("convert", net, "--solver", path, "-o", onnx, "--no-verify", "--json")
    assert converted["trainable_parameters"] == 7
    data = ("--data", tmp_path / "db", "--val", tmp_path / "db")
    for solver in (path, "recorded"):
        found = json_of("train", onnx, *data, "--solver", solver, "-o", trained, "--json")
        assert (found["iterations"], found["steps"]) == (12, 12)
        assert [test["iteration"] for test in found["tests"]] == [0, 6, 12]
        assert found["tests"][-1]["loss"] < found["tests"][0]["loss"]
    table = run(app, [str(a) for a in ("train", onnx, *data, "--solver", path, "-o", trained)])
    assert "iterations/s" in table.stdout
    refused = run(app, [str(a) for a in ("train", onnx, *data, "--solver", path, "--lr", "1")])
    assert refused.exit_code == 2 and "leave out --lr" in " ".join(refused.output.split())


@needs_caffe
@pytest.mark.parametrize("kind", ["EuclideanLoss", "SigmoidCrossEntropyLoss"])
def test_losses_over_values_from_hdf5_equal_a_real_caffe_s(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, count in enumerate((30, 50)):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["data"] = rng.standard_normal((count, 2, 8, 8)).astype(np.float32)
            file["label"] = rng.integers(0, 2, (count, 4)).astype(np.float32)
    (tmp_path / "train.txt").write_text(f"{tmp_path}/0.h5\n{tmp_path}/1.h5\n")
    net, path = files(tmp_path, "base_lr: 0.02 momentum: 0.9")
    text = net.read_text().replace('"SoftmaxWithLoss"', f'"{kind}"')
    data = f'hdf5_data_param {{ source: "{tmp_path}/train.txt" batch_size: 8 }} }}'
    text = re.sub(r"data_param \{ source.*", data, text).replace('type: "Data"', 'type: "HDF5Data"')
    net.write_text(text)
    model = oa.convert(net, solver=path)
    start = save_caffemodel(model, net, tmp_path / "start.caffemodel")
    (theirs,) = caffe_train(Job(path, start, 20))
    solver = replace(read_solver(path), max_iter=20)
    solved, losses = losses_of(model, solver, str(tmp_path / "train.txt"))
    np.testing.assert_allclose(losses, theirs["losses"], rtol=1e-5)
    assert max(moved(model, solved.trainer.model().weights(), theirs).values()) < 1e-5


def test_losses_that_a_solver_cannot_train_are_named() -> None:
    softmax = {"type": "SoftmaxWithLoss", "layer": "l1", "loss_weight": 1.0, "settings": {}}
    accuracy = {"type": "Accuracy", "layer": "a", "loss_weight": 0.0, "settings": {}}
    assert loss_of([]) == loss_of([softmax, accuracy]) == CrossEntropy()
    assert loss_of([{**softmax, "settings": {"ignore_label": 255}}]) == CrossEntropy(ignore_index=255)
    for heads in (
        [softmax, {**softmax, "layer": "l2", "loss_weight": 0.3}],
        [{**softmax, "settings": {"normalization": "FULL"}}],
        [{**softmax, "type": "InfogainLoss"}],
    ):
        with pytest.raises(TrainingError, match=r"the network's loss is .*'l1'"):
            loss_of(heads)


def test_only_a_caffe_network_becomes_a_caffemodel(tmp_path: Path) -> None:
    net, path = files(tmp_path, "base_lr: 1")
    model = oa.convert(net, solver=path, verify=False)
    target = tmp_path / "x.caffemodel"
    for change in (("num_output: 6", "num_output: 7"), ('"conv"', '"other"')):
        (tmp_path / "changed.prototxt").write_text(net.read_text().replace(*change))
        with pytest.raises(ModelError, match=r"'conv.weight' has shape|no 'other.weight', so it was not"):
            save_caffemodel(model, tmp_path / "changed.prototxt", target)
    with pytest.raises(OutputError, match="cannot be written"):
        save_caffemodel(model, net, tmp_path / "nowhere" / "x.caffemodel")
    model.metadata.framework = "pytorch"
    with pytest.raises(ModelError, match="not a model that was converted from Caffe"):
        save_caffemodel(model, net, target)
    assert not target.exists()
