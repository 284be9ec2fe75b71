"""Convolution, pooling and inner product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, axis_of, count, dims, layer_type, pair
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Dim


def _spatial(layer: Layer, bottom: ir.Value) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, stride, pad and dilation of a convolution, one entry per spatial axis."""
    p = layer.proto.convolution_param
    rank = len(dims(bottom)) - 2
    kernel = pair(p.kernel_size, p.kernel_h, p.kernel_w, p.HasField("kernel_h"), 0, rank)
    stride = pair(p.stride, p.stride_h, p.stride_w, p.HasField("stride_h"), 1, rank)
    pad = pair(p.pad, p.pad_h, p.pad_w, p.HasField("pad_h") or p.HasField("pad_w"), 0, rank)
    dilation = pair(p.dilation, 0, 0, False, 1, rank)
    if rank < 1 or not all(kernel) or {len(kernel), len(stride), len(pad), len(dilation)} != {rank}:
        raise ConversionError(
            f"{layer}: kernel_size, stride, pad or dilation do not fit a blob with {rank + 2} axes"
        )
    if p.axis != 1:
        raise ConversionError(f"{layer}: axis {p.axis} is not supported; channels must be axis 1")
    return kernel, stride, pad, dilation


@layer_type("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise")
def convolution(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Y = W * x + b; size = floor((n + 2 pad - (dilation (kernel - 1) + 1)) / stride) + 1."""
    p, (x,) = layer.proto.convolution_param, bottoms[:1]
    kernel, stride, pad, dilation = _spatial(layer, x)
    channels = count(layer, dims(x)[1:2])
    group = p.group if layer.type == "Convolution" else channels
    if channels % group or p.num_output % group:
        raise ConversionError(
            f"{layer}: {channels} channels and {p.num_output} outputs do not split into {group} groups"
        )
    weight = net.parameter(layer, "weight", layer.blob(0, p.num_output, channels // group, *kernel))
    bias = net.parameter(layer, "bias", layer.blob(1, p.num_output)) if p.bias_term else None
    y = net.op.Conv(x, weight, bias, strides=stride, pads=pad * 2, dilations=dilation, group=group)
    sizes: list[Dim] = [
        (n + 2 * q - d * (k - 1) - 1) // s + 1 if isinstance(n, int) else None
        for n, q, d, k, s in zip(dims(x)[2:], pad, dilation, kernel, stride, strict=True)
    ]
    return net.shaped(y, [dims(x)[0], p.num_output, *sizes], layer)


@layer_type("Deconvolution")
def deconvolution(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The transposed convolution; size = stride (n - 1) + dilation (kernel - 1) + 1 - 2 pad."""
    p, (x,) = layer.proto.convolution_param, bottoms[:1]
    kernel, stride, pad, dilation = _spatial(layer, x)
    channels = count(layer, dims(x)[1:2])
    weight = net.parameter(layer, "weight", layer.blob(0, channels, p.num_output // p.group, *kernel))
    bias = net.parameter(layer, "bias", layer.blob(1, p.num_output)) if p.bias_term else None
    y = net.op.ConvTranspose(x, weight, bias, strides=stride, pads=pad * 2, dilations=dilation, group=p.group)
    sizes: list[Dim] = [
        s * (n - 1) + d * (k - 1) + 1 - 2 * q if isinstance(n, int) else None
        for n, q, d, k, s in zip(dims(x)[2:], pad, dilation, kernel, stride, strict=True)
    ]
    return net.shaped(y, [dims(x)[0], p.num_output, *sizes], layer)


@layer_type("InnerProduct")
def inner_product(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """y = x W^T + b over the axes from ``axis`` on, which are flattened; the axes before it are kept."""
    p, (x,) = layer.proto.inner_product_param, bottoms[:1]
    axis = axis_of(layer, p.axis, x)
    width = count(layer, dims(x)[axis:])
    stored = layer.blob(0, *((width, p.num_output) if p.transpose else (p.num_output, width)))
    weight = net.parameter(layer, "weight", stored)
    bias = net.parameter(layer, "bias", layer.blob(1, p.num_output)) if p.bias_term else None
    lead = dims(x)[:axis]
    if axis == 1:
        rows = x if len(dims(x)) == 2 else net.op.Flatten(x, axis=1)
        return net.shaped(
            net.op.Gemm(rows, weight, bias, transB=int(not p.transpose)), [*lead, p.num_output], layer
        )
    rows = x if axis == len(dims(x)) - 1 else net.op.Reshape(x, [*[0] * axis, width])
    y = net.op.MatMul(rows, weight if p.transpose else net.op.Transpose(weight, perm=[1, 0]))
    return net.shaped(net.op.Add(y, bias) if bias is not None else y, [*lead, p.num_output], layer)


@layer_type("Pooling")
def pooling(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Size = ceil((n + 2 pad - kernel) / stride) + 1.

    It is 1 less where the last window would start in the padding. MAX is over the part of the window
    in the image, AVE divides by its part in the padded image. A network may ask for sizes rounded down
    (round_mode, or ceil_mode in forks).
    """
    p, (x,) = layer.proto.pooling_param, bottoms[:1]
    method = p.DESCRIPTOR.fields_by_name["pool"].enum_type.values_by_number[p.pool].name
    if method == "STOCHASTIC":
        raise ConversionError(f"{layer}: stochastic pooling has no inference form in Caffe either")
    sizes = dims(x)[2:]
    if p.global_pooling:
        pool = net.op.GlobalMaxPool if method == "MAX" else net.op.GlobalAveragePool
        return net.shaped(pool(x), [*dims(x)[:2], *[1] * len(sizes)], layer)
    kernel = pair(p.kernel_size, p.kernel_h, p.kernel_w, p.HasField("kernel_h"), 0)
    stride = pair(p.stride, p.stride_h, p.stride_w, p.HasField("stride_h"), 1)
    pad = pair(p.pad, p.pad_h, p.pad_w, p.HasField("pad_h") or p.HasField("pad_w"), 0)
    if len(sizes) != 2 or not all(kernel) or any(q >= k for q, k in zip(pad, kernel, strict=True)):
        raise ConversionError(
            f"{layer}: kernel {kernel} and pad {pad} do not fit a blob with {len(sizes) + 2} axes"
        )
    if any(s > k for s, k in zip(stride, kernel, strict=True)):
        raise ConversionError(
            f"{layer}: with stride {stride} over kernel {kernel} Caffe's own result is undefined"
        )
    up = p.ceil_mode if p.HasField("ceil_mode") else p.round_mode == 0
    fixed = [n for n in sizes if isinstance(n, int)]
    pooled: list[Dim] = [None, None]
    over, ceil = (
        [0, 0],
        int(up),
    )  # where sizes are dynamic: ONNX's ceil_mode has the same rule for the last window
    if len(fixed) == 2:
        whole = [
            _pooled(n, k, q, s, up, any(pad)) for n, k, q, s in zip(fixed, kernel, pad, stride, strict=True)
        ]
        reach = [(m - 1) * s + k - 2 * q for m, k, q, s in zip(whole, kernel, pad, stride, strict=True)]
        pooled, over, ceil = [*whole], [max(r - n, 0) for r, n in zip(reach, fixed, strict=True)], 0
    settings = {"kernel_shape": kernel, "strides": stride, "ceil_mode": ceil}
    if method == "MAX":
        y = net.op.MaxPool(x, pads=[*pad, *(q + o for q, o in zip(pad, over, strict=True))], **settings)
    else:  # the padding counts, what the last window has beyond it does not
        if any(pad):
            x = net.op.Pad(x, [0, 0, *pad, 0, 0, *pad])
        y = net.op.AveragePool(x, pads=[0, 0, *over], count_include_pad=0, **settings)
    return net.shaped(y, [*dims(bottoms[0])[:2], *pooled], layer)


def _pooled(n: int, kernel: int, pad: int, stride: int, up: bool, padded: bool) -> int:
    room = n + 2 * pad - kernel
    size = int(np.ceil(room / stride) if up else room // stride) + 1
    return size - 1 if padded and (size - 1) * stride >= n + pad else size
