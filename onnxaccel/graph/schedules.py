"""Learning-rate schedules with torch's formulas.

A schedule is a pure function: from the optimizer's learning rate, the step, the epoch and (for plateau) the
results of the epochs before, it gives the rate of the next step. It holds no state, so that a resumed
training goes on exactly.

Each schedule counts in steps or in epochs: step, multistep, exponential and plateau in epochs, as they are
commonly used; polynomial, cosine and one_cycle in steps, over the whole training unless told otherwise.
``unit`` changes it where both make sense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, ClassVar

from onnxaccel.errors import TrainingError
from onnxaccel.graph.settings import Settings, made
from onnxaccel.registry import Registry

schedule: Registry[type[Schedule]] = Registry("schedule")
"""Schedules by the name that the command line takes: ``@schedule("cosine")``."""


@dataclass(frozen=True)
class Moment:
    """Where a training stands.

    Attributes:
        step: Steps taken since the start.
        epoch: Epochs finished.
        results: What each of them gave: the validation loss, or the training loss without validation data.
    """

    step: int
    epoch: int
    results: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Schedule(Settings):
    """Settings of a schedule.

    Attributes:
        warmup: Steps of linear warm-up in front: step t of them has (t + 1) / (warmup + 1) of the rate, as
            torch's LinearLR with start_factor 1 / (warmup + 1). A schedule that counts steps starts after
            them; one that counts epochs counts from the start of the training.
        unit: What the schedule counts, "step" or "epoch".
    """

    warmup: int = 0
    unit: str = "epoch"

    length: ClassVar[str | None] = None
    """The field that holds the schedule's length; 0 there stands for the whole training."""

    def __post_init__(self) -> None:
        if self.unit not in ("step", "epoch"):
            raise TrainingError(f"{type(self).__name__}: unit must be step or epoch, it is {self.unit!r}")
        super().__post_init__()

    def over(self, epochs: int, steps_per_epoch: int) -> Schedule:
        """The schedule with its length filled in, for a training of so many epochs."""
        if self.length is None or getattr(self, self.length):
            return self
        whole = epochs if self.unit == "epoch" else epochs * steps_per_epoch - self.warmup
        length: dict[str, Any] = {self.length: max(whole, 1)}
        return replace(self, **length)

    def rate(self, lr: float, now: Moment) -> float:
        """The learning rate of the next step.

        Args:
            lr: The optimizer's learning rate.
            now: Where the training stands.
        """
        count = now.epoch if self.unit == "epoch" else max(now.step - self.warmup, 0)
        rising = min((now.step + 1) / (self.warmup + 1), 1.0)
        return rising * self.value(lr, count, now.results)

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """The schedule's formula, without warm-up, after ``t`` units."""
        raise NotImplementedError


@schedule("constant")
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The optimizer's own rate."""

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """See `Schedule.value`."""
        return lr


@schedule("step")
@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """``lr gamma^(t // step_size)``, as torch's StepLR."""

    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.step_size, int) or self.step_size < 1:
            raise TrainingError(f"Step: step_size must be a whole number from 1 on, it is {self.step_size!r}")

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """See `Schedule.value`."""
        return lr * self.gamma ** (t // self.step_size)


@schedule("multistep")
@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """``lr gamma^k`` after ``k`` of the milestones, as torch's MultiStepLR."""

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.milestones, int):  # one of them, from the command line
            object.__setattr__(self, "milestones", (self.milestones,))
        super().__post_init__()

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """See `Schedule.value`."""
        return lr * self.gamma ** sum(milestone <= t for milestone in self.milestones)


@schedule("exponential")
@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """``lr gamma^t``, as torch's ExponentialLR."""

    gamma: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.gamma, (int, float)):
            raise TrainingError(f"Exponential: gamma must be a number, it is {self.gamma!r}")

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """See `Schedule.value`."""
        return lr * self.gamma**t


@schedule("polynomial")
@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """``lr (1 - t / total_iters)^power``, then 0, as torch's PolynomialLR."""

    unit: str = "step"
    total_iters: int = 0
    power: float = 1.0

    length = "total_iters"

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """See `Schedule.value`."""
        return lr * math.pow(1 - min(t, self.total_iters) / self.total_iters, self.power)


@schedule("inv")
@dataclass(frozen=True, kw_only=True)
class Inv(Schedule):
    """``lr (1 + gamma t)^-power``, as Caffe's lr_policy "inv"."""

    unit: str = "step"
    gamma: float
    power: float

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """See `Schedule.value`."""
        return lr * math.pow(1 + self.gamma * t, -self.power)


@schedule("sigmoid")
@dataclass(frozen=True, kw_only=True)
class Sigmoid(Schedule):
    """``lr / (1 + exp(-gamma (t - centre)))``, as Caffe's lr_policy "sigmoid"; a negative gamma lowers it."""

    unit: str = "step"
    gamma: float
    centre: int

    def _checked_range(self) -> set[str]:
        return super()._checked_range() - {"gamma", "centre"}

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """See `Schedule.value`."""
        return lr / (1 + math.exp(min(-self.gamma * (t - self.centre), 700.0)))


@schedule("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """``eta_min + (lr - eta_min) (1 + cos(pi t / T_max)) / 2``, as torch's CosineAnnealingLR."""

    unit: str = "step"
    T_max: int = 0
    eta_min: float = 0.0

    length = "T_max"

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """See `Schedule.value`."""
        return self.eta_min + (lr - self.eta_min) * (1 + math.cos(math.pi * t / self.T_max)) / 2


@schedule("one_cycle")
@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Up from ``lr / div_factor`` to ``lr``, and down to ``lr / div_factor / final_div_factor``.

    The formula of torch's OneCycleLR without momentum cycling (``cycle_momentum=False``); the optimizer's
    rate is its ``max_lr``.
    """

    unit: str = "step"
    total_steps: int = 0
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    length = "total_steps"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anneal_strategy not in ("cos", "linear"):
            raise TrainingError(f"OneCycle: anneal_strategy is cos or linear, not {self.anneal_strategy!r}")

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """See `Schedule.value`."""
        first, last = lr / self.div_factor, lr / self.div_factor / self.final_div_factor
        top, end = self.pct_start * self.total_steps - 1, self.total_steps - 1
        t = min(t, end)
        if t <= top:
            return self._between(first, lr, t / top if top else 1.0)
        return self._between(lr, last, (t - top) / (end - top))

    def _between(self, start: float, end: float, share: float) -> float:
        if self.anneal_strategy == "linear":
            return start + (end - start) * share
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


@schedule("plateau")
@dataclass(frozen=True, kw_only=True)
class Plateau(Schedule):
    """The rate times ``factor`` whenever the loss has not improved for more than ``patience`` epochs.

    As torch's ReduceLROnPlateau with mode "min", over the validation loss, or the training loss without
    validation data.
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit != "epoch" or self.threshold_mode not in ("rel", "abs"):
            raise TrainingError("Plateau: unit is epoch, and threshold_mode rel or abs")

    def value(self, lr: float, t: int, results: Sequence[float]) -> float:
        """See `Schedule.value`."""
        best, bad, cooling = math.inf, 0, 0
        for result in results[:t]:
            bound = best * (1 - self.threshold) if self.threshold_mode == "rel" else best - self.threshold
            best, bad = (result, 0) if result < bound else (best, bad + 1)
            if cooling:
                cooling, bad = cooling - 1, 0
            if bad > self.patience:
                lower = max(lr * self.factor, self.min_lr)
                lr = lower if lr - lower > self.eps else lr
                cooling, bad = self.cooldown, 0
        return lr


def create(name: str, settings: Mapping[str, Any] | None = None) -> Schedule:
    """The schedule called ``name``, with its settings.

    Raises:
        TrainingError: There is no such schedule, it has no such setting, or lacks one that it needs.
    """
    settings = dict(settings or {})
    kind = schedule.get(name)
    needed = [] if kind is None else [f.name for f in fields(kind) if f.default is MISSING]
    missing = [field for field in needed if field not in settings]
    if missing:
        raise TrainingError(
            f"schedule {name!r} needs {missing[0]}; give it with --schedule-option {missing[0]}=..."
        )
    return made(schedule, name, settings)
