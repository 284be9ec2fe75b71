"""Training equals torch's: same weights, same batches, same optimizer, loss by loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.data import open_dataset
from onnxaccel.errors import ModelError
from onnxaccel.graph import optimizers
from onnxaccel.graph.training import training_step

STEPS = 30


def batch_norm_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(32, momentum=0.2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def without_dropout(module: nn.Module) -> nn.Module:
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = 0.0
    return module


NETS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "mlp": (lambda: models.build("mlp", "pytorch"), "data/mnist", (784,)),
    "cnn": (lambda: without_dropout(models.build("cifar_cnn", "pytorch")), "data/cifar10/train", (3, 32, 32)),
    "batch_norm_cnn": (batch_norm_cnn, "data/cifar10/train", (3, 32, 32)),
}

OPTIMIZERS: dict[str, tuple[optimizers.Optimizer, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (
        optimizers.SGD(0.01, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=1e-3),
    ),
    "nesterov": (
        optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    ),
    "adam": (
        optimizers.Adam(1e-3, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, 1e-3, weight_decay=1e-3),
    ),
    "adamw": (optimizers.AdamW(1e-3), lambda p: torch.optim.AdamW(p, 1e-3)),
}


def real_batches(spec: str, shape: tuple[int, ...], size: int = 32) -> list[tuple[Any, Any]]:
    """``STEPS`` batches of real images, scaled to [0, 1]."""
    data = open_dataset(spec)
    order = np.random.default_rng(0).permutation(len(data))[: STEPS * size].reshape(STEPS, size)
    parts = []
    for indices in order:
        x, y = data.take(indices)
        x = x.astype(np.float32) / 255
        parts.append(
            (x.reshape(size, *shape) if len(shape) == 1 else np.ascontiguousarray(x.transpose(0, 3, 1, 2)), y)
        )
    return parts


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_loss_curve_equals_torch(net: str, optimizer: str, shared: Path) -> None:
    """Over 30 steps on real data, measured against torch in float64.

    Rounding grows from step to step in any float32 training, and a rectifier that tips over makes it jump. So
    the bound is 1e-4, or twice what torch's own float32 curves (by its oneDNN kernels, and by its own) stray
    from its float64 curve, whichever is more: of so many jumps two curves are no more than a sample.
    """
    make, spec, shape = NETS[net]
    ours, theirs = OPTIMIZERS[optimizer]
    data = real_batches(str(shared / spec), shape)
    trainer = oa.Trainer(
        oa.convert(make(), torch.from_numpy(data[0][0]), trainable=True), optimizer=ours, ep="cpu"
    )
    curve = np.array([trainer.step(x, y) for x, y in data])
    exact = torch_curve(make().double(), theirs, data)
    with torch.backends.mkldnn.flags(enabled=False):
        native = torch_curve(make(), theirs, data)
    stray = float(max(np.abs(curve - exact).max() for curve in (torch_curve(make(), theirs, data), native)))
    difference = float(np.abs(curve - exact).max())
    print(
        f"{net} {optimizer}: largest difference of the loss {difference:.1e}; of torch in float32 {stray:.1e}"
    )
    assert difference < max(1e-4, 2 * stray)


def torch_curve(module: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer], data: Any) -> Any:
    """The losses of torch's own training, in the module's precision."""
    module.train()
    step = optimizer(module.parameters())
    dtype = next(module.parameters()).dtype
    losses = []
    for x, y in data:
        loss = nn.functional.cross_entropy(module(torch.from_numpy(x).to(dtype)), torch.from_numpy(y))
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    return np.array(losses)


def test_running_statistics_follow_torch(shared: Path) -> None:
    data = real_batches(str(shared / "data/cifar10/train"), (3, 32, 32))[:3]
    module = batch_norm_cnn()
    model = oa.convert(module, torch.from_numpy(data[0][0]), trainable=True)
    trainer = oa.Trainer(model, optimizer=optimizers.SGD(0.0), ep="cpu")
    module.train()
    for x, y in data:
        trainer.step(x, y)
        module(torch.from_numpy(x))
    trained = trainer.model().weights()
    for name, value in module.state_dict().items():
        if "running" in name:
            np.testing.assert_allclose(trained[name], value.numpy(), rtol=1e-5, atol=1e-6)


def test_final_softmax_becomes_log_softmax_once() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    x = torch.randn(8, 6)
    y = torch.randint(0, 4, (8,))
    losses = []
    for head in (nn.Identity(), nn.Softmax(1), nn.LogSoftmax(1)):
        trainer = oa.Trainer(oa.convert(nn.Sequential(body, head), x, trainable=True), ep="cpu")
        losses.append(trainer.step(x.numpy(), y.numpy()))
    expected = nn.functional.cross_entropy(body(x), y).item()
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "loss"),
    [("mse", nn.functional.mse_loss), ("bce_with_logits", nn.functional.binary_cross_entropy_with_logits)],
)
def test_losses_over_values_equal_torch(name: str, loss: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(8, 6), torch.rand(8, 3)
    model = oa.convert(module, x, trainable=True)
    trainer = oa.Trainer(model, loss=name, optimizer=optimizers.SGD(0.1), ep="cpu")
    step = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(5):
        value = loss(module(x), y)
        step.zero_grad()
        value.backward()
        step.step()
        assert trainer.step(x.numpy(), y.numpy()) == pytest.approx(value.item(), rel=1e-6)


def test_dropout_drops_its_share_and_scales_the_rest() -> None:
    module = nn.Sequential(nn.Linear(4, 4096), nn.Dropout(0.25), nn.Linear(4096, 2))
    nn.init.ones_(module[0].weight)
    nn.init.zeros_(module[0].bias)
    nn.init.constant_(module[2].weight, 1 / 4096)
    nn.init.zeros_(module[2].bias)
    x = torch.ones(2, 4)
    model = oa.convert(module, x, trainable=True, verify=False)
    trainer = oa.Trainer(model, loss="mse", optimizer=optimizers.SGD(0.0), ep="cpu")
    target = np.zeros((2, 2), np.float32)
    means = [np.sqrt(trainer.step(x.numpy(), target)) for _ in range(20)]
    assert np.mean(means) == pytest.approx(4, rel=0.01)  # the mean is kept
    assert len(set(means)) == len(means)  # each step draws its own mask
    expected = 4 * np.sqrt(0.25 / 0.75 / 4096)  # standard deviation of a mean of 4096 kept or dropped values
    assert np.std(means) == pytest.approx(expected, rel=0.8)


def test_frozen_parameters_stay() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    module[0].weight.requires_grad_(False)
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    trainer = oa.Trainer(oa.convert(module, x, trainable=True), ep="cpu")
    before = trainer.model().weights()
    trainer.step(x.numpy(), y.numpy())
    after = trainer.model().weights()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"0.bias", "2.weight", "2.bias"}


def test_nothing_to_train_is_said() -> None:
    model = oa.convert(nn.Tanh(), torch.randn(2, 3))
    with pytest.raises(ModelError, match="no trainable parameter"):
        training_step(model, "cross_entropy", optimizers.SGD())
