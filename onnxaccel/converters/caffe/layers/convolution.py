"""Convolution, inner product and embedding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, axis_of, count, dims, layer_type, need, pair
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Dim


def _spatial(layer: Layer, bottom: ir.Value) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, stride, pad and dilation of a layer with windows, one entry per spatial axis."""
    p = layer.proto.convolution_param
    rank = len(dims(bottom)) - 2
    kernel = pair(p.kernel_size, p.kernel_h, p.kernel_w, p.HasField("kernel_h"), 0, rank)
    stride = pair(p.stride, p.stride_h, p.stride_w, p.HasField("stride_h"), 1, rank)
    pad = pair(p.pad, p.pad_h, p.pad_w, p.HasField("pad_h") or p.HasField("pad_w"), 0, rank)
    dilation = pair(p.dilation, 0, 0, False, 1, rank)
    if (
        rank < 1
        or not all(kernel)
        or not all(stride)
        or {len(kernel), len(stride), len(pad), len(dilation)} != {rank}
    ):
        raise ConversionError(
            f"{layer}: kernel_size, stride, pad or dilation do not fit a blob with {rank + 2} axes"
        )
    if p.axis != 1 and p.axis != -1 - rank:
        raise ConversionError(f"{layer}: axis {p.axis} is not supported; channels must be axis 1")
    return kernel, stride, pad, dilation


def _windows(
    layer: Layer, x: ir.Value, kernel: list[int], stride: list[int], pad: list[int], dilation: list[int]
) -> list[Dim]:
    """floor((n + 2 pad - (dilation (kernel - 1) + 1)) / stride) + 1 per spatial axis."""
    sizes: list[Dim] = [
        (n + 2 * q - d * (k - 1) - 1) // s + 1 if isinstance(n, int) else None
        for n, q, d, k, s in zip(dims(x)[2:], pad, dilation, kernel, stride, strict=True)
    ]
    if any(isinstance(size, int) and size < 1 for size in sizes):
        raise ConversionError(f"{layer}: kernel {kernel} is larger than its bottom, {dims(x)[2:]}")
    return sizes


@layer_type("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise")
def convolution(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """Y = W * x + b; size = floor((n + 2 pad - (dilation (kernel - 1) + 1)) / stride) + 1.

    Several bottoms, each with its top, share the weights. Forks' depthwise layers have a group per channel.
    """
    p = layer.proto.convolution_param
    tops = []
    weight = bias = None
    for x in bottoms:
        kernel, stride, pad, dilation = _spatial(layer, x)
        channels = count(layer, dims(x)[1:2])
        group = p.group if layer.type == "Convolution" else channels
        _check_groups(layer, channels, group)
        if weight is None:
            weight = net.parameter(layer, "weight", 0, p.num_output, channels // group, *kernel)
            bias = net.parameter(layer, "bias", 1, p.num_output) if p.bias_term else None
        y = net.op.Conv(x, weight, bias, strides=stride, pads=pad * 2, dilations=dilation, group=group)
        sizes = _windows(layer, x, kernel, stride, pad, dilation)
        tops.append(net.shaped(y, [dims(x)[0], p.num_output, *sizes], layer))
    return tops


def _check_groups(layer: Layer, channels: int, group: int) -> None:
    outputs = layer.proto.convolution_param.num_output
    if not outputs:
        raise ConversionError(f"{layer}: has no num_output")
    if not group or channels % group or outputs % group:
        raise ConversionError(
            f"{layer}: {channels} channels and {outputs} outputs do not split into {group} groups"
        )


@layer_type("Deconvolution")
def deconvolution(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """The transposed convolution; size = stride (n - 1) + dilation (kernel - 1) + 1 - 2 pad."""
    p = layer.proto.convolution_param
    tops = []
    weight = bias = None
    for x in bottoms:
        kernel, stride, pad, dilation = _spatial(layer, x)
        channels = count(layer, dims(x)[1:2])
        _check_groups(layer, channels, p.group)
        if weight is None:
            weight = net.parameter(layer, "weight", 0, channels, p.num_output // p.group, *kernel)
            bias = net.parameter(layer, "bias", 1, p.num_output) if p.bias_term else None
        y = net.op.ConvTranspose(
            x, weight, bias, strides=stride, pads=pad * 2, dilations=dilation, group=p.group
        )
        sizes: list[Dim] = [
            s * (n - 1) + d * (k - 1) + 1 - 2 * q if isinstance(n, int) else None
            for n, q, d, k, s in zip(dims(x)[2:], pad, dilation, kernel, stride, strict=True)
        ]
        tops.append(net.shaped(y, [dims(x)[0], p.num_output, *sizes], layer))
    return tops


@layer_type("Im2col")
def im2col(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Each window's elements as channels: [N, C kh kw, H', W'], by a convolution with unit kernels."""
    need(layer, bottoms, 1)
    x = bottoms[0]
    kernel, stride, pad, dilation = _spatial(layer, x)
    channels = count(layer, dims(x)[1:2])
    area = int(np.prod(kernel))
    sizes = _windows(layer, x, kernel, stride, pad, dilation)
    top = [dims(x)[0], channels * area, *sizes]
    unit = np.eye(area, dtype=np.float32).reshape(area, 1, *kernel)
    units = np.concatenate([unit] * channels)
    y = net.op.Conv(
        x, net.op.constant(units), strides=stride, pads=pad * 2, dilations=dilation, group=channels
    )
    return net.shaped(y, top, layer)


@layer_type("InnerProduct")
def inner_product(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """y = x W^T + b over the axes from ``axis`` on, which are flattened; the axes before it are kept."""
    need(layer, bottoms, 1)
    p, (x,) = layer.proto.inner_product_param, bottoms
    axis = axis_of(layer, p.axis, x)
    width = count(layer, dims(x)[axis:])
    shape = (width, p.num_output) if p.transpose else (p.num_output, width)
    weight = net.parameter(layer, "weight", 0, *shape)
    bias = net.parameter(layer, "bias", 1, p.num_output) if p.bias_term else None
    lead = dims(x)[:axis]
    if axis == 1:
        rows = x if len(dims(x)) == 2 else net.op.Flatten(x, axis=1)
        return net.shaped(
            net.op.Gemm(rows, weight, bias, transB=int(not p.transpose)), [*lead, p.num_output], layer
        )
    rows = x if axis == len(dims(x)) - 1 else net.op.Reshape(x, [*[0] * axis, width])
    y = net.op.MatMul(rows, weight if p.transpose else net.op.Transpose(weight, perm=[1, 0]))
    return net.shaped(net.op.Add(y, bias) if bias is not None else y, [*lead, p.num_output], layer)


@layer_type("Embed")
def embed(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Row x of W for each index x, plus b; the rows become the last axis."""
    need(layer, bottoms, 1)
    p, (x,) = layer.proto.embed_param, bottoms
    weight = net.parameter(layer, "weight", 0, p.input_dim, p.num_output)
    y = net.op.Gather(weight, net.op.Cast(x, to=ir.DataType.INT64.value), axis=0)
    if p.bias_term:
        y = net.op.Add(y, net.parameter(layer, "bias", 1, p.num_output))
    return net.shaped(y, [*dims(x), p.num_output], layer)
