"""Pooling, its inverses, and pooling of regions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, count, dims, enum_name, layer_type, need, pair
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Dim

_FLOAT = ir.DataType.FLOAT.value


@layer_type("Pooling")
def pooling(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """Size = ceil((n + 2 pad - kernel) / stride) + 1.

    It is 1 less where the last window would start in the padding. MAX is over the part of the window
    in the image, AVE divides by its part in the padded image. A network may ask for sizes rounded down
    (round_mode, or ceil_mode in forks). A second top is the place of each maximum, h W + w.
    """
    need(layer, bottoms, 1)
    p, (x,) = layer.proto.pooling_param, bottoms
    method = enum_name(p, "pool")
    if method == "STOCHASTIC":
        raise ConversionError(f"{layer}: stochastic pooling has no inference form in Caffe either")
    sizes = dims(x)[2:]
    if len(sizes) != 2:
        raise ConversionError(f"{layer}: pools blobs with 4 axes, its bottom has {len(sizes) + 2}")
    if p.global_pooling and len(layer.tops) == 1:
        pool = net.op.GlobalMaxPool if method == "MAX" else net.op.GlobalAveragePool
        return [net.shaped(pool(x), [*dims(x)[:2], 1, 1], layer)]
    if p.global_pooling:
        kernel = [count(layer, [size]) for size in sizes]
    else:
        kernel = pair(p.kernel_size, p.kernel_h, p.kernel_w, p.HasField("kernel_h"), 0)
    stride = pair(p.stride, p.stride_h, p.stride_w, p.HasField("stride_h"), 1)
    pad = pair(p.pad, p.pad_h, p.pad_w, p.HasField("pad_h") or p.HasField("pad_w"), 0)
    if not all(kernel) or not all(stride) or any(q >= k for q, k in zip(pad, kernel, strict=True)):
        raise ConversionError(f"{layer}: kernel {kernel}, stride {stride} and pad {pad} do not fit together")
    up = p.ceil_mode if p.HasField("ceil_mode") else p.round_mode == 0
    return pool2d(net, layer, x, method, kernel, stride, pad, up)


def pool2d(
    net: NetBuilder,
    layer: Layer,
    x: ir.Value,
    method: str,
    kernel: list[int],
    stride: list[int],
    pad: list[int],
    up: bool = True,
) -> list[ir.Value]:
    """Caffe's pooling; with two tops the second is the place of each maximum."""
    sizes = dims(x)[2:]
    fixed = [n for n in sizes if isinstance(n, int)]
    pooled: list[Dim] = [None, None]
    over, ceil = [0, 0], int(up)  # of dynamic sizes: ONNX's ceil_mode has the same rule for the last window
    if len(fixed) == 2:
        whole = [
            _pooled(n, k, q, s, up, any(pad)) for n, k, q, s in zip(fixed, kernel, pad, stride, strict=True)
        ]
        if min(whole) < 1:
            raise ConversionError(f"{layer}: kernel {kernel} is larger than its bottom, {fixed}")
        if any((m - 1) * s - q >= n for m, s, q, n in zip(whole, stride, pad, fixed, strict=True)):
            raise ConversionError(
                f"{layer}: with stride {stride} over kernel {kernel} Caffe's own result is undefined"
            )
        reach = [(m - 1) * s + k - 2 * q for m, k, q, s in zip(whole, kernel, pad, stride, strict=True)]
        pooled, over, ceil = [*whole], [max(r - n, 0) for r, n in zip(reach, fixed, strict=True)], 0
    settings: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "ceil_mode": ceil}
    shape = [*dims(x)[:2], *pooled]
    if method == "MAX":
        pads = [*pad, *(q + o for q, o in zip(pad, over, strict=True))]
        if len(layer.tops) == 1 or layer.type != "Pooling":
            return [net.shaped(net.op.MaxPool(x, pads=pads, **settings), shape, layer)]
        y, indices = net.op.node("MaxPool", [x], outputs=2, pads=pads, **settings)
        indices.type = ir.TensorType(ir.DataType.INT64)
        indices.shape = ir.Shape(shape)
        plane = net.op.ReduceProd(net.op.Shape(x, start=2), keepdims=0)
        mask = net.op.Cast(net.op.Mod(indices, plane), to=_FLOAT)
        return [net.shaped(y, shape, layer), net.shaped(mask, shape, layer)]
    if len(fixed) < 2:  # the sizes are not known, so neither is the overhang
        settings["count_include_pad"] = 1
        return [net.shaped(net.op.AveragePool(x, pads=[*pad, *pad], **settings), shape, layer)]
    if any(pad):  # the padding counts, what the last window has beyond it does not
        x = net.op.Pad(x, [0, 0, *pad, 0, 0, *pad])
    y = net.op.AveragePool(x, pads=[0, 0, *over], count_include_pad=0, **settings)
    return [net.shaped(y, shape, layer)]


def _pooled(n: int, kernel: int, pad: int, stride: int, up: bool, padded: bool) -> int:
    room = n + 2 * pad - kernel
    size = (-(-room // stride) if up else room // stride) + 1
    return size - 1 if padded and (size - 1) * stride >= n + pad else size


@layer_type("SPP")
def spatial_pyramid_pooling(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Level i pools into 2^i x 2^i bins: kernel = stride = ceil(n / bins), pad = (kernel bins - n + 1) / 2.

    The levels are flattened and stand side by side; a pyramid of one level is that pooling itself.
    """
    need(layer, bottoms, 1)
    p, (x,) = layer.proto.spp_param, bottoms
    sizes = [count(layer, [size]) for size in dims(x)[2:]]
    height = p.pyramid_height
    if not 1 <= height <= 16 or len(sizes) != 2 or 2 ** (height - 1) > min(sizes):
        raise ConversionError(f"{layer}: a pyramid of height {height} does not fit {sizes}")
    method = enum_name(p, "pool")
    if method == "STOCHASTIC":
        raise ConversionError(f"{layer}: stochastic pooling has no inference form in Caffe either")
    levels = []
    for level in range(height):
        bins = 2**level
        kernel = [math.ceil(n / bins) for n in sizes]
        pad = [(k * bins - n + 1) // 2 for k, n in zip(kernel, sizes, strict=True)]
        (y,) = pool2d(net, layer, x, method, kernel, kernel, pad)
        levels.append(y)
    if height == 1:
        return levels[0]
    widths = [count(layer, dims(y)[1:]) for y in levels]
    joined = net.op.Concat(*(net.op.Flatten(y, axis=1) for y in levels), axis=1)
    return net.shaped(joined, [dims(x)[0], sum(widths)], layer)


@layer_type("MaxUnPool")
def max_unpool(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Each value at its place in a plane of zeros of dst_h x dst_w."""
    need(layer, bottoms, 2)
    p = layer.proto.max_unpool_param
    return unpool(net, layer, bottoms[0], bottoms[1], p.dst_h, p.dst_w)


def unpool(net: NetBuilder, layer: Layer, x: ir.Value, mask: ir.Value, height: int, width: int) -> ir.Value:
    """Each value of ``x`` at the place that ``mask`` says, h W + w, in a plane of zeros."""
    shape = [*dims(x)[:2], height, width]
    planes = net.op.Concat(net.op.Shape(x, start=0, end=2), net.op.constant([height * width]), axis=0)
    zeros = net.op.ConstantOfShape(planes, value=ir.tensor(np.zeros(1, np.float32)))
    zeros.type = ir.TensorType(ir.DataType.FLOAT)
    places = net.op.Reshape(net.op.Cast(mask, to=ir.DataType.INT64.value), [0, 0, -1])
    y = net.op.ScatterElements(zeros, places, net.op.Reshape(x, [0, 0, -1]), axis=2)
    return net.shaped(net.op.Reshape(y, [0, 0, height, width]), shape, layer)


@layer_type("ROIPooling")
def roi_pooling(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The maximum in each bin of each region; a region is (image, x1, y1, x2, y2), times spatial_scale.

    Fast R-CNN's formula: corners rounded, a region has at least one pixel, bins of fractional size reach
    from floor to ceil.
    """
    need(layer, bottoms, 2)
    p, (x, rois) = layer.proto.roi_pooling_param, bottoms
    if not p.pooled_h or not p.pooled_w:
        raise ConversionError(f"{layer}: needs pooled_h and pooled_w")
    rows = net.op.Reshape(rois, [-1, 5])
    y = net.op.MaxRoiPool(x, rows, pooled_shape=[p.pooled_h, p.pooled_w], spatial_scale=p.spatial_scale)
    return net.shaped(y, [dims(rois)[0], dims(x)[1], p.pooled_h, p.pooled_w], layer)
