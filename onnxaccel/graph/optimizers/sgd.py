"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxaccel.errors import TrainingError
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.optimizers.base import Optimizer, Update, l2, optimizer
from onnxaccel.graph.optimizers.fused import plus, step_back


@optimizer("sgd")
@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD.

    ``g += weight_decay p``; ``v = momentum v + (1 - dampening) g``, at the first step ``v = g``;
    ``p -= lr v``, or with nesterov ``p -= lr (g + momentum v)``.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    dampening: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and (not self.momentum or self.dampening):
            raise TrainingError("SGD: nesterov needs a momentum above 0 and no dampening")

    @property
    def slots(self) -> tuple[str, ...]:
        """The velocity, where there is momentum."""
        return ("momentum_buffer",) if self.momentum else ()

    @property
    def counts_steps(self) -> bool:
        """Whether there is dampening, which spares the first step."""
        return bool(self.momentum and self.dampening)

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
        if not self.momentum:
            return step_back(op, p, g, lr), []
        share = g
        if self.dampening:
            share = op.Mul(g, op.Where(op.Greater(t, 1.0), 1.0 - self.dampening, 1.0))
        if self.nesterov:  # reads the gradient twice
            v = op.Add(op.Mul(state[0], self.momentum), share)
            return step_back(op, p, op.Add(g, op.Mul(v, self.momentum)), lr), [v]
        v = plus(op, state[0], self.momentum, share)
        return step_back(op, p, v, lr), [v]
