"""Normalisation, and the scales and biases that go with it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, axis_of, count, dims, layer_type
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


@layer_type("BatchNorm")
def batch_norm(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """(x - mean) / sqrt(var + eps); the stored sums are divided by the stored factor (0 leaves zeros)."""
    p, x = layer.proto.batch_norm_param, bottoms[0]
    if p.HasField("use_global_stats") and not p.use_global_stats:
        raise ConversionError(f"{layer}: use_global_stats: false in inference is not supported")
    channels = count(layer, dims(x)[1:2])
    factor = float(layer.blob(2, 1)[0])
    scale = 1 / factor if factor else 0.0
    one = net.op.constant(np.ones(channels, np.float32))
    zero = net.op.constant(np.zeros(channels, np.float32))
    mean = net.parameter(layer, "running_mean", layer.blob(0, channels) * np.float32(scale), train=False)
    var = net.parameter(layer, "running_var", layer.blob(1, channels) * np.float32(scale), train=False)
    y = net.op.BatchNormalization(x, one, zero, mean, var, epsilon=p.eps, momentum=p.moving_average_fraction)
    return net.like(y, x, layer)


@layer_type("Scale")
def scale(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """X times a factor that spans ``num_axes`` axes from ``axis`` on, plus a bias of the same shape.

    With two bottoms the factor is the second one. A Scale right behind a BatchNorm becomes that node's scale
    and B.
    """
    p, x = layer.proto.scale_param, bottoms[0]
    if len(bottoms) == 2:
        axis = axis_of(layer, p.axis, x)
        factor = _widened(net, bottoms[1], dims(bottoms[1]), len(dims(x)) - axis)
        y = net.op.Mul(x, factor)
        if p.bias_term:
            sizes = _span(layer, x, p.axis, len(dims(bottoms[1])))
            y = net.op.Add(y, _spread(net, layer, "bias", len(layer.blobs) - 1, sizes, x, axis))
        return net.like(y, x, layer)
    axis = axis_of(layer, p.axis, x) if p.num_axes else len(dims(x))
    sizes = _span(layer, x, axis, p.num_axes)
    norm = x.producer()
    if (
        norm is not None
        and norm.op_type == "BatchNormalization"
        and axis == 1
        and len(sizes) == 1
        and not x.uses()
    ):
        gain = norm.inputs[1]
        if np.all(constant_of(gain) == 1) and (gain is None or gain.name not in net.parameters):
            norm.replace_input_with(1, net.parameter(layer, "weight", layer.blob(0, *sizes)))
            if p.bias_term:
                norm.replace_input_with(2, net.parameter(layer, "bias", layer.blob(1, *sizes)))
            return x
    y = net.op.Mul(x, _spread(net, layer, "weight", 0, sizes, x, axis))
    if p.bias_term:
        y = net.op.Add(y, _spread(net, layer, "bias", 1, sizes, x, axis))
    return net.like(y, x, layer)


@layer_type("Bias")
def bias(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """X plus a bias that spans ``num_axes`` axes from ``axis`` on, or the second bottom."""
    p, x = layer.proto.bias_param, bottoms[0]
    axis = axis_of(layer, p.axis, x) if p.num_axes else len(dims(x))
    if len(bottoms) == 2:
        added = _widened(net, bottoms[1], dims(bottoms[1]), len(dims(x)) - axis)
    else:
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
    return net.parameter(layer, role, layer.blob(index, *sizes).reshape(*sizes, *[1] * trailing))


def _widened(net: NetBuilder, value: ir.Value, sizes: list[Dim], rank: int) -> ir.Value:
    """A blob with axes of size 1 behind its own, up to ``rank``."""
    missing = rank - len(sizes)
    return net.op.Unsqueeze(value, list(range(len(sizes), rank))) if missing > 0 else value
