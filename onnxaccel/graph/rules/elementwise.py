"""Elementwise operators, with broadcasting."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.graph.builder import Builder, attribute
from onnxaccel.graph.rules.broadcast import unbroadcast
from onnxaccel.graph.rules.registry import gradient

Grads = list[ir.Value | None]


@gradient("Identity")
def identity(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy."""
    return dy


@gradient("Neg")
def neg(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = -dy."""
    return op.Neg(dy)


@gradient("Add")
def add(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """da = dy, db = dy."""
    a, b = node.inputs
    return [unbroadcast(op, dy, a, b), unbroadcast(op, dy, b, a)]


@gradient("Sub")
def sub(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """da = dy, db = -dy."""
    a, b = node.inputs
    return [unbroadcast(op, dy, a, b), op.Neg(unbroadcast(op, dy, b, a))]


@gradient("Mul")
def mul(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """da = dy b, db = dy a."""
    a, b = node.inputs
    return [unbroadcast(op, op.Mul(dy, b), a, b), unbroadcast(op, op.Mul(dy, a), b, a)]


@gradient("Div")
def div(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """da = dy / b, db = -dy y / b."""
    a, b = node.inputs
    da = op.Div(dy, b)
    return [unbroadcast(op, da, a, b), unbroadcast(op, op.Neg(op.Mul(da, node.outputs[0])), b, a)]


@gradient("Sum")
def sum_(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """dx_i = dy."""
    return [unbroadcast(op, dy, x, *node.inputs) for x in node.inputs if x is not None]


@gradient("Relu")
def relu(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy where y > 0, else 0."""
    return op.Mul(dy, op.indicator(node.outputs[0]))


@gradient("Sigmoid")
def sigmoid(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy y (1 - y)."""
    y = node.outputs[0]
    return op.Mul(dy, op.Mul(y, op.Sub(1.0, y)))


@gradient("Tanh")
def tanh(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy (1 - y^2)."""
    y = node.outputs[0]
    return op.Mul(dy, op.Sub(1.0, op.Mul(y, y)))


@gradient("Exp")
def exp(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy y."""
    return op.Mul(dy, node.outputs[0])


@gradient("Log")
def log(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy / x."""
    return op.Div(dy, node.inputs[0])


@gradient("Sqrt")
def sqrt(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy / 2y."""
    return op.Div(op.Mul(dy, 0.5), node.outputs[0])


@gradient("Softplus")
def softplus(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy sigmoid(x)."""
    return op.Mul(dy, op.Sigmoid(node.inputs[0]))


@gradient("Clip")
def clip(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy where min <= x <= max, else 0."""
    x, low, high = [*node.inputs, None, None][:3]
    inside = None
    if low is not None:
        inside = op.GreaterOrEqual(x, low)
    if high is not None:
        below = op.LessOrEqual(x, high)
        inside = below if inside is None else op.And(inside, below)
    return dy if inside is None else op.Where(inside, dy, 0.0)


@gradient("LeakyRelu")
def leaky_relu(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy where x > 0, else alpha dy."""
    return op.Where(op.Greater(node.inputs[0], 0.0), dy, op.Mul(dy, float(attribute(node, "alpha", 0.01))))


@gradient("PRelu")
def prelu(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """dx = dy where x > 0, else slope dy; dslope = dy min(x, 0)."""
    x, slope = node.inputs
    positive = op.Greater(x, 0.0)
    return [
        op.Where(positive, dy, op.Mul(dy, slope)),
        unbroadcast(op, op.Where(positive, 0.0, op.Mul(dy, x)), slope, x),
    ]


@gradient("Cast")
def cast(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy, in the type of x."""
    x = node.inputs[0]
    assert x is not None and x.dtype is not None
    return op.Cast(dy, to=x.dtype.value)


@gradient("Where")
def where(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """da = dy where the condition holds, db = dy where it does not."""
    condition, a, b = node.inputs
    return [
        None,
        unbroadcast(op, op.Where(condition, dy, 0.0), a, condition, b),
        unbroadcast(op, op.Where(condition, 0.0, dy), b, condition, a),
    ]


@gradient("Dropout")
def dropout(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy mask / (1 - ratio) in training, dy otherwise."""
    from onnxaccel.graph.training_form import dropout_ratio

    ratio = dropout_ratio(node)
    if ratio is None:
        return dy
    if len(node.outputs) < 2:
        node.resize_outputs(2)
    mask = node.outputs[1]
    mask.name = mask.name or op.fresh("mask")
    mask.type = ir.TensorType(ir.DataType.BOOL)
    assert dy.dtype is not None
    return op.Mul(op.Mul(dy, op.Cast(mask, to=dy.dtype.value)), 1.0 / (1.0 - ratio))
