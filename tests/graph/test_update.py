"""Clipping, accumulation and averaging equal torch's, over 20 steps or more on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.errors import TrainingError
from onnxaccel.graph.losses import create
from onnxaccel.graph.model import Model
from onnxaccel.graph.optimizers import SGD, AdamW
from onnxaccel.graph.training import training_step
from onnxaccel.runtime.providers import resolve
from onnxaccel.runtime.stepper import Stepper
from tests.graph.test_training import batch_norm_cnn, real_batches

DECAY = 0.9


@pytest.fixture(scope="module")
def data(shared: Path) -> list[tuple[Any, Any]]:
    return real_batches(str(shared / "data/mnist"), (784,))


@pytest.fixture(scope="module")
def model(data: Any) -> Model:
    return oa.convert(models.build("mlp", "pytorch"), torch.from_numpy(data[0][0]), trainable=True)


def torch_run(data: Any, dtype: torch.dtype, clip: Any) -> tuple[Any, nn.Module]:
    """The losses of torch's own training, and the averaged module."""
    module = models.build("mlp", "pytorch").to(dtype)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(module)
    step = torch.optim.AdamW(module.parameters(), 1e-3)
    losses = []
    for x, y in data:
        loss = functional.cross_entropy(module(torch.from_numpy(x).to(dtype)), torch.from_numpy(y))
        step.zero_grad()
        loss.backward()
        clip(module.parameters())
        step.step()
        average.update_parameters(module)
        losses.append(loss.item())
    return np.array(losses), average.module


def by_norm(parameters: Any) -> None:
    nn.utils.clip_grad_norm_(parameters, 0.5)


def by_value(parameters: Any) -> None:
    nn.utils.clip_grad_value_(parameters, 0.01)


@pytest.mark.parametrize(
    ("settings", "clip"),
    [({"clip_norm": 0.5}, by_norm), ({"clip_value": 0.01}, by_value)],
    ids=["norm", "value"],
)
def test_clipping_and_averages_follow_torch(settings: Any, clip: Any, model: Model, data: Any) -> None:
    trainer = oa.Trainer(model, optimizer=AdamW(1e-3), ep="cpu", ema=DECAY, **settings)
    curve = np.array([trainer.step(x, y) for x, y in data])
    exact, average = torch_run(data, torch.float64, clip)
    single, stray_average = torch_run(data, torch.float32, clip)
    free, _ = torch_run(data, torch.float64, lambda parameters: None)
    stray, difference = np.abs(single - exact).max(), np.abs(curve - exact).max()
    print(f"{settings}: largest difference {difference:.1e}, of torch in float32 {stray:.1e}")
    assert difference < 10 * stray < 1e-2 * np.abs(free - exact).max()  # and clipping matters here
    found = trainer.model().weights()  # the averages, since they are asked for
    for name, value in average.state_dict().items():
        bound = 10 * (value - stray_average.state_dict()[name]).abs().max().item() + 1e-7
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=bound)


@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), AdamW(1e-3)], ids=["sgd", "adamw"])
def test_accumulated_batches_are_one_large_batch(optimizer: Any, model: Model, data: Any) -> None:
    """Batches of unlike sizes, with labels that do not count: bit for bit but for the order of sums."""
    loss = create("cross_entropy", ignore_index=3, weight=tuple(np.linspace(0.5, 2, 10).tolist()))
    settings = {"loss": loss, "optimizer": optimizer, "ep": "cpu", "clip_norm": 1.0}
    whole, parts = oa.Trainer(model, **settings), oa.Trainer(model, **settings, accumulate=3)
    for x, y in data[:20]:
        whole.step(x, y)
        for rows in (slice(0, 5), slice(5, 8), slice(8, None)):
            parts.step(x[rows], y[rows])
    expected, found = whole.model().weights(), parts.model().weights()
    start = model.weights()
    for name in whole.parameters:
        moved = np.abs(expected[name] - start[name]).max()
        assert moved > 1e-3
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-3 * moved)


def test_a_split_step_is_the_same_step(shared: Path) -> None:
    """With BatchNormalization and every batch an update, two graphs give what one gives."""
    data = real_batches(str(shared / "data/cifar10/train"), (3, 32, 32))[:5]
    model = oa.convert(batch_norm_cnn(), torch.from_numpy(data[0][0]), trainable=True)
    name = model.input_names()[0]
    optimizer = SGD(0.1, momentum=0.9)
    steps = [training_step(model, "cross_entropy", optimizer, split=split) for split in (False, True)]
    assert steps[1].update is not None
    one, two = (Stepper(step, resolve("cpu")) for step in steps)
    for x, y in data:
        assert two.run({name: x}, y, 0.1) == pytest.approx(one.run({name: x}, y, 0.1), rel=1e-5, nan_ok=True)
    expected, found = one.state(), two.state()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-6)


def test_fit_updates_after_so_many_batches_and_at_the_end_of_an_epoch(model: Model, data: Any) -> None:
    x = np.concatenate([x for x, _ in data[:3]])[:88]  # 11 batches of 8: updates of 4, 4 and 3 batches
    y = np.concatenate([y for _, y in data[:3]])[:88]
    small = oa.Trainer(model, optimizer=SGD(0.1), ep="cpu", accumulate=4)
    large = oa.Trainer(model, optimizer=SGD(0.1), ep="cpu")
    found, expected = small.fit((x, y), epochs=2, batch_size=8), large.fit((x, y), epochs=2, batch_size=32)
    assert found.steps == expected.steps == 6
    for name, value in large.model().weights().items():
        np.testing.assert_allclose(small.model().weights()[name], value, rtol=1e-4, atol=1e-6)


def test_a_resumed_accumulation_ends_with_the_same_bits(model: Model, data: Any, tmp_path: Path) -> None:
    """Interrupted between two batches of one update, averages and all."""
    x, y = np.concatenate([x for x, _ in data[:4]]), np.concatenate([y for _, y in data[:4]])
    settings: dict[str, Any] = {"optimizer": AdamW(1e-3), "ep": "cpu", "accumulate": 4, "ema": DECAY}

    def stop(tick: Any) -> None:
        if (tick.epoch, tick.batch) == (1, 6):
            raise KeyboardInterrupt

    whole = oa.Trainer(model, **settings)
    whole.fit((x, y), epochs=3, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        oa.Trainer(model, **settings).fit(
            (x, y), epochs=3, batch_size=8, checkpoint_folder=tmp_path, on_tick=stop
        )
    resumed = oa.Trainer(model, **settings)
    resumed.fit((x, y), epochs=3, batch_size=8, checkpoint_folder=tmp_path, resume=True)
    for name, value in whole.model().weights().items():
        np.testing.assert_array_equal(resumed.model().weights()[name], value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_norm": 1.0, "clip_value": 1.0}, "by norm or by value, not both"),
        ({"clip_norm": -1.0}, "clip_norm must not be negative"),
        ({"accumulate": 0}, "at least 1, not 0"),
        ({"ema": 1.0}, "ema must stay below 1"),
    ],
)
def test_bad_settings_are_said(settings: Any, message: str, model: Model) -> None:
    with pytest.raises(TrainingError, match=message):
        oa.Trainer(model, ep="cpu", **settings)
