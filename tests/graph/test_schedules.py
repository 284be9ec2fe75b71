"""Learning-rate schedules equal torch's, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from onnxaccel.errors import TrainingError
from onnxaccel.graph.schedules import Moment, create, schedule

LR, EPOCHS, STEPS = 0.2, 30, 7
"""Learning rate, epochs, and steps per epoch."""

Torch = Callable[[torch.optim.Optimizer], Any]

WHOLE = EPOCHS * STEPS

CASES: list[tuple[str, dict[str, Any], Torch]] = [
    ("constant", {}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    ("step", {"step_size": 4}, lambda o: lr_scheduler.StepLR(o, 4)),
    ("step", {"step_size": 9, "gamma": 0.5, "unit": "step"}, lambda o: lr_scheduler.StepLR(o, 9, 0.5)),
    ("multistep", {"milestones": (5, 20)}, lambda o: lr_scheduler.MultiStepLR(o, [5, 20])),
    ("exponential", {"gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    ("polynomial", {}, lambda o: lr_scheduler.PolynomialLR(o, WHOLE)),
    (
        "polynomial",
        {"total_iters": 50, "power": 2.0},
        lambda o: lr_scheduler.PolynomialLR(o, 50, power=2.0),
    ),
    ("polynomial", {"unit": "epoch"}, lambda o: lr_scheduler.PolynomialLR(o, EPOCHS)),
    ("cosine", {}, lambda o: lr_scheduler.CosineAnnealingLR(o, WHOLE)),
    ("cosine", {"eta_min": 0.01}, lambda o: lr_scheduler.CosineAnnealingLR(o, WHOLE, 0.01)),
    ("cosine", {"unit": "epoch"}, lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS)),
    ("one_cycle", {}, lambda o: lr_scheduler.OneCycleLR(o, LR, WHOLE, cycle_momentum=False)),
    (
        "one_cycle",
        {"pct_start": 0.1, "anneal_strategy": "linear", "div_factor": 10.0, "final_div_factor": 50.0},
        lambda o: lr_scheduler.OneCycleLR(
            o, LR, WHOLE, None, None, 0.1, "linear", False, 0.8, 0.9, 10.0, 50.0
        ),
    ),
]


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], LR)


def torch_rates(scheduler: Any, steps: int, results: list[float] | None = None) -> list[float]:
    """The rate before each of ``steps`` calls of the scheduler."""
    rates = []
    for t in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step(*([] if results is None else [results[t]]))
    return rates


@pytest.mark.parametrize(("name", "settings", "theirs"), CASES)
def test_schedules_equal_torch(name: str, settings: dict[str, Any], theirs: Torch) -> None:
    ours = create(name, settings).over(EPOCHS, STEPS)
    rates = [ours.rate(LR, Moment(step, step // STEPS)) for step in range(WHOLE)]
    if ours.unit == "epoch":
        assert all(len(set(rates[e * STEPS : (e + 1) * STEPS])) == 1 for e in range(EPOCHS))
        rates = rates[::STEPS]
    np.testing.assert_allclose(rates, torch_rates(theirs(optimizer()), len(rates)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"patience": 2},
        {"patience": 0, "factor": 0.5, "cooldown": 3, "min_lr": 0.01},
        {"patience": 1, "threshold": 0.02, "threshold_mode": "abs"},
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_plateau_equals_torch(settings: dict[str, Any], seed: int) -> None:
    walk = np.random.default_rng(seed)
    losses = (np.exp(-np.arange(40) / 15) + 0.3 * walk.random(40)).tolist()
    ours = create("plateau", settings)
    rates = [ours.rate(LR, Moment(e * STEPS, e, losses[:e])) for e in range(40)]
    theirs = torch_rates(lr_scheduler.ReduceLROnPlateau(optimizer(), **settings), 40, losses)
    np.testing.assert_allclose(rates, theirs, rtol=1e-12)
    assert len(set(rates)) > 2  # it did reduce


@pytest.mark.parametrize("warmup", [1, 10])
@pytest.mark.parametrize(
    ("name", "settings", "theirs"),
    [
        ("constant", {}, lambda o, left: lr_scheduler.ConstantLR(o, factor=1.0)),
        ("cosine", {"eta_min": 0.01}, lambda o, left: lr_scheduler.CosineAnnealingLR(o, left, 0.01)),
        ("polynomial", {"power": 2.0}, lambda o, left: lr_scheduler.PolynomialLR(o, left, 2.0)),
        ("step", {"step_size": 9, "unit": "step"}, lambda o, left: lr_scheduler.StepLR(o, 9)),
    ],
)
def test_warmup_equals_torch(name: str, settings: dict[str, Any], theirs: Any, warmup: int) -> None:
    ours = create(name, settings | {"warmup": warmup}).over(EPOCHS, STEPS)
    rates = [ours.rate(LR, Moment(step, step // STEPS)) for step in range(WHOLE)]
    target = optimizer()
    linear = lr_scheduler.LinearLR(target, 1 / (warmup + 1), total_iters=warmup)
    both = lr_scheduler.SequentialLR(target, [linear, theirs(target, WHOLE - warmup)], [warmup])
    np.testing.assert_allclose(rates, torch_rates(both, WHOLE), rtol=1e-9, atol=1e-12)


def test_epochs_are_counted_from_the_start_also_with_warmup() -> None:
    ours = create("multistep", {"milestones": 1, "warmup": 3})
    rates = [ours.rate(LR, Moment(step, step // STEPS)) for step in range(2 * STEPS)]
    np.testing.assert_allclose(rates, LR * np.array([0.25, 0.5, 0.75] + [1] * (STEPS - 3) + [0.1] * STEPS))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("best", {}, "unknown schedule 'best'; choose one of constant, cosine"),
        ("cosine", {"gamma": 1}, "'cosine' has no gamma; it has warmup, unit, T_max, eta_min"),
        ("step", {}, "'step' needs step_size"),
        ("step", {"step_size": 0}, "step_size must be a whole number from 1"),
        ("cosine", {"warmup": -1}, "warmup must not be negative"),
        ("cosine", {"unit": "day"}, "unit must be step or epoch"),
        ("step", {"step_size": "many"}, "step_size must be a whole number"),
        ("exponential", {"gamma": "much"}, "gamma must be a number"),
        ("cosine", {"eta_min": "low"}, "eta_min must be a number"),
    ],
)
def test_wrong_settings_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        create(name, settings)


def test_every_schedule_is_compared() -> None:
    caffe_s = {"inv", "sigmoid"}  # compared in tests/converters/test_caffe_solvers.py
    assert set(schedule) == {name for name, _, _ in CASES} | {"plateau"} | caffe_s
