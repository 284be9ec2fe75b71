"""Optimizers with torch's formulas, each written into the training graph.

An optimizer holds its settings; `Optimizer.update` writes one parameter's update. The learning rate is an
input of the training graph (a schedule changes it), the state is carried from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import TrainingError
from onnxaccel.graph.builder import Builder
from onnxaccel.registry import Registry

optimizer: Registry[type[Optimizer]] = Registry("optimizer")
"""Optimizers by the name that the command line takes: ``@optimizer("sgd")``."""


@dataclass(frozen=True)
class Optimizer:
    """Settings of an optimizer.

    Attributes:
        lr: The learning rate.
    """

    lr: float = 1e-3

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value >= 0:
                raise TrainingError(f"{type(self).__name__}: {name} must not be negative, it is {value}")

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state tensors per parameter, each shaped like it and zero at the start."""
        return ()

    @property
    def counts_steps(self) -> bool:
        """Whether `update` needs the number of the step."""
        return False

    def update(
        self,
        op: Builder,
        p: ir.Value,
        g: ir.Value,
        state: Sequence[ir.Value],
        lr: ir.Value,
        t: ir.Value | None,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """Write the update of one parameter.

        Args:
            op: The builder.
            p: The parameter.
            g: Its gradient.
            state: Its state, in the order of `slots`.
            lr: The learning rate, a scalar.
            t: The number of this step, 1 for the first, a scalar; None unless `counts_steps`.

        Returns:
            The new parameter and the new state.
        """
        raise NotImplementedError


@optimizer("sgd")
@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD (dampening 0).

    ``g += weight_decay p``; ``v = momentum v + g``; ``p -= lr v``, or with nesterov ``p -= lr (g + momentum
    v)``.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise TrainingError("SGD: nesterov needs a momentum above 0")

    @property
    def slots(self) -> tuple[str, ...]:
        """The velocity, where there is momentum."""
        return ("momentum_buffer",) if self.momentum else ()

    def update(
        self,
        op: Builder,
        p: ir.Value,
        g: ir.Value,
        state: Sequence[ir.Value],
        lr: ir.Value,
        t: ir.Value | None,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """See `Optimizer.update`."""
        if self.weight_decay:
            g = op.Add(g, op.Mul(p, self.weight_decay))
        if not self.momentum:
            return op.Sub(p, op.Mul(g, lr)), []
        v = op.Add(op.Mul(state[0], self.momentum), g)
        direction = op.Add(g, op.Mul(v, self.momentum)) if self.nesterov else v
        return op.Sub(p, op.Mul(direction, lr)), [v]


@optimizer("adam")
@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), as torch.optim.Adam.

    ``m = b1 m + (1 - b1) g``; ``v = b2 v + (1 - b2) g^2``;
    ``p -= lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)``. Weight decay is added to the gradient.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        """First and second moment of the gradient."""
        return ("exp_avg", "exp_avg_sq")

    @property
    def counts_steps(self) -> bool:
        """True: the moments' bias is corrected by the number of steps."""
        return True

    def decayed(self, op: Builder, p: ir.Value, g: ir.Value, lr: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Parameter and gradient after weight decay."""
        return p, op.Add(g, op.Mul(p, self.weight_decay)) if self.weight_decay else g

    def update(
        self,
        op: Builder,
        p: ir.Value,
        g: ir.Value,
        state: Sequence[ir.Value],
        lr: ir.Value,
        t: ir.Value | None,
    ) -> tuple[ir.Value, list[ir.Value]]:
        """See `Optimizer.update`."""
        b1, b2 = self.betas
        p, g = self.decayed(op, p, g, lr)
        m = op.Add(op.Mul(state[0], b1), op.Mul(g, 1.0 - b1))
        v = op.Add(op.Mul(state[1], b2), op.Mul(op.Mul(g, g), 1.0 - b2))
        size = op.Div(lr, _bias_correction(op, b1, t))
        root = op.Sqrt(_bias_correction(op, b2, t))
        denominator = op.Add(op.Div(op.Sqrt(v), root), self.eps)
        return op.Sub(p, op.Mul(op.Div(m, denominator), size)), [m, v]


def _bias_correction(op: Builder, beta: float, t: ir.Value | None) -> ir.Value:
    """``1 - beta^t`` as a float32 scalar, computed in float64: in float32, 1 - 0.999 has only five digits."""
    power = op.Pow(np.float64(beta), op.Cast(t, to=ir.DataType.DOUBLE.value))
    return op.Cast(op.Sub(np.float64(1), power), to=ir.DataType.FLOAT.value)


@optimizer("adamw")
@dataclass(frozen=True)
class AdamW(Adam):
    """AdamW (Loshchilov and Hutter 2019), as torch.optim.AdamW: Adam, after ``p -= lr weight_decay p``."""

    weight_decay: float = 0.01

    def decayed(self, op: Builder, p: ir.Value, g: ir.Value, lr: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Parameter and gradient after weight decay."""
        if not self.weight_decay:
            return p, g
        return op.Mul(p, op.Sub(1.0, op.Mul(lr, self.weight_decay))), g


def create(name: str, **settings: Any) -> Optimizer:
    """The optimizer called ``name``, with its settings.

    Raises:
        TrainingError: There is no such optimizer, or it has no such setting.
    """
    kind = optimizer.get(name)
    if kind is None:
        raise TrainingError(f"unknown optimizer {name!r}; choose one of {', '.join(optimizer)}")
    foreign = sorted(set(settings) - set(kind.__dataclass_fields__))
    if foreign:
        raise TrainingError(
            f"optimizer {name!r} has no {foreign[0]}; it has {', '.join(kind.__dataclass_fields__)}"
        )
    return kind(**settings)
