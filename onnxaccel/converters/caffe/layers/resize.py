"""Layers that change the size of an image."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, count, dims, layer_type, need
from onnxaccel.converters.caffe.layers.pooling import unpool
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Dim


@layer_type("Upsample")
def upsample(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """One bottom: each element ``scale`` times along the last two axes (the last one: dims_num 3).

    Two bottoms, SegNet's and ENet's: each value at the place where the pooling of the second bottom, its
    mask, found it, in a plane ``scale`` times as large.
    """
    need(layer, bottoms, 1, 2)
    p, x = layer.proto.upsample_param, bottoms[0]
    if len(bottoms) == 2:
        scale = p.scale if p.HasField("scale") else 2
        scales = [p.scale_h, p.scale_w] if p.HasField("scale_h") else [scale, scale]
        given = [p.upsample_h, p.upsample_w]
        less = [p.pad_out_h, p.pad_out_w]
        height, width = (
            g or count(layer, [n]) * s - int(odd)
            for g, n, s, odd in zip(given, dims(x)[2:], scales, less, strict=True)
        )
        return unpool(net, layer, x, bottoms[1], height, width)
    scale = p.scale if p.HasField("scale") else 1
    if scale < 1 or p.dims_num not in (3, 4) or len(dims(x)) < 3:
        raise ConversionError(f"{layer}: scale {scale} and dims_num {p.dims_num} do not fit")
    axes = len(dims(x)) - (1 if p.dims_num == 3 else 2)
    factors = [1.0] * axes + [float(scale)] * (len(dims(x)) - axes)
    y = net.op.Resize(
        x,
        None,
        np.array(factors, np.float32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    sizes: list[Dim] = [n * scale if isinstance(n, int) else None for n in dims(x)[axes:]]
    return net.shaped(y, [*dims(x)[:axes], *sizes], layer)


@layer_type("Interp")
def interp(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Bilinear with aligned corners: source = target (in - 1) / (out - 1).

    The input is first padded, or cropped where pad_beg and pad_end are negative. The size is (n - 1) / shrink
    + 1 with shrink_factor, n + (n - 1) (zoom - 1) with zoom_factor (of the shrunk size where both are given),
    height and width, or that of a second bottom.
    """
    need(layer, bottoms, 1, 2)
    p, x = layer.proto.interp_param, bottoms[0]
    if p.pad_beg > 0 or p.pad_end > 0:
        raise ConversionError(f"{layer}: pad_beg {p.pad_beg} and pad_end {p.pad_end} can only be 0 or less")
    if p.pad_beg or p.pad_end:
        x = net.op.Pad(x, [0, 0, p.pad_beg, p.pad_beg, 0, 0, p.pad_end, p.pad_end])
    lead = dims(bottoms[0])[:2]
    if len(bottoms) == 2 and not all(isinstance(n, int) for n in dims(bottoms[1])[2:]):
        size = net.op.Concat(net.op.Shape(x, start=0, end=2), net.op.Shape(bottoms[1], start=2), axis=0)
        return net.shaped(_bilinear(net, x, size, "align_corners"), [*lead, None, None], layer)
    if len(bottoms) == 2:
        sizes = [count(layer, [n]) for n in dims(bottoms[1])[2:]]
    elif p.height and p.width:
        sizes = [p.height, p.width]
    elif p.HasField("zoom_factor") or p.HasField("shrink_factor"):
        if p.zoom_factor < 1 or p.shrink_factor < 1:
            raise ConversionError(f"{layer}: zoom_factor and shrink_factor must be at least 1")
        whole = [count(layer, [n]) + p.pad_beg + p.pad_end for n in dims(bottoms[0])[2:]]
        shrunk = [(n - 1) // p.shrink_factor + 1 for n in whole]
        sizes = [n + (n - 1) * (p.zoom_factor - 1) for n in shrunk]
    else:
        raise ConversionError(f"{layer}: needs height and width, zoom_factor or shrink_factor")
    return _resized(net, layer, x, sizes, "align_corners")


@layer_type("BilinearInterpolate")
def bilinear_interpolate(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Bilinear, with corners aligned or by pixel centres; to dst_h x dst_w or by scale_factor."""
    need(layer, bottoms, 1)
    p, x = layer.proto.bilinear_interpolate_param, bottoms[0]
    if p.HasField("scale_factor"):
        sizes = [int(count(layer, [n]) * p.scale_factor) for n in dims(x)[2:]]
    else:
        height, width = dims(x)[2:]
        sizes = [p.dst_h or count(layer, [height]), p.dst_w or count(layer, [width])]
    return _resized(net, layer, x, sizes, "align_corners" if p.align_corners else "half_pixel")


@layer_type("Resize")
def resize(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Bilinear with source = target in / out; what lies behind the last row and column counts as 0."""
    need(layer, bottoms, 1)
    p, x = layer.proto.resize_param, bottoms[0]
    whole = [count(layer, [n]) for n in dims(x)[2:]]
    if p.is_pyramid_test:
        scales = (p.out_height_scale, p.out_width_scale)
        sizes = [int(s * n) for s, n in zip(scales, whole, strict=True)]
    else:
        sizes = [p.height, p.width]
    if not all(sizes):
        raise ConversionError(f"{layer}: needs height and width")
    padded = net.op.Pad(x, [0, 0, 0, 0, 0, 0, 1, 1])
    # source = target in / out over one row and column more: the scale is of the unpadded size
    scale = [1.0, 1.0, *(o / n for o, n in zip(sizes, whole, strict=True))]
    y = net.op.Resize(
        padded, None, np.array(scale, np.float32), mode="linear", coordinate_transformation_mode="asymmetric"
    )
    y = net.op.Slice(y, [0, 0], sizes, [2, 3])
    return net.shaped(y, [*dims(x)[:2], *sizes], layer)


def _resized(net: NetBuilder, layer: Layer, x: ir.Value, sizes: list[int], transformation: str) -> ir.Value:
    target = net.op.Concat(net.op.Shape(x, start=0, end=2), net.op.constant(sizes), axis=0)
    return net.shaped(_bilinear(net, x, target, transformation), [*dims(x)[:2], *sizes], layer)


def _bilinear(net: NetBuilder, x: ir.Value, size: ir.Value, transformation: str) -> ir.Value:
    return net.op.Resize(x, None, None, size, mode="linear", coordinate_transformation_mode=transformation)
