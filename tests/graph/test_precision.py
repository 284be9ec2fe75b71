"""Mixed precision stays within its rounding, and scales its loss as torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.errors import TrainingError
from onnxaccel.graph.model import Model
from onnxaccel.graph.optimizers import SGD
from onnxaccel.graph.recipe import Recipe
from onnxaccel.graph.training import training_step
from onnxaccel.graph.update import GOOD_STEPS, SCALE
from tests.graph.test_training import batch_norm_cnn, real_batches, torch_curve

ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11}
"""Largest relative error of rounding to nearest: 8 and 11 bits of significand."""


def forward_bound(module: nn.Module, x: np.ndarray[Any, Any], u: float) -> float:
    """By how much rounding can move the loss of an MLP: data, weights, biases and results, each by u at most.

    A layer's error is at most ``|W| e + ((1 + u)^3 - 1 + n 2^-23) (|W| |h| + |b|)`` for an error e of its
    input h; rectifiers do not increase it, and cross entropy moves by twice the largest error of a logit.
    """
    h, error = torch.from_numpy(x).double(), torch.zeros(x.shape, dtype=torch.float64)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            w, b = layer.weight.detach().double(), layer.bias.detach().double()
            growth = (1 + u) ** 3 + w.shape[1] * 2.0**-23
            error = growth * (error @ w.abs().T) + (growth - 1) * (h.abs() @ w.abs().T + b.abs())
            h = h @ w.T + b
            h = torch.relu(h) if w.shape[0] != 10 else h
    return 2 * error.max(1).values.mean().item()


@pytest.mark.parametrize("precision", ROUNDOFF)
def test_mlp_stays_within_its_rounding(precision: str, shared: Path) -> None:
    data = real_batches(str(shared / "data/mnist"), (784,))
    module = models.build("mlp", "pytorch")
    bound = forward_bound(module, data[0][0], ROUNDOFF[precision])
    model = oa.convert(module, torch.from_numpy(data[0][0]), trainable=True)
    trainer = oa.Trainer(model, optimizer=SGD(0.05, momentum=0.9), ep="cpu", precision=precision)
    curve = np.array([trainer.step(x, y) for x, y in data])
    exact = torch_curve(models.build("mlp", "pytorch").double(), native, data)
    difference = np.abs(curve - exact)
    print(f"{precision}: first step off by {difference[0]:.1e}, any by {difference.max():.1e}/{bound:.1e}")
    assert difference[0] < bound  # the theory of one step
    assert difference.max() < bound  # weights stay float32, so that errors do not pile up
    assert difference.max() > 10 * 2.0**-24 * exact.max()  # it is not float32 in disguise


def native(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


@pytest.mark.parametrize("precision", ROUNDOFF)
def test_cnn_is_as_close_as_autocast(precision: str, shared: Path) -> None:
    """Ten times torch.autocast's own distance from float64 at most, with BatchNormalization and poolings."""
    data = real_batches(str(shared / "data/cifar10/train"), (3, 32, 32))[:20]
    model = oa.convert(batch_norm_cnn(), torch.from_numpy(data[0][0]), trainable=True)
    trainer = oa.Trainer(model, optimizer=SGD(0.05, momentum=0.9), ep="cpu", precision=precision)
    curve = np.array([trainer.step(x, y) for x, y in data])
    exact = torch_curve(batch_norm_cnn().double(), native, data)
    theirs, _ = autocast(batch_norm_cnn(), data, precision)
    difference, stray = np.abs(curve - exact).max(), np.abs(theirs - exact).max()
    print(f"{precision}: largest difference {difference:.1e}, of torch.autocast {stray:.1e}")
    assert difference < 10 * stray


def autocast(module: nn.Module, data: Any, precision: str) -> tuple[Any, list[float]]:
    """The losses of torch's own mixed precision, and the loss scale after each step."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    step = native(module.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    losses, scales = [], []
    for x, y in data:
        with torch.autocast("cpu", dtype=dtype):
            scores = module(torch.from_numpy(x))
        loss = functional.cross_entropy(scores.float(), torch.from_numpy(y))
        step.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(step)
        scaler.update()
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    return np.array(losses), scales


def test_overflowing_gradients_halve_the_scale_as_torch_s(shared: Path) -> None:
    """Inputs so large that scaled gradients overflow: the same updates are left out."""
    data = [(x * 200, y) for x, y in real_batches(str(shared / "data/mnist"), (784,))[:12]]
    model = oa.convert(models.build("mlp", "pytorch"), torch.from_numpy(data[0][0]), trainable=True)
    trainer = oa.Trainer(model, optimizer=SGD(1e-6, momentum=0.9), ep="cpu", precision="fp16")
    scales, before = [], model.weights()
    for x, y in data:
        trainer.step(x, y)
        state = trainer._learner.engine.state()
        skipped = state[GOOD_STEPS] == 0
        same = all(np.array_equal(state[name], before[name]) for name in trainer.parameters)
        assert same == skipped
        before = {name: state[name] for name in trainer.parameters}
        scales.append(float(state[SCALE]))
    module = models.build("mlp", "pytorch")
    step = torch.optim.SGD(module.parameters(), 1e-6, momentum=0.9)
    scaler, expected = torch.amp.GradScaler("cpu"), []
    for x, y in data:
        with torch.autocast("cpu", dtype=torch.float16):
            scores = module(torch.from_numpy(x))
        step.zero_grad()
        scaler.scale(functional.cross_entropy(scores.float(), torch.from_numpy(y))).backward()
        scaler.step(step)
        scaler.update()
        expected.append(scaler.get_scale())
    print(f"scales {scales}, torch's {expected}")
    assert scales[0] < 2.0**16 and scales[-1] == scales[-2]  # some are left out, then none
    assert scales == expected


def test_parameters_and_state_stay_float32_and_products_do_not() -> None:
    model = oa.convert(batch_norm_cnn(), torch.zeros(2, 3, 32, 32), trainable=True)
    step = training_step(model, "cross_entropy", SGD(0.1, momentum=0.9), Recipe(precision="fp16"))
    assert {array.dtype.name for array in step.initial.values()} == {"float32"}
    types: dict[str, set[str]] = {}
    for node in step.model.graph:
        types.setdefault(node.op_type, set()).add(str(node.inputs[0].dtype))
    assert types["Conv"] == {"FLOAT16"} and types["BatchNormalization"] == {"FLOAT"}
    assert types["LogSoftmax"] == {"FLOAT"}


def test_accumulation_in_low_precision(shared: Path) -> None:
    """A split step scales and unscales as a whole one does."""
    data = real_batches(str(shared / "data/mnist"), (784,))[:6]
    model: Model = oa.convert(models.build("mlp", "pytorch"), torch.from_numpy(data[0][0]), trainable=True)
    whole = oa.Trainer(model, optimizer=SGD(0.05), ep="cpu", precision="fp16")
    parts = oa.Trainer(model, optimizer=SGD(0.05), ep="cpu", precision="fp16", accumulate=2)
    for x, y in data:
        whole.step(x, y)
        parts.step(x[:16], y[:16])
        parts.step(x[16:], y[16:])
    start = model.weights()
    for name, value in whole.model().weights().items():
        moved = np.linalg.norm(value - start[name])
        assert np.linalg.norm(parts.model().weights()[name] - value) <= 0.02 * moved  # rectifiers tip over


def test_an_unknown_precision_is_said() -> None:
    model = oa.convert(models.build("mlp", "pytorch"), torch.zeros(2, 784), trainable=True)
    with pytest.raises(TrainingError, match="unknown precision 'int4'; choose one of fp32, fp16, bf16"):
        oa.Trainer(model, ep="cpu", precision="int4")
