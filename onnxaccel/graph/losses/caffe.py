"""Caffe's losses over values: sums over each sample's elements, divided by the batch's samples."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxaccel.graph.builder import Builder
from onnxaccel.graph.losses.base import Loss, Written, loss


def _per_sample(
    op: Builder, at: ir.Value, terms: ir.Value, slopes: ir.Value, prediction: ir.Value
) -> Written:
    """The sum of terms over the number of samples, from each one's slope at ``at``."""
    assert at.dtype is not None
    samples = op.Cast(op.Squeeze(op.Shape(at, start=0, end=1)), to=at.dtype.value)
    share = op.Reciprocal(samples)
    value = op.Mul(op.ReduceSum(terms, keepdims=0), share)
    return Written(value, at, op.Mul(slopes, share), samples, prediction)


@loss("caffe_euclidean")
@dataclass(frozen=True)
class CaffeEuclidean(Loss):
    """``sum (y - t)^2 / 2N`` over N samples, Caffe's EuclideanLoss; slope ``y - t``."""

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        difference = op.Sub(prediction, target)
        terms = op.Mul(op.Mul(difference, difference), 0.5)
        return _per_sample(op, prediction, terms, difference, prediction)


@loss("caffe_sigmoid_cross_entropy")
@dataclass(frozen=True)
class CaffeSigmoidCrossEntropy(Loss):
    """``sum (softplus(z) - z t) / N`` over N samples, Caffe's SigmoidCrossEntropyLoss.

    The prediction is the logits z, the slope ``sigmoid(z) - t``; softplus is written as
    max(z, 0) + log(1 + exp(-|z|)).
    """

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        z = prediction
        softplus = op.Add(op.Relu(z), op.Log(op.Add(op.Exp(op.Neg(op.Abs(z))), 1.0)))
        terms = op.Sub(softplus, op.Mul(z, target))
        return _per_sample(op, z, terms, op.Sub(op.Sigmoid(z), target), prediction)
