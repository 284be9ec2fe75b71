"""Operators written in terms of others: rare ones, and the fusions of com.microsoft that converters emit."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.registry import expansion
from onnxaccel.graph.rules.window import Window


@expansion("Compress")
def compress(op: Builder, node: ir.Node) -> ir.Value:
    """Gather of the places where the condition holds."""
    x, condition = node.inputs
    axis = attribute(node, "axis")
    rows = op.Reshape(x, [-1]) if axis is None else x
    return op.Gather(rows, op.Reshape(op.NonZero(condition), [-1]), axis=axis or 0)


@expansion("Upsample")
def upsample(op: Builder, node: ir.Node) -> ir.Value:
    """Resize in asymmetric coordinates."""
    mode = attribute(node, "mode", "nearest")
    return op.Resize(
        node.inputs[0],
        None,
        node.inputs[1],
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@expansion("MeanVarianceNormalization")
def mean_variance_normalization(op: Builder, node: ir.Node) -> ir.Value:
    """(x - mean) / (sqrt(mean of squares - mean^2) + 1e-9), as ONNX's definition computes it."""
    x, axes = node.inputs[0], list(attribute(node, "axes", [0, 2, 3]))
    mean = op.ReduceMean(x, axes, keepdims=1)
    variance = op.Sub(op.ReduceMean(op.Mul(x, x), axes, keepdims=1), op.Mul(mean, mean))
    return op.Div(op.Sub(x, mean), op.Add(op.Sqrt(variance), 1e-9))


@expansion("LpPool")
def lp_pool(op: Builder, node: ir.Node) -> ir.Value:
    """(sum of abs(x)^p over each window)^(1/p), the sum being a convolution with ones."""
    x = node.inputs[0]
    assert x is not None
    if attribute(node, "ceil_mode", 0):
        raise UnsupportedOperator(f"{describe(node)}: ceil_mode has no gradient rule")
    p = attribute(node, "p", 2)
    window = Window.of(node, attribute(node, "kernel_shape"))
    planes = op.Reshape(x, op.Concat([-1, 1], op.Shape(x, start=2), axis=0))
    ones = np.ones([1, 1, *window.kernel], (x.dtype or ir.DataType.FLOAT).numpy())
    total = op.Conv(
        _power(op, planes, p), ones, strides=window.strides, dilations=window.dilations, pads=window.pads
    )
    shape = op.Concat(op.Shape(x, start=0, end=2), op.Shape(total, start=2), axis=0)
    return op.Pow(op.Reshape(total, shape), 1.0 / p)


@expansion("GlobalLpPool")
def global_lp_pool(op: Builder, node: ir.Node) -> ir.Value:
    """(sum of abs(x)^p over each plane)^(1/p)."""
    x = node.inputs[0]
    assert x is not None and x.shape is not None
    p = attribute(node, "p", 2)
    total = op.ReduceSum(_power(op, x, p), list(range(2, len(x.shape))), keepdims=1)
    return op.Pow(total, 1.0 / p)


def _power(op: Builder, x: ir.Value, p: int) -> ir.Value:
    return op.Mul(x, x) if p == 2 else op.Pow(op.Abs(x), float(p))


@expansion("com.microsoft::BiasGelu")
def bias_gelu(op: Builder, node: ir.Node) -> ir.Value:
    """Gelu(x + b), by Erf."""
    s = op.Add(*node.inputs)
    return op.Mul(op.Mul(s, 0.5), op.Add(op.Erf(op.Mul(s, math.sqrt(0.5))), 1.0))


@expansion("com.microsoft::FastGelu")
def fast_gelu(op: Builder, node: ir.Node) -> ir.Value:
    """Gelu(x + b) by the tanh approximation."""
    s = op.Add(*node.inputs) if len(node.inputs) > 1 else node.inputs[0]
    c = math.sqrt(2 / math.pi)
    inner = op.Mul(s, op.Add(op.Mul(op.Mul(s, s), 0.044715 * c), c))
    return op.Mul(op.Mul(s, 0.5), op.Add(op.Tanh(inner), 1.0))


@expansion("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul")
def fused_matmul(op: Builder, node: ir.Node) -> ir.Value:
    """alpha A' B', A' and B' with their last two axes swapped where asked for."""
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        raise UnsupportedOperator(f"{describe(node)}: transBatchA and transBatchB have no gradient rule")

    def swapped(x: ir.Value | None, swap: bool) -> ir.Value | None:
        rank = len((x and dims_of(x)) or [])
        if swap and rank < 2:
            raise UnsupportedOperator(f"{describe(node)}: an operand's rank is not known")
        return op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2]) if swap else x

    a, b = node.inputs
    product = op.MatMul(swapped(a, attribute(node, "transA", 0)), swapped(b, attribute(node, "transB", 0)))
    return op.Mul(product, float(attribute(node, "alpha", 1.0)))


@expansion("com.microsoft::FusedGemm")
def fused_gemm(op: Builder, node: ir.Node) -> ir.Value:
    """An activation of Gemm."""
    settings = {name: attribute(node, name) for name in ("alpha", "beta", "transA", "transB")}
    return _activated(op, node, op.Gemm(*node.inputs, **settings))


@expansion("com.microsoft::FusedConv")
def fused_conv(op: Builder, node: ir.Node) -> ir.Value:
    """An activation of Conv plus an optional addend."""
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    y = op.Conv(*node.inputs[:3], **{name: attribute(node, name) for name in names})
    return _activated(op, node, op.Add(y, node.inputs[3]) if len(node.inputs) > 3 else y)


def _activated(op: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    name = attribute(node, "activation", "")
    plain = {"", "Relu", "Sigmoid", "Tanh"}
    if name not in plain:
        raise UnsupportedOperator(f"{describe(node)}: activation {name} has no gradient rule")
    return op.node(name, [x])[0] if name else x


@expansion("com.microsoft::SkipLayerNormalization")
def skip_layer_normalization(op: Builder, node: ir.Node) -> list[ir.Value]:
    """LayerNormalization of s = x + skip + bias; the fourth output is s."""
    x, skip, gamma, beta, bias = [*node.inputs, None, None][:5]
    s = op.Add(x, skip)
    if bias is not None:
        s = op.Add(s, bias)
    epsilon = attribute(node, "epsilon", 1e-12)
    y, mean, inverse = op.node("LayerNormalization", [s, gamma, beta], outputs=3, axis=-1, epsilon=epsilon)
    return [y, mean, inverse, s]


@expansion("com.microsoft::SkipSimplifiedLayerNormalization")
def skip_rms_normalization(op: Builder, node: ir.Node) -> list[ir.Value]:
    """RMS normalisation of s = x + skip + bias; the fourth output is s."""
    x, skip, gamma, bias = [*node.inputs, None][:4]
    s = op.Add(x, skip)
    if bias is not None:
        s = op.Add(s, bias)
    y, inverse = _rms(op, s, gamma, [-1], float(attribute(node, "epsilon", 1e-5)))
    return [y, inverse, inverse, s]


@expansion("SimplifiedLayerNormalization", "RMSNormalization")
def simplified_layer_normalization(op: Builder, node: ir.Node) -> list[ir.Value]:
    """RMS normalisation over the axes from ``axis`` on."""
    x, gamma = node.inputs
    assert x is not None and x.shape is not None
    rank = len(x.shape)
    axes = list(range(attribute(node, "axis", -1) % rank, rank))
    return list(_rms(op, x, gamma, axes, float(attribute(node, "epsilon", 1e-5))))


def _rms(
    op: Builder, x: ir.Value, gamma: ir.Value | None, axes: list[int], epsilon: float
) -> tuple[ir.Value, ir.Value]:
    mean_square = op.ReduceMean(op.Mul(x, x), axes, keepdims=1)
    inverse = op.Reciprocal(op.Sqrt(op.Add(mean_square, epsilon)))
    return op.Mul(op.Mul(x, inverse), gamma), inverse
