"""Caffe's solvers as optimizers, with Caffe's own formulas.

In all of them ``g += weight_decay p``, or with ``l1`` ``g += weight_decay sign(p)``, comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxaccel.graph.builder import Builder
from onnxaccel.graph.optimizers.base import (
    Optimizer,
    Update,
    average,
    bias_correction,
    l2,
    optimizer,
)


@dataclass(frozen=True)
class CaffeOptimizer(Optimizer):
    """What Caffe's solvers share.

    Attributes:
        weight_decay: Factor of the penalty, added to the gradient.
        l1: Whether the penalty is ``|p|`` instead of ``p^2 / 2``.
    """

    weight_decay: float = 0.0
    l1: bool = False

    def update(
        self,
        op: Builder,
        p: ir.Value,
        g: ir.Value,
        state: Sequence[ir.Value],
        lr: ir.Value,
        t: ir.Value | None,
    ) -> Update:
        """See `Optimizer.update`."""
        if self.l1 and self.weight_decay:
            g = op.Add(g, op.Mul(op.Sign(p), self.weight_decay))
        else:
            g = l2(op, p, g, self.weight_decay)
        u, new = self.difference(op, g, state, lr, t)
        return op.Sub(p, u), new

    def difference(
        self, op: Builder, g: ir.Value, state: Sequence[ir.Value], lr: ir.Value, t: ir.Value | None
    ) -> Update:
        """What is subtracted from the parameter, and the new state; see `Optimizer.update`."""
        raise NotImplementedError


@optimizer("caffe_sgd")
@dataclass(frozen=True)
class CaffeSGD(CaffeOptimizer):
    """``v = momentum v + lr g``; ``p -= v``: the rate is inside the velocity, unlike torch's."""

    momentum: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        """The velocity, where there is momentum."""
        return ("history",) if self.momentum else ()

    def difference(
        self, op: Builder, g: ir.Value, state: Sequence[ir.Value], lr: ir.Value, t: ir.Value | None
    ) -> Update:
        """See `CaffeOptimizer.difference`."""
        step = op.Mul(g, lr)
        if not self.momentum:
            return step, []
        v = op.Add(op.Mul(state[0], self.momentum), step)
        return v, [v]


@optimizer("caffe_nesterov")
@dataclass(frozen=True)
class CaffeNesterov(CaffeSGD):
    """``v' = momentum v + lr g``; ``p -= (1 + momentum) v' - momentum v``."""

    def difference(
        self, op: Builder, g: ir.Value, state: Sequence[ir.Value], lr: ir.Value, t: ir.Value | None
    ) -> Update:
        """See `CaffeOptimizer.difference`."""
        v, new = super().difference(op, g, state, lr, t)
        if not new:
            return v, new
        return op.Sub(op.Mul(v, 1.0 + self.momentum), op.Mul(state[0], self.momentum)), new


@optimizer("caffe_adagrad")
@dataclass(frozen=True)
class CaffeAdaGrad(CaffeOptimizer):
    """``h += g^2``; ``p -= lr g / (sqrt(h) + delta)``."""

    delta: float = 1e-8

    @property
    def slots(self) -> tuple[str, ...]:
        """The sum of the squared gradients."""
        return ("history",)

    def accumulated(self, op: Builder, h: ir.Value, square: ir.Value) -> ir.Value:
        """The next h."""
        return op.Add(h, square)

    def difference(
        self, op: Builder, g: ir.Value, state: Sequence[ir.Value], lr: ir.Value, t: ir.Value | None
    ) -> Update:
        """See `CaffeOptimizer.difference`."""
        h = self.accumulated(op, state[0], op.Mul(g, g))
        return op.Mul(op.Div(g, op.Add(op.Sqrt(h), self.delta)), lr), [h]


@optimizer("caffe_rmsprop")
@dataclass(frozen=True)
class CaffeRMSProp(CaffeAdaGrad):
    """``h = rms_decay h + (1 - rms_decay) g^2``; ``p -= lr g / (sqrt(h) + delta)``."""

    rms_decay: float = 0.99

    def accumulated(self, op: Builder, h: ir.Value, square: ir.Value) -> ir.Value:
        """The next h."""
        return average(op, h, square, self.rms_decay)


@optimizer("caffe_adadelta")
@dataclass(frozen=True)
class CaffeAdaDelta(CaffeOptimizer):
    """With m for momentum: ``a = m a + (1 - m) g^2``; ``d = g sqrt((b + delta) / (a + delta))``.

    Then ``b = m b + (1 - m) d^2``; ``p -= lr d``.
    """

    momentum: float = 0.95
    delta: float = 1e-8

    @property
    def slots(self) -> tuple[str, ...]:
        """Averages of the squared gradient and of the squared update."""
        return ("history", "update_history")

    def difference(
        self, op: Builder, g: ir.Value, state: Sequence[ir.Value], lr: ir.Value, t: ir.Value | None
    ) -> Update:
        """See `CaffeOptimizer.difference`."""
        a = average(op, state[0], op.Mul(g, g), self.momentum)
        ratio = op.Div(op.Add(state[1], self.delta), op.Add(a, self.delta))
        d = op.Mul(g, op.Sqrt(ratio))
        return op.Mul(d, lr), [a, average(op, state[1], op.Mul(d, d), self.momentum)]


@optimizer("caffe_adam")
@dataclass(frozen=True)
class CaffeAdam(CaffeOptimizer):
    """Adam with ``delta`` beside the second moment as it is, before the correction of its bias.

    ``m = b1 m + (1 - b1) g``; ``v = b2 v + (1 - b2) g^2``;
    ``p -= lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + delta)``, b1 being momentum and b2 momentum2.
    """

    momentum: float = 0.9
    momentum2: float = 0.999
    delta: float = 1e-8

    @property
    def slots(self) -> tuple[str, ...]:
        """First and second moment of the gradient."""
        return ("first_moment", "second_moment")

    @property
    def counts_steps(self) -> bool:
        """True: the moments' bias is corrected by the number of steps."""
        return True

    def difference(
        self, op: Builder, g: ir.Value, state: Sequence[ir.Value], lr: ir.Value, t: ir.Value | None
    ) -> Update:
        """See `CaffeOptimizer.difference`."""
        m = average(op, state[0], g, self.momentum)
        v = average(op, state[1], op.Mul(g, g), self.momentum2)
        root = op.Sqrt(bias_correction(op, self.momentum2, t))
        size = op.Mul(lr, op.Div(root, bias_correction(op, self.momentum, t)))
        return op.Mul(op.Div(m, op.Add(op.Sqrt(v), self.delta)), size), [m, v]
