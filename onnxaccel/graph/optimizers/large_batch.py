"""Lion and LAMB, which torch does not have; the formulas are the papers'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxaccel.graph.builder import Builder
from onnxaccel.graph.optimizers.adam import Moments
from onnxaccel.graph.optimizers.base import Optimizer, Update, average, bias_correction, decoupled, optimizer


@optimizer("lion")
@dataclass(frozen=True)
class Lion(Optimizer):
    """Lion (Chen et al. 2023, algorithm 2).

    ``p -= lr (sign(b1 m + (1 - b1) g) + weight_decay p)``; ``m = b2 m + (1 - b2) g``.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        """The gradient's average."""
        return ("exp_avg",)

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
        b1, b2 = self.betas
        direction = op.Sign(average(op, state[0], g, b1))
        kept = decoupled(op, p, lr, self.weight_decay)
        return op.Sub(kept, op.Mul(direction, lr)), [average(op, state[0], g, b2)]


@optimizer("lamb")
@dataclass(frozen=True)
class LAMB(Moments):
    """LAMB (You et al. 2020, algorithm 2): Adam's direction, scaled per tensor to the size of the parameter.

    ``r = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)``; ``u = r + weight_decay p``;
    ``p -= lr |p| / |u| u``, with the factor 1 where either norm is 0.
    """

    eps: float = 1e-6

    elementwise: ClassVar[bool] = False

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
        b1, b2 = self.betas
        m, v = self.moments(op, g, state)
        root = op.Sqrt(op.Div(v, bias_correction(op, b2, t)))
        u = op.Div(op.Div(m, bias_correction(op, b1, t)), op.Add(root, self.eps))
        if self.weight_decay:
            u = op.Add(u, op.Mul(p, self.weight_decay))
        size, length = op.ReduceL2(p, keepdims=0), op.ReduceL2(u, keepdims=0)
        usual = op.And(op.Greater(size, 0.0), op.Greater(length, 0.0))
        trust = op.Where(usual, op.Div(size, length), 1.0)
        return op.Sub(p, op.Mul(u, op.Mul(lr, trust))), [m, v]
