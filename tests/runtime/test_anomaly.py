"""Trainings that go wrong say where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel.errors import TrainingError


class Net(nn.Module):
    """Something that can go wrong between two layers."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.last = nn.Linear(4, 5), between, nn.Linear(5, 3)

    def forward(self, x: Any) -> Any:
        return self.last(self.between(self.first(x)))


def trainer(between: Any, lr: float = 0.1, **settings: Any) -> oa.Trainer:
    model = oa.convert(Net(between), torch.rand(2, 4), trainable=True, verify=False)
    return oa.Trainer(model, optimizer=oa.optimizers.SGD(lr), ep="cpu", **settings)


X, Y = np.ones((8, 4), np.float32), np.zeros(8, np.int64)


def test_the_forward_node_is_named() -> None:
    broken = trainer(lambda x: torch.log(-x * x - 1))
    with pytest.raises(
        TrainingError, match=r"loss became nan at step 1; .* First not finite: Log node 'node_log"
    ):
        broken.step(X, Y)


def test_batch_norm_and_dropout_are_no_hindrance() -> None:
    broken = trainer(nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.2)), lr=1e38)
    with pytest.raises(TrainingError, match=r"loss became (nan|inf) at step \d.* First not finite: (?!not)"):
        for _ in range(9):
            broken.step(X * np.arange(8, dtype=np.float32)[:, None], Y)


def test_the_input_is_named() -> None:
    x = X.copy()
    x[3, 2] = np.nan
    with pytest.raises(TrainingError, match=r"loss became nan at step 1; .* First not finite: input 'x'"):
        trainer(nn.Tanh()).step(x, Y)


def test_gradients_are_named_where_the_loss_is_still_finite() -> None:
    """sqrt(0) is 0 and its derivative infinite: the loss shows it one step late, in a parameter."""
    between = lambda x: torch.sqrt(x * 0)  # noqa: E731
    late = trainer(between)
    assert np.isfinite(late.step(X, Y))
    with pytest.raises(TrainingError, match=r"loss became nan at step .* First not finite: input 'first\."):
        late.step(X, Y)
    watchful = trainer(between, detect_anomaly=True)
    with pytest.raises(
        TrainingError,
        match=r"'first\.\w+' is no longer finite at step 1; .* the gradient of Sqrt node 'node_sqrt",
    ):
        watchful.step(X, Y)


def test_masks_of_minus_infinity_are_no_anomaly() -> None:
    mask = torch.tensor([0.0, 0, 0, 0, float("-inf")])
    fine = trainer(lambda x: torch.softmax(x + mask, 1), detect_anomaly=True)
    assert np.isfinite([fine.step(X, Y) for _ in range(3)]).all()
    broken = trainer(lambda x: torch.log(torch.softmax(x + mask, 1)[:, 4:].repeat(1, 5)))
    with pytest.raises(TrainingError, match="First not finite: Log node"):
        broken.step(X, Y)


def test_an_update_that_overflows_is_found() -> None:
    with pytest.raises(TrainingError, match=r"is no longer finite at step \d; .* First not finite: \w+ node"):
        watchful = trainer(nn.ReLU(), lr=1e38, detect_anomaly=True)
        for _ in range(5):
            watchful.step(X * 100, Y)
