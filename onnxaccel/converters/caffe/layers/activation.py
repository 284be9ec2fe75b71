"""Elementwise layers of one bottom."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, axis_of, count, dims, layer_type, need
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError


@layer_type("ReLU")
def relu(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """max(x, 0) + negative_slope min(x, 0)."""
    need(layer, bottoms, 1)
    slope = layer.proto.relu_param.negative_slope
    y = net.op.LeakyRelu(bottoms[0], alpha=slope) if slope else net.op.Relu(bottoms[0])
    return net.like(y, bottoms[0], layer)


@layer_type("PReLU")
def prelu(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """max(x, 0) + slope min(x, 0), a slope per channel or one for all."""
    rank = len(dims(bottoms[0]))
    channels = 1 if layer.proto.prelu_param.channel_shared else count(layer, dims(bottoms[0])[1:2])
    slope = net.parameter(layer, "weight", 0, channels, view=[channels, *[1] * (rank - 2)])
    return net.like(net.op.PRelu(bottoms[0], slope), bottoms[0], layer)


@layer_type("ReLU6")
def relu6(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """min(relu(x), threshold)."""
    p = layer.proto.relu6_param
    x = net.op.LeakyRelu(bottoms[0], alpha=p.negative_slope) if p.negative_slope else net.op.Relu(bottoms[0])
    return net.like(net.op.Min(x, float(p.threshold)), bottoms[0], layer)


@layer_type("ELU")
def elu(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """X where x > 0, else alpha (exp(x) - 1)."""
    return net.like(net.op.Elu(bottoms[0], alpha=layer.proto.elu_param.alpha), bottoms[0], layer)


@layer_type("Sigmoid")
def sigmoid(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """1 / (1 + exp(-x))."""
    return net.like(net.op.Sigmoid(bottoms[0]), bottoms[0], layer)


@layer_type("TanH")
def tanh(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The hyperbolic tangent."""
    return net.like(net.op.Tanh(bottoms[0]), bottoms[0], layer)


@layer_type("AbsVal")
def absval(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """|x|."""
    return net.like(net.op.Abs(bottoms[0]), bottoms[0], layer)


@layer_type("BNLL")
def bnll(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """log(1 + exp(x))."""
    return net.like(net.op.Softplus(bottoms[0]), bottoms[0], layer)


@layer_type("Power")
def power(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """(shift + scale x)^power."""
    p = layer.proto.power_param
    if p.power * p.scale == 0:  # a constant, also where x is not finite
        value = 1.0 if p.power == 0 else p.shift**p.power
        return net.like(net.op.expand_like(net.op.constant(float(value)), bottoms[0]), bottoms[0], layer)
    y = _affine(net, bottoms[0], p.scale, p.shift)
    return net.like(net.op.Pow(y, float(p.power)) if p.power != 1 else y, bottoms[0], layer)


@layer_type("Exp")
def exp(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """base^(shift + scale x); base -1 is e."""
    p = layer.proto.exp_param
    y = _affine(net, bottoms[0], p.scale, p.shift)
    _check_base(layer, p.base)
    return net.like(net.op.Exp(y if p.base == -1 else net.op.Mul(y, math.log(p.base))), bottoms[0], layer)


@layer_type("Log")
def log(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The logarithm of shift + scale x to the given base; base -1 is e."""
    p = layer.proto.log_param
    _check_base(layer, p.base)
    y = net.op.Log(_affine(net, bottoms[0], p.scale, p.shift))
    return net.like(y if p.base == -1 else net.op.Div(y, math.log(p.base)), bottoms[0], layer)


def _check_base(layer: Layer, base: float) -> None:
    if base != -1 and base <= 0:
        raise ConversionError(f"{layer}: base {base} is not positive")


def _affine(net: NetBuilder, x: ir.Value, scale: float, shift: float) -> ir.Value:
    y = net.op.Mul(x, float(scale)) if scale != 1 else x
    y = net.op.Add(y, float(shift)) if shift else y
    return net.op.Identity(x) if y is x else y


@layer_type("Threshold")
def threshold(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """1 where x > threshold, else 0."""
    above = net.op.Greater(bottoms[0], float(layer.proto.threshold_param.threshold))
    return net.like(net.op.Cast(above, to=ir.DataType.FLOAT.value), bottoms[0], layer)


@layer_type("Swish")
def swish(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """X / (1 + exp(-beta x))."""
    beta = layer.proto.swish_param.beta
    inner = net.op.Mul(bottoms[0], float(beta)) if beta != 1 else bottoms[0]
    return net.like(net.op.Mul(bottoms[0], net.op.Sigmoid(inner)), bottoms[0], layer)


@layer_type("Mish")
def mish(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """X tanh(log(1 + exp(x)))."""
    return net.like(net.op.Mish(bottoms[0]), bottoms[0], layer)


@layer_type("Clip")
def clip(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """min(max(x, min), max)."""
    p = layer.proto.clip_param
    if not (p.HasField("min") and p.HasField("max")):
        raise ConversionError(f"{layer}: needs min and max")
    return net.like(net.op.Clip(bottoms[0], float(p.min), float(p.max)), bottoms[0], layer)


@layer_type("HardSigmoid")
def hard_sigmoid(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """min(max(alpha x + beta, 0), 1)."""
    p = layer.proto.hardsigmoid_param
    return net.like(net.op.HardSigmoid(bottoms[0], alpha=p.alpha, beta=p.beta), bottoms[0], layer)


@layer_type("HardSwish")
def hard_swish(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """X min(max(x / 6 + 1 / 2, 0), 1)."""
    return net.like(net.op.HardSwish(bottoms[0]), bottoms[0], layer)


@layer_type("Softmax")
def softmax(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """exp(x) / sum(exp(x)) along ``axis``."""
    axis = axis_of(layer, layer.proto.softmax_param.axis, bottoms[0])
    return net.like(net.op.Softmax(bottoms[0], axis=axis), bottoms[0], layer)


@layer_type("Dropout")
def dropout(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """X in inference; in training x mask / (1 - dropout_ratio)."""
    ratio = np.array(layer.proto.dropout_param.dropout_ratio, np.float32)
    return net.like(net.op.Dropout(bottoms[0], ratio, np.array(False)), bottoms[0], layer)
