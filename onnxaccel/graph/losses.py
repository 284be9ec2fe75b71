"""Losses: the value over a batch and, with it, the gradient at the model's output.

A loss is where differentiation starts, so each writes its own first cotangent: one subtraction for cross
entropy, where the chain rule through softmax, logarithm and mean would write ten nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onnxaccel.errors import ModelError
from onnxaccel.graph.builder import Builder, attribute, dims_of
from onnxaccel.registry import Registry


@dataclass(frozen=True)
class Loss:
    """One loss, written into a graph.

    Attributes:
        value: The mean loss over the batch, a scalar.
        at: The value of the model that the gradient starts from (the logits, say).
        gradient: d value / d at, shaped like ``at``.
        scores: What predictions are read from: the class scores [N, C], or the prediction itself.
    """

    value: ir.Value
    at: ir.Value
    gradient: ir.Value
    scores: ir.Value


Write = Callable[[Builder, ir.Value, ir.Value], Loss]

loss: Registry[Write] = Registry("loss")
"""Losses by name: ``@loss("mse")`` over ``(op, prediction, target)``."""

TARGET = "onnxaccel.target"
"""Name of the graph input that holds the target; the prefix keeps it apart from a model's own names."""

CLASS_LABELS = frozenset({"cross_entropy"})
"""Losses whose target is one int64 class label per sample; the others take a float target like the output."""


def written(name: str) -> Write:
    """The loss called ``name``; an unknown name raises `ModelError`."""
    found = loss.get(name)
    if found is None:
        raise ModelError(f"unknown loss {name!r}; choose one of {', '.join(loss)}")
    return found


def target_of(name: str, prediction: ir.Value) -> ir.Value:
    """The graph input that holds the target of loss ``name`` for this prediction.

    Raises:
        ModelError: There is no such loss, or the prediction is no float tensor of known rank.
    """
    written(name)
    dims = dims_of(prediction)
    if dims is None:
        raise ModelError(f"the rank of output {prediction.name!r} is unknown; export with shapes")
    if name in CLASS_LABELS:
        return ir.val(TARGET, ir.DataType.INT64, ir.Shape(dims[:1]))
    return ir.val(TARGET, prediction.dtype, prediction.shape)


def classes_of(name: str, prediction: ir.Value) -> int | None:
    """The number that class labels must stay below; None for losses over values, or where it is not known."""
    width = (dims_of(prediction) or [None])[-1]
    return width if name in CLASS_LABELS and isinstance(width, int) else None


@loss("cross_entropy")
def cross_entropy(op: Builder, prediction: ir.Value, target: ir.Value) -> Loss:
    """-mean log softmax(z)[target]; dz = (softmax(z) - onehot(target)) / N.

    The logits z are the prediction, or what a final Softmax or LogSoftmax was computed from: the
    normalisation is applied exactly once. ``target`` is int64 [N].
    """
    logits = _flat(op, _before(prediction, {"Softmax", "LogSoftmax"}))
    classes = (dims_of(logits) or [None])[-1]
    depth = op.constant([classes]) if isinstance(classes, int) else op.Shape(logits, start=1)
    log_p = op.LogSoftmax(logits, axis=1)
    chosen = op.OneHot(target, depth, op.constant([0.0, 1.0], logits.dtype), axis=-1)
    share = _reciprocal_size(op, target, logits)
    value = op.Mul(op.ReduceSum(op.Mul(log_p, chosen), keepdims=0), op.Neg(share))
    return Loss(value, logits, op.Mul(op.Sub(op.Exp(log_p), chosen), share), logits)


@loss("mse")
def mse(op: Builder, prediction: ir.Value, target: ir.Value) -> Loss:
    """mean (y - t)^2; dy = 2 (y - t) / n over all n elements."""
    difference = op.Sub(prediction, target)
    value = op.ReduceMean(op.Mul(difference, difference), keepdims=0)
    share = _reciprocal_size(op, prediction, prediction)
    return Loss(value, prediction, op.Mul(difference, op.Mul(share, 2.0)), prediction)


@loss("bce_with_logits")
def bce_with_logits(op: Builder, prediction: ir.Value, target: ir.Value) -> Loss:
    """mean softplus(z) - z t; dz = (sigmoid(z) - t) / n over all n elements.

    The logits z are the prediction, or what a final Sigmoid was computed from. softplus is written as
    max(z, 0) + log(1 + exp(-|z|)), which does not overflow.
    """
    logits = _before(prediction, {"Sigmoid"})
    softplus = op.Add(op.Relu(logits), op.Log(op.Add(op.Exp(op.Neg(op.Abs(logits))), 1.0)))
    value = op.ReduceMean(op.Sub(softplus, op.Mul(logits, target)), keepdims=0)
    share = _reciprocal_size(op, logits, logits)
    return Loss(value, logits, op.Mul(op.Sub(op.Sigmoid(logits), target), share), logits)


def correct(op: Builder, scores: ir.Value, target: ir.Value) -> ir.Value:
    """How many predictions of the batch are right, a float scalar: argmax of [N, C] against int64 [N]."""
    hit = op.Equal(op.ArgMax(scores, axis=1, keepdims=0), target)
    return op.ReduceSum(op.Cast(hit, to=ir.DataType.FLOAT.value), keepdims=0)


def _before(prediction: ir.Value, operators: set[str]) -> ir.Value:
    """What ``prediction`` was computed from, if by one of ``operators`` (looking through Identity)."""
    node = prediction.producer()
    while node is not None and node.op_type in ("Identity", *operators):
        source = node.inputs[0]
        assert source is not None
        if node.op_type in operators:
            rank = len(dims_of(source) or [])
            axis = attribute(node, "axis", -1)
            whole_row = "axis" not in node.attributes or (rank and axis % rank == 1) or axis in (1, -1)
            return source if node.op_type == "Sigmoid" or whole_row else prediction
        prediction, node = source, source.producer()
    return prediction


def _flat(op: Builder, logits: ir.Value) -> ir.Value:
    """Logits as [N, C]; trailing axes of size 1 (a global pooling's) are dropped.

    Raises:
        ModelError: The output has another shape.
    """
    dims = dims_of(logits)
    if dims is not None and len(dims) == 2:
        return logits
    if dims is not None and len(dims) > 2 and all(d == 1 for d in dims[2:]):
        flat = op.Flatten(logits, axis=1)
        flat.shape = ir.Shape(dims[:2])
        return flat
    raise ModelError(f"cross_entropy needs an output of shape [N, classes]; {logits.name!r} has {dims}")


def _reciprocal_size(op: Builder, counted: ir.Value, like: ir.Value) -> ir.Value:
    """One over the number of elements of ``counted``, in the type of ``like``."""
    assert like.dtype is not None
    return op.Reciprocal(op.Cast(op.Size(counted), to=like.dtype.value))
