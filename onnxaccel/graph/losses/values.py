"""Losses over values: the target is shaped like the prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import ModelError, TrainingError
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.losses.base import NOTHING, Loss, Written, before, known_dims, loss, size_of
from onnxaccel.graph.model import Model, name_of


def _mean(op: Builder, at: ir.Value, terms: ir.Value, slopes: ir.Value, prediction: ir.Value) -> Written:
    """The mean of terms over all elements, from each one's slope at ``at``."""
    weight = size_of(op, at, at)
    gradient = op.Mul(slopes, op.Reciprocal(weight))
    return Written(op.ReduceMean(terms, keepdims=0), at, gradient, weight, prediction)


@loss("mse")
@dataclass(frozen=True)
class MSE(Loss):
    """``mean (y - t)^2``, as torch.nn.MSELoss; slope ``2 (y - t)``."""

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        difference = op.Sub(prediction, target)
        square = op.Mul(difference, difference)
        return _mean(op, prediction, square, op.Mul(difference, 2.0), prediction)


@loss("l1")
@dataclass(frozen=True)
class L1(Loss):
    """``mean |y - t|``, as torch.nn.L1Loss; slope ``sign(y - t)``."""

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        difference = op.Sub(prediction, target)
        return _mean(op, prediction, op.Abs(difference), op.Sign(difference), prediction)


@loss("huber")
@dataclass(frozen=True)
class Huber(Loss):
    """``mean d^2 / 2`` where ``|d| <= delta``, else ``delta (|d| - delta / 2)``, for d = y - t.

    As torch.nn.HuberLoss; slope ``c = clip(d, -delta, delta)``, with which the term is ``c (d - c / 2)``.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.delta:
            raise TrainingError("Huber: delta must be above 0")

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        difference = op.Sub(prediction, target)
        clipped = op.Clip(difference, -self.delta, self.delta)
        terms = op.Mul(clipped, op.Sub(difference, op.Mul(clipped, 0.5)))
        return _mean(op, prediction, terms, clipped, prediction)


@loss("smooth_l1")
@dataclass(frozen=True)
class SmoothL1(Loss):
    """``mean d^2 / (2 beta)`` where ``|d| < beta``, else ``|d| - beta / 2``, as torch.nn.SmoothL1Loss.

    It is `Huber` over beta, and `L1` where beta is 0.
    """

    beta: float = 1.0

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        if not self.beta:
            return L1().write(op, prediction, target)
        difference = op.Sub(prediction, target)
        clipped = op.Clip(op.Div(difference, self.beta), -1.0, 1.0)
        terms = op.Mul(clipped, op.Sub(difference, op.Mul(clipped, 0.5 * self.beta)))
        return _mean(op, prediction, terms, clipped, prediction)


@loss("bce_with_logits")
@dataclass(frozen=True)
class BCEWithLogits(Loss):
    """``mean softplus(z) - z t``, as torch.nn.BCEWithLogitsLoss; slope ``sigmoid(z) - t``.

    The logits z are the prediction, or what a final Sigmoid was computed from. softplus is written as
    max(z, 0) + log(1 + exp(-|z|)), which does not overflow. With pos_weight q, one number or one for each
    entry of the last axis, the term is ``(1 - t) z + (1 + (q - 1) t) softplus(-z)``.
    """

    pos_weight: float | tuple[float, ...] | None = None

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        source = before(prediction, {"Sigmoid"})
        logits = prediction if source is None else source
        rest = op.Log(op.Add(op.Exp(op.Neg(op.Abs(logits))), 1.0))
        if self.pos_weight is None:
            terms = op.Sub(op.Add(op.Relu(logits), rest), op.Mul(logits, target))
            return _mean(op, logits, terms, op.Sub(op.Sigmoid(logits), target), logits)
        weight = np.array(self.pos_weight)
        width = known_dims(prediction)[-1]
        if weight.ndim and isinstance(width, int) and len(weight) != width:
            raise ModelError(
                f"BCEWithLogits: pos_weight has {len(weight)} values, {prediction.name!r} has {width}"
            )
        assert logits.dtype is not None
        excess = op.constant((weight - 1).astype(logits.dtype.numpy()))
        scale = op.Add(op.Mul(target, excess), 1.0)
        negative = op.Neg(logits)
        softplus = op.Add(op.Relu(negative), rest)
        others = op.Sub(1.0, target)
        terms = op.Add(op.Mul(others, logits), op.Mul(scale, softplus))
        return _mean(op, logits, terms, op.Sub(others, op.Mul(scale, op.Sigmoid(negative))), logits)


@loss("bce")
@dataclass(frozen=True)
class BCE(Loss):
    """``-mean t log y + (1 - t) log(1 - y)`` of probabilities y, as torch.nn.BCELoss.

    Logarithms stay above -100, slopes ``(y - t) / max(y (1 - y), 1e-12)`` finite, as torch has it. Where the
    model ends in a Sigmoid, this is `BCEWithLogits` of its logits.
    """

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        if before(prediction, {"Sigmoid"}) is not None:
            return BCEWithLogits().write(op, prediction, target)
        rest = op.Sub(1.0, prediction)
        hit = op.Mul(target, op.Max(op.Log(prediction), -100.0))
        miss = op.Mul(op.Sub(1.0, target), op.Max(op.Log(rest), -100.0))
        slope = op.Div(op.Sub(prediction, target), op.Max(op.Mul(prediction, rest), 1e-12))
        return _mean(op, prediction, op.Neg(op.Add(hit, miss)), slope, prediction)


@loss("kl_div")
@dataclass(frozen=True)
class KLDiv(Loss):
    """``mean t (log t - y)`` of log-probabilities y, as torch.nn.KLDivLoss; slope ``-t``.

    With log_target the target holds logarithms. With batchmean the sum is divided by the size of the batch
    alone, which is what the divergence's definition says (torch: reduction="batchmean").
    """

    log_target: bool = False
    batchmean: bool = False

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        assert target is not None
        if self.log_target:
            share = op.Exp(target)
            terms = op.Mul(share, op.Sub(target, prediction))
        else:
            share = target
            entropy = op.Where(op.Greater(target, 0.0), op.Mul(target, op.Log(target)), 0.0)
            terms = op.Sub(entropy, op.Mul(target, prediction))
        weight = size_of(op, prediction, prediction)
        if self.batchmean:
            assert prediction.dtype is not None
            weight = op.Squeeze(op.Cast(op.Shape(prediction, start=0, end=1), to=prediction.dtype.value))
        value = op.Div(op.ReduceSum(terms, keepdims=0), weight)
        return Written(value, prediction, op.Neg(op.Div(share, weight)), weight, prediction)


@loss("hinge")
@dataclass(frozen=True)
class Hinge(Loss):
    """``mean max(0, margin - t y)`` for targets of -1 and 1; slope ``-t`` where the term is positive."""

    margin: float = 1.0

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        terms = op.Relu(op.Sub(self.margin, op.Mul(prediction, target)))
        return _mean(op, prediction, terms, op.Neg(op.Mul(op.Sign(terms), target)), prediction)


@loss("cosine")
@dataclass(frozen=True)
class Cosine(Loss):
    """``mean 1 - cos(y, t)`` along axis 1, as torch.nn.CosineEmbeddingLoss of similar pairs.

    ``cos = y.t / sqrt((y.y + 1e-12) (t.t + 1e-12))``; slope ``cos y / (y.y + 1e-12) - t / sqrt(...)``.
    """

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        if len(known_dims(prediction)) < 2:
            raise ModelError(f"Cosine needs an output of shape [N, width]; {prediction.name!r} has no axis 1")

        def dot(a: ir.Value, b: ir.Value | None) -> ir.Value:
            return op.ReduceSum(op.Mul(a, b), [1], keepdims=1)

        assert target is not None
        square = op.Add(dot(prediction, prediction), 1e-12)
        size = op.Sqrt(op.Mul(square, op.Add(dot(target, target), 1e-12)))
        cosine = op.Div(dot(prediction, target), size)
        slope = op.Sub(op.Mul(prediction, op.Div(cosine, square)), op.Div(target, size))
        weight = size_of(op, cosine, cosine)
        value = op.ReduceMean(op.Sub(1.0, cosine), keepdims=0)
        return Written(value, prediction, op.Mul(slope, op.Reciprocal(weight)), weight, prediction)


@loss("output")
@dataclass(frozen=True)
class Output(Loss):
    """The model's own output, one number that it computes itself; there is no target.

    Attributes:
        name: The output's name; the first one's by default.
    """

    name: str = ""

    kind: ClassVar[str] = NOTHING

    def prediction(self, model: Model) -> ir.Value:
        """The output of that name."""
        outputs = {name_of(value): value for value in model.outputs}
        if self.name and self.name not in outputs:
            raise ModelError(f"the model has no output {self.name!r}; it has {', '.join(outputs)}")
        return outputs[self.name] if self.name else model.outputs[0]

    def target(self, prediction: ir.Value) -> None:
        """None."""
        dims = known_dims(prediction)
        if any(dim != 1 for dim in dims):
            raise ModelError(
                f"loss output needs an output of one number; {prediction.name!r} has shape {dims}; "
                "name another one, or end the model in the mean of its losses"
            )

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        assert prediction.dtype is not None
        one = op.constant(np.ones([1] * len(known_dims(prediction)), prediction.dtype.numpy()))
        value = op.Reshape(prediction, np.zeros(0, np.int64))
        return Written(value, prediction, one, op.constant(1.0, prediction.dtype), prediction)
