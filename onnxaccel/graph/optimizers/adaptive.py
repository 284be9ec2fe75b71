"""RMSprop, Adagrad and Adadelta: the step is scaled by the size of past gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxaccel.graph.builder import Builder
from onnxaccel.graph.optimizers.base import Optimizer, Update, average, l2, optimizer


@optimizer("rmsprop")
@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop (Hinton 2012), as torch.optim.RMSprop.

    ``v = alpha v + (1 - alpha) g^2``; ``d = g / (sqrt(v) + eps)``, centered with ``v - a^2`` for v, where a
    averages g as v does g^2; ``p -= lr d``, or with momentum ``b = momentum b + d``; ``p -= lr b``.
    """

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        """The mean square, centered the mean, with momentum the velocity."""
        optional = {"grad_avg": self.centered, "momentum_buffer": bool(self.momentum)}
        return ("square_avg", *(name for name, used in optional.items() if used))

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
        old = dict(zip(self.slots, state, strict=True))
        g = l2(op, p, g, self.weight_decay)
        new = {"square_avg": average(op, old["square_avg"], op.Mul(g, g), self.alpha)}
        spread = new["square_avg"]
        if self.centered:
            mean = new["grad_avg"] = average(op, old["grad_avg"], g, self.alpha)
            spread = op.Sub(spread, op.Mul(mean, mean))
        direction = op.Div(g, op.Add(op.Sqrt(spread), self.eps))
        if self.momentum:
            direction = op.Add(op.Mul(old["momentum_buffer"], self.momentum), direction)
            new["momentum_buffer"] = direction
        return op.Sub(p, op.Mul(direction, lr)), list(new.values())


@optimizer("adagrad")
@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan and Singer 2011), as torch.optim.Adagrad.

    ``s += g^2``; ``p -= lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)``.
    """

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    @property
    def slots(self) -> tuple[str, ...]:
        """The sum of squares."""
        return ("sum",)

    @property
    def counts_steps(self) -> bool:
        """Whether the learning rate decays."""
        return bool(self.lr_decay)

    def start(self, slot: str) -> float:
        """The sum starts where it is told to."""
        return self.initial_accumulator_value

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
        g = l2(op, p, g, self.weight_decay)
        if self.lr_decay:
            lr = op.Div(lr, op.Add(op.Mul(op.Sub(t, 1.0), self.lr_decay), 1.0))
        total = op.Add(state[0], op.Mul(g, g))
        return op.Sub(p, op.Mul(op.Div(g, op.Add(op.Sqrt(total), self.eps)), lr)), [total]


@optimizer("adadelta")
@dataclass(frozen=True)
class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012), as torch.optim.Adadelta.

    ``v = rho v + (1 - rho) g^2``; ``d = sqrt(u + eps) / sqrt(v + eps) g``; ``u = rho u + (1 - rho) d^2``;
    ``p -= lr d``.
    """

    lr: float = 1.0
    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        """Mean squares of the gradients and of the steps."""
        return ("square_avg", "acc_delta")

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
        g = l2(op, p, g, self.weight_decay)
        v = average(op, state[0], op.Mul(g, g), self.rho)
        root = op.Div(op.Sqrt(op.Add(state[1], self.eps)), op.Sqrt(op.Add(v, self.eps)))
        delta = op.Mul(root, g)
        return op.Sub(p, op.Mul(delta, lr)), [v, average(op, state[1], op.Mul(delta, delta), self.rho)]
