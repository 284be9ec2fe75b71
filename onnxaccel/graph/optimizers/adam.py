"""Adam and its relatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxaccel.graph.builder import Builder
from onnxaccel.graph.optimizers.base import (
    Optimizer,
    Update,
    average,
    bias_correction,
    decoupled,
    double,
    l2,
    optimizer,
    power,
    single,
)


@dataclass(frozen=True)
class Moments(Optimizer):
    """What the relatives of Adam share: two moments of the gradient."""

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

    def moments(self, op: Builder, g: ir.Value, state: Sequence[ir.Value]) -> tuple[ir.Value, ir.Value]:
        """``m = b1 m + (1 - b1) g``; ``v = b2 v + (1 - b2) g^2``."""
        b1, b2 = self.betas
        return average(op, state[0], g, b1), average(op, state[1], op.Mul(g, g), b2)


@dataclass(frozen=True)
class _Decayed(Moments):
    """Moments, and weight decay that is added to the gradient, or decoupled: taken off the parameter."""

    decoupled_weight_decay: bool = field(default=False, kw_only=True)

    def decayed(self, op: Builder, p: ir.Value, g: ir.Value, lr: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Parameter and gradient after weight decay."""
        if self.decoupled_weight_decay:
            return decoupled(op, p, lr, self.weight_decay), g
        return p, l2(op, p, g, self.weight_decay)


@optimizer("adam")
@dataclass(frozen=True)
class Adam(_Decayed):
    """Adam (Kingma and Ba 2015), as torch.optim.Adam.

    ``m = b1 m + (1 - b1) g``; ``v = b2 v + (1 - b2) g^2``;
    ``p -= lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)``; with amsgrad, v is the largest one so far
    (Reddi, Kale and Kumar 2018). Weight decay is added to the gradient.
    """

    amsgrad: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        """First and second moment of the gradient, and with amsgrad the largest second moment."""
        return (*super().slots, "max_exp_avg_sq") if self.amsgrad else super().slots

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
        p, g = self.decayed(op, p, g, lr)
        m, v = self.moments(op, g, state)
        largest = [op.Max(state[2], v)] if self.amsgrad else []
        size = op.Div(lr, bias_correction(op, b1, t))
        root = op.Sqrt(bias_correction(op, b2, t))
        denominator = op.Add(op.Div(op.Sqrt(largest[0] if largest else v), root), self.eps)
        return op.Sub(p, op.Mul(op.Div(m, denominator), size)), [m, v, *largest]


@optimizer("adamw")
@dataclass(frozen=True)
class AdamW(Adam):
    """AdamW (Loshchilov and Hutter 2019), as torch.optim.AdamW: Adam, after ``p -= lr weight_decay p``."""

    weight_decay: float = 0.01
    decoupled_weight_decay: bool = field(default=True, kw_only=True)


@optimizer("nadam")
@dataclass(frozen=True)
class NAdam(_Decayed):
    """Adam with Nesterov momentum (Dozat 2016), as torch.optim.NAdam.

    With ``mu_t = b1 (1 - 0.96^(t momentum_decay) / 2)`` and ``M_t = mu_1 ... mu_t``:
    ``p -= lr ((1 - mu_t) g / (1 - M_t) + mu_{t+1} m / (1 - M_{t+1})) / (sqrt(v / (1 - b2^t)) + eps)``.
    """

    lr: float = 2e-3
    momentum_decay: float = 4e-3

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
        p, g = self.decayed(op, p, g, lr)
        m, v = self.moments(op, g, state)
        root = op.Sqrt(bias_correction(op, self.betas[1], t))
        denominator = op.Add(op.Div(op.Sqrt(v), root), self.eps)
        now = double(op, t)
        following = op.Add(now, 1.0)
        of_gradient = op.Div(op.Sub(1.0, self._mu(op, now)), op.Sub(1.0, self._product(op, now)))
        of_moment = op.Div(self._mu(op, following), op.Sub(1.0, self._product(op, following)))
        direction = op.Add(op.Mul(g, single(op, of_gradient)), op.Mul(m, single(op, of_moment)))
        return op.Sub(p, op.Mul(op.Div(direction, denominator), lr)), [m, v]

    def _mu(self, op: Builder, t: ir.Value) -> ir.Value:
        return op.Mul(op.Sub(1.0, op.Mul(power(op, 0.96**self.momentum_decay, t), 0.5)), self.betas[0])

    def _product(self, op: Builder, t: ir.Value) -> ir.Value:
        """mu_1 ... mu_t without a state: ``b1^t exp(-sum_k (sum_i q^(ik)) / (k 2^k))`` with q = 0.96^decay.

        It is the logarithm's series for each factor ``1 - q^i / 2``, summed over i as geometric series. 60
        terms leave less than 2^-60.
        """
        k = np.arange(1.0, 61.0)
        weight = 1 / (k * 2.0**k)
        q = 0.96 ** (self.momentum_decay * k)
        if self.momentum_decay:
            sums = op.Mul(op.Sub(1.0, op.Pow(op.constant(q), t)), weight * q / (1 - q))
        else:
            sums = op.Mul(t, weight)
        return op.Mul(power(op, self.betas[0], t), op.Exp(op.Neg(op.ReduceSum(sums, keepdims=0))))


@optimizer("radam")
@dataclass(frozen=True)
class RAdam(_Decayed):
    """Rectified Adam (Liu et al. 2020), as torch.optim.RAdam.

    With ``r = 2 / (1 - b2) - 1`` and ``r_t = r - 2 t b2^t / (1 - b2^t)``, ``p -= lr m / (1 - b1^t) a`` where
    ``a = sqrt((r_t - 4) (r_t - 2) r / ((r - 4) (r - 2) r_t)) sqrt(1 - b2^t) / (sqrt(v) + eps)`` once r_t
    exceeds 5, and 1 before.
    """

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
        p, g = self.decayed(op, p, g, lr)
        m, v = self.moments(op, g, state)
        decay = power(op, b2, t)
        correction = op.Sub(1.0, decay)
        longest = 2 / (1 - b2) - 1
        length = op.Sub(longest, op.Div(op.Mul(op.Mul(double(op, t), decay), 2.0), correction))
        rectified = op.Greater(length, 5.0)
        safe = op.Where(rectified, length, 5.0)
        ratio = op.Mul(op.Div(op.Mul(op.Sub(safe, 4.0), op.Sub(safe, 2.0)), safe), _excess(longest))
        scale = single(op, op.Sqrt(op.Mul(ratio, correction)))
        adaptive = op.Where(rectified, op.Div(scale, op.Add(op.Sqrt(v), self.eps)), 1.0)
        return op.Sub(p, op.Mul(op.Mul(m, adaptive), op.Div(lr, bias_correction(op, b1, t)))), [m, v]


def _excess(longest: float) -> float:
    """``r / ((r - 4) (r - 2))``, of no effect (and 0) where r never exceeds 5."""
    return longest / ((longest - 4) * (longest - 2)) if longest > 5 else 0.0
