"""Caffe's solver: how long, how fast and by which formula a network is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from glob import escape
from itertools import accumulate
from typing import Any

from onnxaccel.errors import TrainingError
from onnxaccel.graph.losses import CaffeEuclidean, CaffeSigmoidCrossEntropy, CrossEntropy, Loss
from onnxaccel.graph.optimizers import Group, Optimizer, create
from onnxaccel.graph.schedules import (
    Constant,
    Exponential,
    Inv,
    MultiStep,
    Polynomial,
    Schedule,
    Sigmoid,
    Step,
)
from onnxaccel.records import Malformed, record

_TYPES: dict[str, tuple[str, ...]] = {
    "SGD": ("momentum",),
    "Nesterov": ("momentum",),
    "AdaGrad": ("delta",),
    "RMSProp": ("delta", "rms_decay"),
    "AdaDelta": ("momentum", "delta"),
    "Adam": ("momentum", "momentum2", "delta"),
}
"""Which of the solver's settings each type takes."""

_POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid")


@dataclass(frozen=True)
class Solver:
    """The settings of a solver.prototxt that say what is computed; names, defaults and meaning are Caffe's.

    Attributes:
        base_lr: The learning rate, which ``lr_policy`` changes from iteration to iteration.
        max_iter: Iterations in all.
        type: "SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta" or "Adam".
        lr_policy: "fixed", "step", "exp", "inv", "multistep", "poly" or "sigmoid", see `schedule`.
        gamma: A parameter of the policy.
        power: A parameter of the policy.
        stepsize: Iterations, a parameter of the policy.
        stepvalue: Iterations at which "multistep" lowers the rate.
        momentum: Of SGD, Nesterov and AdaDelta; the first moment's in Adam.
        momentum2: The second moment's in Adam.
        rms_decay: Of RMSProp.
        delta: What keeps divisions finite in the adaptive types.
        weight_decay: Factor of the penalty on the weights.
        regularization_type: "L2" or "L1", the penalty.
        iter_size: Batches whose gradients are averaged for one iteration.
        clip_gradients: Largest L2 norm of all gradients, summed over ``iter_size`` batches; None: any.
        test_interval: Iterations from one test to the next; 0: no tests.
        test_iter: Batches of a test; 0: all there are.
        test_initialization: Whether there is a test before the first iteration.
        snapshot: Iterations from one snapshot to the next; 0: none but the last.
        average_loss: Iterations that the displayed loss is averaged over.
        random_seed: Of the fillers and of Dropout; None: it does not matter.
    """

    base_lr: float
    max_iter: int
    type: str = "SGD"
    lr_policy: str = "fixed"
    gamma: float = 0.0
    power: float = 0.0
    stepsize: int = 0
    stepvalue: tuple[int, ...] = ()
    momentum: float = 0.0
    momentum2: float = 0.999
    rms_decay: float = 0.99
    delta: float = 1e-8
    weight_decay: float = 0.0
    regularization_type: str = "L2"
    iter_size: int = 1
    clip_gradients: float | None = None
    test_interval: int = 0
    test_iter: int = 0
    test_initialization: bool = True
    snapshot: int = 0
    average_loss: int = 1
    random_seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stepvalue", tuple(self.stepvalue))
        for name, known in (
            ("type", _TYPES),
            ("lr_policy", _POLICIES),
            ("regularization_type", ("L1", "L2")),
        ):
            if getattr(self, name) not in known:
                raise TrainingError(
                    f"solver: unknown {name} {getattr(self, name)!r}; it is one of {', '.join(known)}"
                )
        for name in ("base_lr", "max_iter", "iter_size", "average_loss"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainingError(f"solver: {name} must be above 0, it is {getattr(self, name)}")
        for name in ("momentum", "weight_decay", "delta", "test_interval", "test_iter", "snapshot"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TrainingError(f"solver: {name} must not be negative, it is {getattr(self, name)}")
        if self.lr_policy == "step" and self.stepsize < 1:
            raise TrainingError(f"solver: lr_policy 'step' needs a stepsize above 0, it is {self.stepsize}")
        if self.momentum and "momentum" not in _TYPES[self.type]:
            raise TrainingError(f"solver: {self.type} takes no momentum, as in Caffe; it is {self.momentum}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Solver:
        """A solver from its settings, as a model's metadata has them; others are ignored.

        Raises:
            TrainingError: A setting is missing or out of its range.
        """
        known = {field.name for field in fields(cls)}
        missing = [name for name in ("base_lr", "max_iter") if name not in settings]
        if missing:
            raise TrainingError(f"solver: {missing[0]} is missing")
        try:
            return record(cls, {name: value for name, value in settings.items() if name in known})
        except Malformed as error:
            raise TrainingError(f"solver: {error}") from None

    def schedule(self) -> Schedule:
        """The learning rate from iteration to iteration: ``lr_policy``."""
        match self.lr_policy:
            case "fixed":
                return Constant(unit="step")
            case "step":
                return Step(unit="step", step_size=self.stepsize, gamma=self.gamma)
            case "exp":
                return Exponential(unit="step", gamma=self.gamma)
            case "inv":
                return Inv(gamma=self.gamma, power=self.power)
            case "multistep":  # Caffe passes at most one stepvalue an iteration
                passed = accumulate(self.stepvalue, lambda before, value: max(value, before + 1))
                return MultiStep(unit="step", milestones=tuple(passed), gamma=self.gamma)
            case "poly":
                return Polynomial(total_iters=self.max_iter, power=self.power)
            case _:
                return Sigmoid(gamma=self.gamma, centre=self.stepsize)

    def optimizer(self, multipliers: Mapping[str, tuple[float, float]] = {}) -> Optimizer:
        """The optimizer that computes this solver's updates.

        Args:
            multipliers: lr_mult and decay_mult by parameter, where they are not both 1.
        """
        groups = [
            Group.of(escape(name), lr_mult=rate, weight_decay=self.weight_decay * decay)
            for name, (rate, decay) in (multipliers or {}).items()
        ]
        return create(
            f"caffe_{self.type.lower()}",
            lr=self.base_lr,
            weight_decay=self.weight_decay,
            l1=self.regularization_type == "L1",
            groups=tuple(groups),
            **{name: getattr(self, name) for name in _TYPES[self.type]},
        )


def loss_of(heads: Sequence[Mapping[str, Any]]) -> Loss:
    """The loss that a network's heads stand for, with Caffe's own divisors.

    Args:
        heads: ``metadata.heads`` of a Caffe network; without any it is taken to be "cross_entropy".

    Raises:
        TrainingError: They are none that is known here.
    """
    weighted = [head for head in heads if head["loss_weight"]]
    if not weighted:
        return CrossEntropy()
    head, settings = weighted[0], weighted[0]["settings"]
    mode = settings.get("normalization", "BATCH_SIZE" if settings.get("normalize") is False else None)
    if len(weighted) == 1 and head["loss_weight"] == 1:
        ignored = settings.get("ignore_label")
        if head["type"] == "SoftmaxWithLoss" and mode in (None, "VALID"):
            return CrossEntropy(ignore_index=ignored)
        if head["type"] == "SoftmaxWithLoss" and mode == "BATCH_SIZE" and ignored is None:
            return CrossEntropy()
        if head["type"] == "EuclideanLoss":
            return CaffeEuclidean()
        if head["type"] == "SigmoidCrossEntropyLoss" and mode in (None, "BATCH_SIZE") and ignored is None:
            return CaffeSigmoidCrossEntropy()
    found = ", ".join(f"{h['type']} {h['layer']!r}" for h in weighted)
    raise TrainingError(
        f"the network's loss is {found}; a solver trains one SoftmaxWithLoss, EuclideanLoss or "
        "SigmoidCrossEntropyLoss of weight 1 here. Give --loss to train the first output with another"
    )
