"""A reference model trains alike in every framework, and in onnxaccel from every framework's file.

The reference is torch in float64. Rounding grows from step to step, and jumps where a rectifier tips over.
So the bound is 1e-5 relative, or how far torch's own float32 training strays by then when its weights change
by a hundred times their rounding, whichever is more.
"""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.cli import app
from onnxaccel.graph import optimizers
from onnxaccel.graph.losses import CrossEntropy
from tests.converters.real_caffe import Job, caffe_train, needs_caffe
from tests.data.databases import datum, write_lmdb

STEPS, BATCH, CLASSES = 3, 8, 5

SHAPES = {
    "lenet": (1, 16, 20),
    "lstm_classifier": (7,),
    "mlp": (30,),
    "mobilenet_v2": (3, 12, 12),
    "resnet18": (3, 16, 16),
    "transformer_encoder": (7,),
    "unet": (1, 16, 24),
}
"""Each model's samples here. Not cifar_cnn: its Dropout draws other masks in each framework."""

RATES = dict.fromkeys(SHAPES, 0.01) | {"resnet18": 0.001, "mobilenet_v2": 0.0003}
"""Learning rates; with higher ones rounding grows into chaos in the deep networks."""

SLOW = {"mobilenet_v2", "resnet18", "unet"}
TABLE = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SHAPES]


@dataclass(frozen=True)
class Batches:
    """The data of one training: x as torch takes it, uint8 pixels over 255; labels per sample or pixel."""

    x: list[Any]
    y: list[Any]


@functools.cache
def batches(name: str) -> Batches:
    rng, shape = np.random.default_rng(1), (BATCH, *SHAPES[name])
    inputs = models.inputs(name)
    if inputs.kind == "tokens":
        x: list[Any] = [rng.integers(0, inputs.vocabulary, shape) for _ in range(STEPS)]
    else:
        x = [rng.integers(0, 256, shape, np.uint8) / np.float32(255) for _ in range(STEPS)]
    labelled = (BATCH,) if models.targets(name) == "class" else (BATCH, *shape[2:])
    return Batches(x, [rng.integers(0, CLASSES, labelled) for _ in range(STEPS)])


def torch_curve(name: str, noise: int | None = None) -> tuple[Any, Any]:
    """The losses of torch's own training in float64, and the module after it.

    With ``noise``, in float32, and it is the seed of a relative change of every weight before, by about 1e-5.
    """
    dtype = torch.float64 if noise is None else torch.float32
    module = models.build(name, "pytorch", 4, SHAPES[name], CLASSES).to(dtype).train()
    if noise is not None:
        generator = torch.Generator().manual_seed(noise)
        with torch.no_grad():
            for weight in module.parameters():
                weight *= 1 + 1e-5 * torch.randn(weight.shape, generator=generator)
    step = torch.optim.SGD(module.parameters(), RATES[name], momentum=0.9)
    losses, data = [], batches(name)
    for x, y in zip(data.x, data.y, strict=True):
        given = torch.from_numpy(x)
        scores = module(given.to(dtype) if given.is_floating_point() else given)
        value = functional.cross_entropy(scores, torch.from_numpy(y))
        step.zero_grad()
        value.backward()
        step.step()
        losses.append(value.item())
    return np.array(losses), module


@functools.cache
def expected(name: str) -> tuple[Any, Any, Any]:
    """The exact losses, how far a float32 training may stray from each, and the module at the end."""
    exact, module = torch_curve(name)
    strays = [np.abs(torch_curve(name, noise)[0] / exact - 1) for noise in range(3)]
    return exact, np.maximum(1e-5, np.maximum.accumulate(np.max(strays, axis=0))), module


def compare(what: str, name: str, losses: Any) -> None:
    exact, bounds, _ = expected(name)
    differences = np.abs(np.array(losses) / exact - 1)
    print(f"{name}, {what}: relative differences of the loss {differences}, bounds {bounds}")
    assert (differences <= bounds).all()
    assert np.ptp(exact) > 10 * bounds[-1] * exact[0]  # the weights do move


def keras_layout(x: Any) -> Any:
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


@pytest.mark.parametrize("name", TABLE)
def test_keras_trains_as_torch(name: str) -> None:
    keras = pytest.importorskip("keras")
    network = models.build(name, "tensorflow", 4, SHAPES[name], CLASSES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(RATES[name], momentum=0.9), loss, run_eagerly=True)
    data = batches(name)
    compare(
        "Keras",
        name,
        [network.train_on_batch(keras_layout(x), y) for x, y in zip(data.x, data.y, strict=True)],
    )


@needs_caffe
@pytest.mark.parametrize(
    "name", [case for case in TABLE if "caffe" in models.frameworks(str(case.values[0]))]
)
def test_a_real_caffe_trains_as_torch(name: str, tmp_path: Path) -> None:
    """By the exported train_val.prototxt and solver, but for the data's place and the batch size."""
    files = models.export(name, "caffe", tmp_path, seed=4, input_shape=SHAPES[name], classes=CLASSES).files
    _, weights, net, solver = map(Path, files)
    text, data = net.read_text(), batches(name)
    if models.targets(name) == "class":
        pixels = np.rint(np.concatenate(data.x) * 255).astype(np.uint8)
        pixels = pixels.reshape(len(pixels), *SHAPES[name], *[1] * (3 - len(SHAPES[name])))
        labels = np.concatenate(data.y)
        write_lmdb(
            tmp_path / "train_lmdb",
            [datum(image, int(label)) for image, label in zip(pixels, labels, strict=True)],
        )
        source = "train_lmdb"
    else:
        with h5py.File(tmp_path / "train.h5", "w") as file:
            file["data"] = np.concatenate(data.x)
            file["label"] = np.concatenate(data.y)[:, None].astype(np.float32)
        (tmp_path / "train.txt").write_text(f"{tmp_path}/train.h5\n")
        source = "train.txt"
    text = re.sub(r"batch_size: \d+", f"batch_size: {BATCH}", text)
    text = re.sub(r'source: "\w+', f'source: "{tmp_path}/{source.partition(".")[0]}', text)
    net.write_text(text)
    rules = solver.read_text().replace("base_lr: 0.01", f"base_lr: {RATES[name]}").replace(net.name, str(net))
    rules = re.sub(r"(test_iter|test_interval|snapshot): .*\n", "", rules)
    solver.write_text(rules + "snapshot_after_train: false\n")
    (found,) = caffe_train(Job(solver, weights, STEPS))
    compare("Caffe", name, found["losses"])
    _, bounds, module = expected(name)
    buffers = {key: value.numpy() for key, value in module.named_buffers()}
    for layer in (key.removesuffix(".running_var") for key in buffers if key.endswith(".running_var")):
        mean, variance = buffers[f"{layer}.running_mean"], buffers[f"{layer}.running_var"]
        sums, weight = [found[f"{layer}/{index}"] for index in (0, 1)], found[f"{layer}/2"]
        assert np.abs(sums[0] / weight - mean).max() <= 10 * bounds[-1] * np.sqrt(variance.max()), layer
        assert np.abs(sums[1] / weight - variance).max() <= 10 * bounds[-1] * variance.max(), layer


@pytest.mark.parametrize(
    ("name", "framework"),
    [
        pytest.param(*case.values, framework, marks=case.marks)
        for case in TABLE
        for framework in models.frameworks(str(case.values[0]))
    ],
)
def test_every_export_converts_by_its_command_and_trains_as_torch(
    name: str, framework: str, tmp_path: Path
) -> None:
    exported = models.export(name, framework, tmp_path, seed=4, input_shape=SHAPES[name], classes=CLASSES)
    program, *arguments = shlex.split(exported.convert)
    output = tmp_path / "converted.onnx"
    done = CliRunner().invoke(app, [*arguments, "-o", str(output)])
    assert program == "onnxaccel" and done.exit_code == 0, done.output
    pixels = models.targets(name) == "pixels"
    loss = CrossEntropy(axis=-1 if pixels and framework == "tensorflow" else 1)
    trainer = oa.Trainer(output, loss=loss, optimizer=optimizers.SGD(RATES[name], momentum=0.9), ep="cpu")
    data = batches(name)
    prepare = keras_layout if framework == "tensorflow" else lambda x: x
    compare(
        f"onnxaccel from {framework}",
        name,
        [trainer.step(prepare(x), y) for x, y in zip(data.x, data.y, strict=True)],
    )
