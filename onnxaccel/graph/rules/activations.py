"""Activation functions."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxaccel.graph.builder import Builder, attribute
from onnxaccel.graph.rules.registry import gradient


@gradient("Elu")
def elu(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy where x > 0, else dy alpha exp(x)."""
    x, alpha = node.inputs[0], float(attribute(node, "alpha", 1.0))
    return op.Where(op.Greater(x, 0.0), dy, op.Mul(dy, op.Mul(op.Exp(op.Min(x, 0.0)), alpha)))


@gradient("Selu")
def selu(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy gamma where x > 0, else dy gamma alpha exp(x)."""
    alpha = float(attribute(node, "alpha", 1.67326319217681884765625))
    gamma = float(attribute(node, "gamma", 1.05070102214813232421875))
    x, scaled = node.inputs[0], op.Mul(dy, gamma)
    return op.Where(op.Greater(x, 0.0), scaled, op.Mul(scaled, op.Mul(op.Exp(op.Min(x, 0.0)), alpha)))


@gradient("Celu")
def celu(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy where x > 0, else dy exp(x / alpha)."""
    return op.Mul(dy, op.Exp(op.Div(op.Min(node.inputs[0], 0.0), float(attribute(node, "alpha", 1.0)))))


@gradient("HardSigmoid")
def hard_sigmoid(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy alpha where 0 < y < 1, else 0."""
    y = node.outputs[0]
    return op.Mul(op.Mul(dy, float(attribute(node, "alpha", 0.2))), _inside(op, y))


@gradient("HardSwish")
def hard_swish(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = x h with h = HardSigmoid(x / 6 + 1 / 2): dx = dy (h + x / 6 where 0 < h < 1)."""
    x = node.inputs[0]
    h = op.HardSigmoid(x, alpha=1 / 6, beta=0.5)
    return op.Mul(dy, op.Add(h, op.Mul(op.Div(x, 6.0), _inside(op, h))))


def _inside(op: Builder, y: ir.Value) -> ir.Value:
    """1 where 0 < y < 1, for a y that is never outside [0, 1]."""
    return op.indicator(op.Mul(y, op.Sub(1.0, y)))


@gradient("ThresholdedRelu")
def thresholded_relu(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy where x > alpha, else 0."""
    return op.Where(op.Greater(node.inputs[0], float(attribute(node, "alpha", 1.0))), dy, 0.0)


@gradient("Shrink")
def shrink(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy where abs(x) > lambd, else 0."""
    return op.Where(op.Greater(op.Abs(node.inputs[0]), float(attribute(node, "lambd", 0.5))), dy, 0.0)


@gradient("Softsign")
def softsign(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy / (1 + abs(x))^2."""
    size = op.Add(op.Abs(node.inputs[0]), 1.0)
    return op.Div(dy, op.Mul(size, size))


@gradient("Mish")
def mish(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = x t with t = tanh(softplus(x)): dx = dy (t + x (1 - t^2) sigmoid(x))."""
    x = node.inputs[0]
    t = op.Tanh(op.Softplus(x))
    slope = op.Mul(op.Mul(x, op.Sub(1.0, op.Mul(t, t))), op.Sigmoid(x))
    return op.Mul(dy, op.Add(t, slope))


@gradient("Swish")
def swish(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = x s with s = sigmoid(alpha x): dx = dy (s + alpha y (1 - s))."""
    return _swish(op, node, dy, float(attribute(node, "alpha", 1.0)))


@gradient("com.microsoft::QuickGelu")
def quick_gelu(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """Swish, its alpha being 1.702 unless given."""
    return _swish(op, node, dy, float(attribute(node, "alpha", 1.702)))


def _swish(op: Builder, node: ir.Node, dy: ir.Value, alpha: float) -> ir.Value:
    s = op.Sigmoid(op.Mul(node.inputs[0], alpha))
    return op.Mul(dy, op.Add(s, op.Mul(op.Mul(node.outputs[0], op.Sub(1.0, s)), alpha)))


@gradient("Gelu", "com.microsoft::Gelu")
def gelu(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = x P(x), P the normal distribution, p its density: dx = dy (P + x p).

    approximate="tanh": P = (1 + t) / 2 with t = tanh(u), u = sqrt(2 / pi) (x + 0.044715 x^3), and
    p = (1 - t^2) u' / 2.
    """
    x = node.inputs[0]
    square = op.Mul(x, x)
    if attribute(node, "approximate", "none") == "tanh":
        c = math.sqrt(2 / math.pi)
        t = op.Tanh(op.Mul(x, op.Add(op.Mul(square, 0.044715 * c), c)))
        distribution = op.Add(op.Mul(t, 0.5), 0.5)
        slope = op.Add(op.Mul(square, 1.5 * 0.044715 * c), 0.5 * c)
        density = op.Mul(op.Sub(1.0, op.Mul(t, t)), slope)
    else:
        distribution = op.Add(op.Mul(op.Erf(op.Mul(x, math.sqrt(0.5))), 0.5), 0.5)
        density = op.Mul(op.Exp(op.Mul(square, -0.5)), 1 / math.sqrt(2 * math.pi))
    return op.Mul(dy, op.Add(distribution, op.Mul(x, density)))
