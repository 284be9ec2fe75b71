"""Losses over class labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.errors import ModelError, TrainingError
from onnxaccel.graph.builder import Builder, Dim
from onnxaccel.graph.losses.base import LABELS, TARGET, Loss, Written, before, known_dims, loss, size_of


@dataclass(frozen=True)
class ClassLoss(Loss):
    """What losses over class labels share.

    Attributes:
        weight: A weight for each class; None: all count alike.
        ignore_index: The label of samples or positions that do not count; None: all do.
        axis: The axis of the prediction that runs over the classes: 1 for [N, C] and [N, C, positions...],
            -1 for [N, positions..., C].
    """

    weight: tuple[float, ...] | None = None
    ignore_index: int | None = None
    axis: int = 1

    kind: ClassVar[str] = LABELS

    def _checked_range(self) -> set[str]:
        return super()._checked_range() - {"ignore_index", "axis"}

    def misfits(self, labels: npt.NDArray[np.int64], classes: int | None) -> npt.NDArray[np.bool_]:
        """See `Loss.misfits`."""
        wrong = super().misfits(labels, classes)
        return wrong if self.ignore_index is None else wrong & (labels != self.ignore_index)

    def target(self, prediction: ir.Value) -> ir.Value:
        """int64 class labels, in the prediction's shape without its class axis."""
        dims = self._dims(prediction)
        del dims[self.axis]
        return ir.val(TARGET, ir.DataType.INT64, ir.Shape(dims))

    def classes(self, prediction: ir.Value) -> int | None:
        """The size of the class axis."""
        width = self._dims(prediction)[self.axis]
        return width if isinstance(width, int) else None

    def correct(self, op: Builder, scores: ir.Value, target: ir.Value) -> ir.Value:
        """The number of right predictions, a sample with many positions counting by its share of them."""
        number = _total(op, op.Equal(op.ArgMax(scores, axis=1, keepdims=0), target))
        if self.ignore_index is not None:
            counted = op.Max(_total(op, op.Not(op.Equal(target, self.ignore_index))), 1.0)
        elif len(known_dims(target)) > 1:
            counted = size_of(op, target, number)
        else:
            return number
        samples = op.Squeeze(op.Cast(op.Shape(target, start=0, end=1), to=ir.DataType.FLOAT.value))
        return op.Div(op.Mul(number, samples), counted)

    def flat(self, op: Builder, prediction: ir.Value) -> ir.Value:
        """The prediction without the trailing axes of size 1 that a global pooling leaves."""
        dims = self._dims(prediction)
        if len(dims) == len(known_dims(prediction)):
            return prediction
        flat = op.Flatten(prediction, axis=1)
        flat.type, flat.shape = prediction.type, ir.Shape(dims)
        return flat

    def _dims(self, prediction: ir.Value) -> list[Dim]:
        """The dimensions of `flat`."""
        dims = known_dims(prediction)
        if self.axis == 1 and len(dims) > 2 and all(d == 1 for d in dims[2:]):
            dims = dims[:2]
        if not -len(dims) < self.axis < len(dims) or not self.axis:
            raise ModelError(
                f"{type(self).__name__} needs an output of shape [N, classes] or [N, classes, positions...], "
                f"or the axis of the classes; {prediction.name!r} has shape {dims}, axis is {self.axis}"
            )
        return dims

    def by_class(self, op: Builder, scores: ir.Value) -> ir.Value:
        """The scores as [N, C, positions...]."""
        order = list(range(len(known_dims(scores))))
        if order[self.axis] == 1:
            return scores
        order.insert(1, order.pop(self.axis))
        return op.Transpose(scores, perm=order)

    def spread(self, op: Builder, scores: ir.Value, target: ir.Value, smoothing: float = 0.0) -> Spread:
        """The target as a distribution over the classes, times the weights, in the form of ``scores``."""
        classes = self.classes(scores)
        if classes is None and (smoothing or self.weight is not None):
            raise ModelError(f"{type(self).__name__}: the number of classes of {scores.name!r} is not known")
        if self.weight is not None and len(self.weight) != classes:
            raise ModelError(
                f"{type(self).__name__}: there are {len(self.weight)} class weights, the model has {classes} "
                "classes"
            )
        if classes is None:
            depth = op.Gather(op.Shape(scores), [self.axis])
        else:
            depth = op.constant([classes])
        factors: list[ir.Value] = []  # of each sample, the class axis kept
        if self.ignore_index is not None:
            ignored = op.Equal(target, self.ignore_index)
            target = op.Where(ignored, 0, target)
            factors.append(op.Unsqueeze(op.Cast(op.Not(ignored), to=_dtype(scores).value), [self.axis]))
        low = smoothing / classes if classes is not None else 0.0
        values = op.OneHot(
            target, depth, op.constant([low, 1.0 - smoothing + low], scores.dtype), axis=self.axis
        )
        for factor in factors:
            values = op.Mul(values, factor)
        if self.weight is not None:
            weights = np.array(self.weight, _dtype(scores).numpy())
            along = [1] * len(self._dims(scores))
            along[self.axis] = len(weights)
            values = op.Mul(values, weights.reshape(along))
            factors.append(op.Unsqueeze(op.Gather(weights, target), [self.axis]))
        if not factors:
            return Spread(values, None, size_of(op, target, scores))
        of_samples = factors[0] if len(factors) == 1 else op.Mul(*factors)
        sums = op.ReduceSum(values, [self.axis], keepdims=1)
        return Spread(values, sums, op.ReduceSum(of_samples, keepdims=0))


@dataclass(frozen=True)
class Spread:
    """The target as a distribution over the classes.

    Attributes:
        values: The distribution.
        sums: Its sum for each sample, the class axis kept; None: 1 for all.
        weight: What the batch counts, a scalar.
    """

    values: ir.Value
    sums: ir.Value | None
    weight: ir.Value

    def share(self, op: Builder) -> ir.Value:
        """One over the weight; one where nothing counts, so that the loss is then 0."""
        if self.sums is None:
            return op.Reciprocal(self.weight)
        return op.Reciprocal(op.Where(op.Equal(self.weight, 0.0), 1.0, self.weight))


@loss("cross_entropy")
@dataclass(frozen=True)
class CrossEntropy(ClassLoss):
    """``-sum_i w[t_i] log softmax(z_i)[t_i] / sum_i w[t_i]``, as torch.nn.CrossEntropyLoss.

    Its gradient at the logits is ``(softmax(z) - onehot(t)) / N`` where all weights are 1. The logits z are
    the prediction, or what a final Softmax or LogSoftmax was computed from: the normalisation is applied
    exactly once. With label_smoothing, every class gets an equal part of that share of the target. Where
    every label of a batch is ignored, the loss is 0 (torch: NaN).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing > 1:
            raise TrainingError(
                f"CrossEntropy: label_smoothing must not exceed 1, it is {self.label_smoothing}"
            )

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        assert target is not None
        source = before(prediction, {"Softmax", "LogSoftmax"}, self.axis)
        logits = self.flat(op, prediction if source is None else source)
        return _cross_entropy(self, op, logits, target, self.label_smoothing)


@loss("nll")
@dataclass(frozen=True)
class NLL(ClassLoss):
    """``-sum_i w[t_i] y_i[t_i] / sum_i w[t_i]`` of log-probabilities y, as torch.nn.NLLLoss.

    Where the model ends in a Softmax or LogSoftmax, this is `CrossEntropy` of its logits.
    """

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        assert target is not None
        logits = before(prediction, {"Softmax", "LogSoftmax"}, self.axis)
        if logits is not None:
            return _cross_entropy(self, op, self.flat(op, logits), target)
        log_p = self.flat(op, prediction)
        spread = self.spread(op, log_p, target)
        share = op.Neg(spread.share(op))
        value = op.Mul(op.ReduceSum(op.Mul(log_p, spread.values), keepdims=0), share)
        scores = self.by_class(op, log_p)
        return Written(value, log_p, op.Mul(spread.values, share), spread.weight, scores)


def _cross_entropy(
    settings: ClassLoss, op: Builder, logits: ir.Value, target: ir.Value, smoothing: float = 0.0
) -> Written:
    log_p = op.LogSoftmax(logits, axis=settings.axis)
    log_p.shape = logits.shape
    spread = settings.spread(op, logits, target, smoothing)
    share = spread.share(op)
    value = op.Mul(op.ReduceSum(op.Mul(log_p, spread.values), keepdims=0), op.Neg(share))
    p = op.Exp(log_p) if spread.sums is None else op.Mul(op.Exp(log_p), spread.sums)
    gradient = op.Mul(op.Sub(p, spread.values), share)
    return Written(value, logits, gradient, spread.weight, settings.by_class(op, logits))


@loss("multi_margin")
@dataclass(frozen=True)
class MultiMargin(ClassLoss):
    """The hinge loss over classes, as torch.nn.MultiMarginLoss.

    ``mean_i w[t_i] sum over j other than t_i of max(0, margin - y_i[t_i] + y_i[j])^p / C``, for p 1 or 2.
    """

    p: int = 1
    margin: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2):
            raise TrainingError(f"MultiMargin: p is 1 or 2, not {self.p}")

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        assert target is not None
        y, axes = self.flat(op, prediction), [self.axis]
        spread = self.spread(op, y, target)
        hot = op.Sign(spread.values)
        own = op.ReduceSum(op.Mul(y, hot), axes, keepdims=1)
        excess = op.Mul(op.Relu(op.Add(op.Sub(y, own), self.margin)), op.Sub(1.0, hot))
        if spread.sums is not None:
            excess = op.Mul(excess, op.Sign(spread.sums))
        slope = op.Sign(excess) if self.p == 1 else op.Mul(excess, 2.0)
        pull = op.Sub(slope, op.Mul(hot, op.ReduceSum(slope, axes, keepdims=1)))
        counted = size_of(op, target, y)
        if self.ignore_index is not None:
            counted = _total(op, op.Not(op.Equal(target, self.ignore_index)))
        classes = op.Div(size_of(op, y, y), size_of(op, target, y))
        share = op.Reciprocal(op.Mul(op.Max(counted, 1.0), classes))
        if spread.sums is not None:
            share = op.Mul(share, spread.sums)
        terms = excess if self.p == 1 else op.Mul(excess, excess)
        value = op.ReduceSum(op.Mul(terms, share), keepdims=0)
        return Written(value, y, op.Mul(pull, share), counted, self.by_class(op, y))


def _total(op: Builder, flags: ir.Value) -> ir.Value:
    """How many flags are set, a float scalar."""
    return op.ReduceSum(op.Cast(flags, to=ir.DataType.FLOAT.value), keepdims=0)


def _dtype(x: ir.Value) -> ir.DataType:
    assert x.dtype is not None
    return x.dtype
