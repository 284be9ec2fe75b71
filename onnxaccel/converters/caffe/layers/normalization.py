"""Normalisation, and the scales and biases that go with it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, axis_of, count, dims, layer_type, need
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Dim, constant_of


@layer_type("LRN")
def lrn(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Across channels: x (k + alpha / size sum x^2)^-beta over ``size`` channels.

    Within a channel: x (1 + alpha avg x^2)^-beta over a size x size window, in which the padding counts as
    zeros; k is not used.
    """
    p, x = layer.proto.lrn_param, bottoms[0]
    if p.local_size % 2 == 0:
        raise ConversionError(f"{layer}: local_size must be odd, it is {p.local_size}")
    if p.norm_region == 0:
        y = net.op.LRN(x, size=p.local_size, alpha=p.alpha, beta=p.beta, bias=p.k)
        return net.like(y, x, layer)
    margin = (p.local_size - 1) // 2
    mean = net.op.AveragePool(
        net.op.Mul(x, x),
        kernel_shape=[p.local_size] * 2,
        pads=[margin] * 4,
        strides=[1, 1],
        count_include_pad=1,
    )
    scale = net.op.Pow(net.op.Add(net.op.Mul(mean, float(p.alpha)), 1.0), float(p.beta))
    return net.like(net.op.Div(x, scale), x, layer)


@layer_type("MVN")
def mean_variance(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """(x - mean) / (sqrt(var) + eps), per channel or over all; without normalize_variance x - mean."""
    p, x = layer.proto.mvn_param, bottoms[0]
    axes = list(range(1 if p.across_channels else 2, len(dims(x))))
    centred = net.op.Sub(x, net.op.ReduceMean(x, axes, keepdims=1)) if axes else net.op.Sub(x, x)
    if not p.normalize_variance:
        return net.like(centred, x, layer)
    square = net.op.Mul(centred, centred)
    variance = net.op.ReduceMean(square, axes, keepdims=1) if axes else square
    return net.like(net.op.Div(centred, net.op.Add(net.op.Sqrt(variance), float(p.eps))), x, layer)


@layer_type("Normalize")
def normalize(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """X scale / sqrt(sum x^2 + eps), the sum over channels, or over all of an image (across_spatial)."""
    p, x = layer.proto.norm_param, bottoms[0]
    rank = len(dims(x))
    axes = list(range(1, rank)) if p.across_spatial else [1]
    norm = net.op.Sqrt(net.op.Add(net.op.ReduceSumSquare(x, axes, keepdims=1), float(p.eps)))
    channels = 1 if p.channel_shared else count(layer, dims(x)[1:2])
    gain = net.parameter(layer, "weight", 0, channels, view=[channels, *[1] * (rank - 2)])
    return net.like(net.op.Mul(net.op.Div(x, norm), gain), x, layer)


@layer_type("BatchNorm")
def batch_norm(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """(x - mean) / sqrt(var + eps); the stored sums are divided by the stored factor (0 leaves zeros).

    With ``use_global_stats: false`` the statistics are the batch's own, also in inference.
    """
    p, x = layer.proto.batch_norm_param, bottoms[0]
    if p.HasField("use_global_stats") and not p.use_global_stats:
        axes = [axis for axis in range(len(dims(x))) if axis != 1]
        centred = net.op.Sub(x, net.op.ReduceMean(x, axes, keepdims=1))
        variance = net.op.ReduceMean(net.op.Mul(centred, centred), axes, keepdims=1)
        return net.like(net.op.Div(centred, net.op.Sqrt(net.op.Add(variance, float(p.eps)))), x, layer)
    channels = count(layer, dims(x)[1:2])
    factor = float(layer.blob(2, 1).item())
    scale = 1 / factor if factor else 0.0
    one = net.op.constant(np.ones(channels, np.float32))
    zero = net.op.constant(np.zeros(channels, np.float32))
    mean = net.parameter(layer, "running_mean", 0, channels, train=False, scale=scale)
    var = net.parameter(layer, "running_var", 1, channels, train=False, scale=scale)
    y = net.op.BatchNormalization(x, one, zero, mean, var, epsilon=p.eps, momentum=p.moving_average_fraction)
    net.factors[layer.name] = factor
    if p.use_global_stats:
        net.frozen.append(layer.name)
    return net.like(y, x, layer)


@layer_type("BN")
def bn(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The forks' normalisation with its own scale and shift.

    PSPNet's holds four blobs: (x - mean) / sqrt(var + eps) scale + shift. SegNet's, made for inference, holds
    two: scale x + shift.
    """
    p, x = layer.proto.bn_param, bottoms[0]
    channels = count(layer, dims(x)[1:2])
    layer.blobs = [b.reshape(-1) if b.size == channels else b for b in layer.blobs]
    if len(layer.blobs) > 2:
        blobs = [
            net.parameter(layer, role, index, channels, train=index < 2)
            for index, role in enumerate(("weight", "bias", "running_mean", "running_var"))
        ]
        if p.frozen:
            net.frozen.append(layer.name)
        y = net.op.BatchNormalization(x, *blobs, epsilon=p.eps, momentum=p.momentum)
        return net.like(y, x, layer)
    view = [channels, *[1] * (len(dims(x)) - 2)]
    gain = net.parameter(layer, "weight", 0, channels, view=view)
    shift = net.parameter(layer, "bias", 1, channels, view=view)
    return net.like(net.op.Add(net.op.Mul(x, gain), shift), x, layer)


@layer_type("Scale")
def scale(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """X times a factor that spans ``num_axes`` axes from ``axis`` on, plus a bias of the same shape.

    With two bottoms the factor is the second one. A Scale right behind a BatchNorm becomes that node's scale
    and B.
    """
    need(layer, bottoms, 1, 2)
    p, x = layer.proto.scale_param, bottoms[0]
    if len(bottoms) == 2:
        axis = axis_of(layer, p.axis, x)
        y = net.op.Mul(x, _widened(net, bottoms[1], dims(bottoms[1]), len(dims(x)) - axis))
        if p.bias_term:
            sizes = _span(layer, x, axis, len(dims(bottoms[1])))
            y = net.op.Add(y, _spread(net, layer, "bias", 0, sizes, x, axis))
        return net.like(y, x, layer)
    axis = axis_of(layer, p.axis, x) if p.num_axes else len(dims(x))
    sizes = _span(layer, x, axis, p.num_axes)
    norm = x.producer()
    if norm is not None and net.sole and axis == 1 and len(sizes) == 1 and _plain_norm(norm):
        norm.replace_input_with(1, net.parameter(layer, "weight", 0, *sizes))
        if p.bias_term:
            norm.replace_input_with(2, net.parameter(layer, "bias", 1, *sizes))
        return x
    y = net.op.Mul(x, _spread(net, layer, "weight", 0, sizes, x, axis))
    if p.bias_term:
        y = net.op.Add(y, _spread(net, layer, "bias", 1, sizes, x, axis))
    return net.like(y, x, layer)


def _plain_norm(node: ir.Node) -> bool:
    """Whether a node is a BatchNormalization without a scale of its own yet."""
    if node.op_type != "BatchNormalization":
        return False
    gain = node.inputs[1]
    return (
        gain is not None and (gain.name or "").startswith("const/") and bool(np.all(constant_of(gain) == 1))
    )


@layer_type("Bias")
def bias(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """X plus a bias that spans ``num_axes`` axes from ``axis`` on, or the second bottom."""
    need(layer, bottoms, 1, 2)
    p, x = layer.proto.bias_param, bottoms[0]
    if len(bottoms) == 2:
        axis = axis_of(layer, p.axis, x)
        added = _widened(net, bottoms[1], dims(bottoms[1]), len(dims(x)) - axis)
    else:
        axis = axis_of(layer, p.axis, x) if p.num_axes else len(dims(x))
        added = _spread(net, layer, "bias", 0, _span(layer, x, axis, p.num_axes), x, axis)
    return net.like(net.op.Add(x, added), x, layer)


def _span(layer: Layer, x: ir.Value, axis: int, num_axes: int) -> list[int]:
    """The fixed sizes of ``num_axes`` axes of x from ``axis`` on; -1 axes are all that are left."""
    sizes = dims(x)[axis:] if num_axes == -1 else dims(x)[axis : axis + num_axes]
    count(layer, sizes)
    return [size for size in sizes if isinstance(size, int)]


def _spread(
    net: NetBuilder, layer: Layer, role: str, index: int, sizes: list[int], x: ir.Value, axis: int
) -> ir.Value:
    """A weight blob with 1s behind its sizes, to broadcast against x from ``axis`` on."""
    trailing = len(dims(x)) - axis - len(sizes)
    return net.parameter(layer, role, index, *sizes, view=[*sizes, *[1] * trailing])


def _widened(net: NetBuilder, value: ir.Value, sizes: list[Dim], rank: int) -> ir.Value:
    """A blob with axes of size 1 behind its own, up to ``rank``."""
    missing = rank - len(sizes)
    return net.op.Unsqueeze(value, list(range(len(sizes), rank))) if missing > 0 else value
