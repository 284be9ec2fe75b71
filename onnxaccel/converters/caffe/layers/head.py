"""Losses and Accuracy: what a network is trained with. They are written only where they are asked for.

Labels are float blobs in Caffe, and so they are here. ``total = sum loss_weight * top``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, axis_of, dims, enum_name, layer_type, need
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.converters.caffe.schema import parse_binary
from onnxaccel.converters.caffe.weights import array_of
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Dim

HEADS = frozenset(
    {
        "Accuracy",
        "ContrastiveLoss",
        "DetectionEvaluate",
        "EuclideanLoss",
        "HingeLoss",
        "InfogainLoss",
        "MultiBoxLoss",
        "MultinomialLogisticLoss",
        "SigmoidCrossEntropyLoss",
        "SmoothL1Loss",
        "SoftmaxWithLoss",
    }
)
"""Layers that compare with labels."""

_FLT_MIN = float(np.finfo(np.float32).tiny)
_LOG_THRESHOLD = 1e-20
_FLOAT = ir.DataType.FLOAT.value


def loss_weight(layer: Layer) -> float:
    """The weight of a layer's first top in the total loss: 1 for losses, else 0, unless stated."""
    given = layer.proto.loss_weight
    return float(given[0]) if given else float("Loss" in layer.type)


def describe(layer: Layer) -> dict[str, Any]:
    """A head for the model's metadata: its type, blobs, weight, and the settings that are stated."""
    settings: dict[str, Any] = {}
    for parameter, value in layer.proto.ListFields():
        if parameter.name.endswith("_param") and parameter.name != "transform_param":
            for setting, stated in value.ListFields():
                if setting.enum_type is not None:
                    settings[setting.name] = enum_name(value, setting.name)
                elif isinstance(stated, (bool, int, float, str)):
                    settings[setting.name] = stated
    return {
        "layer": layer.name,
        "type": layer.type,
        "bottoms": layer.bottoms,
        "tops": layer.tops,
        "loss_weight": loss_weight(layer),
        "settings": settings,
    }


@layer_type("SoftmaxWithLoss")
def softmax_with_loss(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """-sum log max(softmax(x)[label], FLT_MIN) / normalizer over the labels that are not ignored."""
    need(layer, bottoms, 2)
    x, axis = bottoms[0], axis_of(layer, layer.proto.softmax_param.axis, bottoms[0])
    log_p = net.op.Max(net.op.LogSoftmax(x, axis=axis), float(np.log(_FLT_MIN)))
    label, valid = _labels(net, layer, bottoms[1], x, axis)
    picked = net.op.GatherElements(log_p, label, axis=axis)
    total = _total(net, net.op.Neg(picked), valid)
    loss = net.op.Div(total, _normalizer(net, layer, picked, valid, axis, "VALID"))
    tops = [net.shaped(loss, [], layer)]
    if len(layer.tops) > 1:
        tops.append(net.like(net.op.Softmax(x, axis=axis), x, layer))
    return tops


@layer_type("InfogainLoss")
def infogain_loss(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """-sum_n sum_k H[label_n, k] log max(softmax(x)_nk, 1e-20) / normalizer; H is a bottom or a file."""
    need(layer, bottoms, 2, 3)
    x, axis = bottoms[0], axis_of(layer, layer.proto.infogain_loss_param.axis, bottoms[0])
    classes = dims(x)[axis]
    matrix = bottoms[2] if len(bottoms) == 3 else net.op.constant(_infogain_matrix(layer))
    p = net.op.Softmax(x, axis=axis)
    log_p = net.op.Log(net.op.Max(p, _LOG_THRESHOLD))
    label, valid = _labels(net, layer, bottoms[1], x, axis)
    matrix = net.op.Reshape(matrix, [-1, classes if isinstance(classes, int) else -1])
    rows = net.op.Gather(matrix, net.op.Squeeze(label, [axis]), axis=0)  # [..., classes]
    order = list(range(len(dims(x))))
    order.insert(axis, order.pop())
    weighted = net.op.Mul(net.op.Transpose(rows, perm=order), log_p)
    terms = net.op.Neg(net.op.ReduceSum(weighted, [axis], keepdims=1))
    loss = net.op.Div(_total(net, terms, valid), _normalizer(net, layer, terms, valid, axis, "VALID"))
    tops = [net.shaped(loss, [], layer)]
    if len(layer.tops) > 1:
        tops.append(net.like(net.op.Identity(p), x, layer))
    return tops


def _infogain_matrix(layer: Layer) -> np.ndarray[Any, Any]:
    source = layer.proto.infogain_loss_param.source
    if not source or not Path(source).is_file():
        raise ConversionError(f"{layer}: needs a third bottom, or the file of its source ({source!r})")
    return array_of(parse_binary(Path(source).read_bytes(), "BlobProto", source), source)


@layer_type("MultinomialLogisticLoss")
def multinomial_logistic_loss(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """-sum log max(x[label], 1e-20) / N, of probabilities."""
    need(layer, bottoms, 2)
    rows = net.op.Flatten(bottoms[0], axis=1)
    label = net.op.Cast(net.op.Reshape(bottoms[1], [-1, 1]), to=ir.DataType.INT64.value)
    picked = net.op.Max(net.op.GatherElements(rows, label, axis=1), _LOG_THRESHOLD)
    total = net.op.Neg(net.op.ReduceSum(net.op.Log(picked), keepdims=0))
    return net.shaped(net.op.Div(total, _batch(net, bottoms[0])), [], layer)


@layer_type("EuclideanLoss")
def euclidean_loss(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Sum (a - b)^2 / (2 N)."""
    need(layer, bottoms, 2)
    difference = net.op.Sub(bottoms[0], _alike(net, bottoms[1], bottoms[0]))
    total = net.op.ReduceSumSquare(difference, keepdims=0)
    return net.shaped(net.op.Div(total, net.op.Mul(_batch(net, bottoms[0]), 2.0)), [], layer)


@layer_type("SmoothL1Loss")
def smooth_l1_loss(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Sum f(w (a - b)) v / N; f(d) = (sigma d)^2 / 2 where |d| < 1 / sigma^2, else |d| - 1 / (2 sigma^2).

    w and v are the third and fourth bottom, or 1.
    """
    need(layer, bottoms, 2, 4)
    sigma2 = layer.proto.smooth_l1_loss_param.sigma**2
    d = net.op.Sub(bottoms[0], _alike(net, bottoms[1], bottoms[0]))
    if len(bottoms) > 2:
        d = net.op.Mul(d, bottoms[2])
    size = net.op.Abs(d)
    square = net.op.Mul(net.op.Mul(d, d), 0.5 * sigma2)
    error = net.op.Where(net.op.Less(size, 1 / sigma2), square, net.op.Sub(size, 0.5 / sigma2))
    if len(bottoms) > 3:
        error = net.op.Mul(error, bottoms[3])
    total = net.op.ReduceSum(error, keepdims=0)
    return net.shaped(net.op.Div(total, _batch(net, bottoms[0])), [], layer)


@layer_type("HingeLoss")
def hinge_loss(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Sum of max(0, 1 - x) for the label's class and max(0, 1 + x) for all others, or of squares, / N."""
    need(layer, bottoms, 2)
    rows = net.op.Flatten(bottoms[0], axis=1)
    label = net.op.Cast(net.op.Reshape(bottoms[1], [-1]), to=ir.DataType.INT64.value)
    sign = net.op.OneHot(
        label, net.op.Shape(rows, start=1, end=2), net.op.constant(np.array([1, -1], np.float32))
    )
    margin = net.op.Relu(net.op.Add(net.op.Mul(rows, sign), 1.0))
    square = enum_name(layer.proto.hinge_loss_param, "norm") == "L2"
    total = (net.op.ReduceSumSquare if square else net.op.ReduceSum)(margin, keepdims=0)
    return net.shaped(net.op.Div(total, _batch(net, bottoms[0])), [], layer)


@layer_type("ContrastiveLoss")
def contrastive_loss(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Sum (y d^2 + (1 - y) max(margin - d, 0)^2) / (2 N), d = |a - b|; legacy: max(margin - d^2, 0)."""
    need(layer, bottoms, 3)
    p = layer.proto.contrastive_loss_param
    difference = net.op.Flatten(net.op.Sub(bottoms[0], bottoms[1]), axis=1)
    square = net.op.ReduceSumSquare(difference, [1], keepdims=0)
    if p.legacy_version:
        apart = net.op.Relu(net.op.Sub(float(p.margin), square))
    else:
        margin = net.op.Relu(net.op.Sub(float(p.margin), net.op.Sqrt(square)))
        apart = net.op.Mul(margin, margin)
    similar = net.op.Cast(net.op.Cast(net.op.Reshape(bottoms[2], [-1]), to=6), to=ir.DataType.BOOL.value)
    total = net.op.ReduceSum(net.op.Where(similar, square, apart), keepdims=0)
    return net.shaped(net.op.Div(total, net.op.Mul(_batch(net, bottoms[0]), 2.0)), [], layer)


@layer_type("SigmoidCrossEntropyLoss")
def sigmoid_cross_entropy_loss(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Sum softplus(x) - x t over the targets that are not ignored, / normalizer (default: batch size).

    softplus is written as max(x, 0) + log(1 + exp(-|x|)), which does not overflow.
    """
    need(layer, bottoms, 2)
    x, target = bottoms[0], _alike(net, bottoms[1], bottoms[0])
    softplus = net.op.Add(net.op.Relu(x), net.op.Log(net.op.Add(net.op.Exp(net.op.Neg(net.op.Abs(x))), 1.0)))
    terms = net.op.Sub(softplus, net.op.Mul(x, target))
    valid = None
    if layer.proto.loss_param.HasField("ignore_label"):
        valid = net.op.Not(net.op.Equal(target, float(layer.proto.loss_param.ignore_label)))
    normalizer = _normalizer(net, layer, terms, valid, 0, "BATCH_SIZE", batch=x)
    return net.shaped(net.op.Div(_total(net, terms, valid), normalizer), [], layer)


@layer_type("Accuracy")
def accuracy(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """The share of labels whose score fewer than ``top_k`` other classes reach; ties count against.

    The second top is the same for each class.
    """
    need(layer, bottoms, 2)
    p, x = layer.proto.accuracy_param, bottoms[0]
    axis = axis_of(layer, p.axis, x)
    label, valid = _labels(net, layer, bottoms[1], x, axis, p)
    own = net.op.GatherElements(x, label, axis=axis)
    reached = net.op.Cast(net.op.GreaterOrEqual(x, own), to=_FLOAT)  # the class itself among them
    better = net.op.ReduceSum(reached, [axis], keepdims=1)
    hit = net.op.Cast(net.op.LessOrEqual(better, float(p.top_k)), to=_FLOAT)
    ones = net.op.Cast(valid, to=_FLOAT) if valid is not None else net.op.Add(net.op.Mul(hit, 0.0), 1.0)
    hit = net.op.Mul(hit, ones)
    number = net.op.Max(net.op.ReduceSum(ones, keepdims=0), 1.0)
    tops = [net.shaped(net.op.Div(net.op.ReduceSum(hit, keepdims=0), number), [], layer)]
    if len(layer.tops) > 1:
        classes = dims(x)[axis]
        of_class = net.op.OneHot(
            net.op.Reshape(label, [-1]),
            net.op.Shape(x, start=axis, end=axis + 1),
            net.op.constant(np.array([0, 1], np.float32)),
        )
        right = net.op.ReduceSum(net.op.Mul(of_class, net.op.Reshape(hit, [-1, 1])), [0], keepdims=0)
        total = net.op.ReduceSum(net.op.Mul(of_class, net.op.Reshape(ones, [-1, 1])), [0], keepdims=0)
        tops.append(net.shaped(net.op.Div(right, net.op.Max(total, 1.0)), [classes], layer))
    return tops


@layer_type("MultiBoxLoss", "DetectionEvaluate")
def detector_head(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Not converted: detectors are converted for inference only."""
    raise ConversionError(f"{layer}: is not converted; detectors are converted without their training head")


def _labels(
    net: NetBuilder, layer: Layer, label: ir.Value, x: ir.Value, axis: int, settings: Any = None
) -> tuple[ir.Value, ir.Value | None]:
    """Labels as int64 shaped like ``x`` with size 1 along ``axis``, and which are not ignored (None: all)."""
    settings = layer.proto.loss_param if settings is None else settings
    shape: list[Dim] = [1 if i == axis else size for i, size in enumerate(dims(x))]
    index = net.op.Cast(_reshaped(net, layer, label, shape), to=ir.DataType.INT64.value)
    if not settings.HasField("ignore_label"):
        return index, None
    valid = net.op.Not(net.op.Equal(index, settings.ignore_label))
    return net.op.Where(valid, index, 0), valid


def _reshaped(net: NetBuilder, layer: Layer, value: ir.Value, shape: list[Dim]) -> ir.Value:
    if sum(not isinstance(size, int) for size in shape) > 1:
        if len(dims(value)) == len(shape):
            return value
        raise ConversionError(f"{layer}: its label needs fixed sizes; give the input's --shape")
    return net.op.Reshape(value, [size if isinstance(size, int) else -1 for size in shape])


def _alike(net: NetBuilder, value: ir.Value, like: ir.Value) -> ir.Value:
    """``value`` in the shape of ``like``, which has as many elements."""
    return value if len(dims(value)) == len(dims(like)) else net.op.reshape_like(value, like)


def _total(net: NetBuilder, terms: ir.Value, valid: ir.Value | None) -> ir.Value:
    if valid is not None:
        terms = net.op.Where(valid, terms, 0.0)
    return net.op.ReduceSum(terms, keepdims=0)


def _batch(net: NetBuilder, x: ir.Value) -> ir.Value:
    """The size of the first axis, a float scalar."""
    return net.op.Cast(net.op.Squeeze(net.op.Shape(x, start=0, end=1), [0]), to=_FLOAT)


def _normalizer(
    net: NetBuilder,
    layer: Layer,
    terms: ir.Value,
    valid: ir.Value | None,
    axis: int,
    default: str,
    batch: ir.Value | None = None,
) -> ir.Value:
    """What the sum of terms is divided by, at least 1.

    FULL: their number; VALID: those not ignored; BATCH_SIZE: the sizes before ``axis`` (of ``batch``: its
    first size); NONE: 1.
    """
    p = layer.proto.loss_param
    mode = enum_name(p, "normalization") if p.HasField("normalization") else default
    if not p.HasField("normalization") and p.HasField("normalize"):
        mode = "VALID" if p.normalize else "BATCH_SIZE"
    if mode == "NONE":
        return net.op.constant(1.0)
    if mode == "VALID" and valid is not None:
        number = net.op.ReduceSum(net.op.Cast(valid, to=_FLOAT), keepdims=0)
    elif mode == "BATCH_SIZE" and batch is not None:
        number = _batch(net, batch)
    elif mode == "BATCH_SIZE":
        outer = net.op.Shape(terms, start=0, end=axis)
        number = net.op.Cast(net.op.ReduceProd(outer, keepdims=0), to=_FLOAT)
    else:
        number = net.op.Cast(net.op.Size(terms), to=_FLOAT)
    return net.op.Max(number, 1.0)
