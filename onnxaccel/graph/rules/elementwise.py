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


@gradient("Mean")
def mean(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """dx_i = dy / n for n operands."""
    share = op.Div(dy, float(len(node.inputs)))
    return [unbroadcast(op, share, x, *node.inputs) for x in node.inputs]


@gradient("Max", "Min")
def extremum(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """dx_i = dy / ties where x_i = y, else 0: operands that tie share dy equally."""
    if len(node.inputs) == 1:
        return [dy]
    assert dy.dtype is not None
    hits = [op.Cast(op.Equal(x, node.outputs[0]), to=dy.dtype.value) for x in node.inputs]
    share = op.Div(dy, op.Sum(*hits))
    return [
        unbroadcast(op, op.Mul(share, hit), x, *node.inputs) for x, hit in zip(node.inputs, hits, strict=True)
    ]


@gradient("Pow")
def pow_(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """da = dy b a^(b-1), 0 where b = 0; db = dy y ln(a), 0 where a = 0 and b >= 0."""
    a, b = node.inputs
    assert a is not None and b is not None and a.dtype is not None
    exponent = b if b.dtype == a.dtype else op.Cast(b, to=a.dtype.value)
    slope = op.Mul(exponent, op.Pow(a, op.Sub(exponent, 1.0)))
    da = op.Mul(dy, op.Where(op.Equal(exponent, 0.0), 0.0, slope))
    flat = op.And(op.Equal(a, 0.0), op.GreaterOrEqual(exponent, 0.0))
    db = op.Mul(dy, op.Where(flat, 0.0, op.Mul(node.outputs[0], op.Log(a))))
    return [unbroadcast(op, da, a, b), unbroadcast(op, db, b, a)]


@gradient("Mod")
def mod(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """y = a - n b with a whole n: da = dy, db = -dy n."""
    a, b = node.inputs
    n = op.Round(op.Div(op.Sub(a, node.outputs[0]), b))
    return [unbroadcast(op, dy, a, b), unbroadcast(op, op.Neg(op.Mul(dy, n)), b, a)]


@gradient("Reciprocal")
def reciprocal(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = -dy y^2."""
    y = node.outputs[0]
    return op.Neg(op.Mul(dy, op.Mul(y, y)))


@gradient("Abs")
def abs_(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy sign(x)."""
    return op.Mul(dy, op.Sign(node.inputs[0]))


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
    if low is None and high is None:
        return dy
    assert x is not None
    moved = op.Sub(x, node.outputs[0])  # zero inside, negative below min, positive above max
    outside = moved if high is None else op.Neg(moved if low is None else op.Abs(moved))
    return op.Mul(dy, op.indicator(outside, inclusive=True))


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


@gradient("Cast", "CastLike")
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
def dropout(op: Builder, node: ir.Node, dy: ir.Value, dmask: ir.Value | None = None) -> ir.Value:
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
