"""Reductions, and softmax, which normalises by one."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.graph.builder import Builder, attribute
from onnxaccel.graph.rules.registry import gradient


def restore(op: Builder, node: ir.Node, reduced: ir.Value) -> ir.Value:
    """Put back, with size 1, the axes that a reduction removed, so that ``reduced`` broadcasts against x."""
    x, axes = [*node.inputs, None][:2]
    assert x is not None
    if attribute(node, "keepdims", 1) or (axes is None and attribute(node, "noop_with_empty_axes", 0)):
        return reduced
    if axes is not None:
        return op.Unsqueeze(reduced, axes)
    return op.Reshape(reduced, [1] * len(x.shape)) if x.shape is not None else reduced


@gradient("ReduceSum")
def reduce_sum(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy, broadcast."""
    x = node.inputs[0]
    assert x is not None
    return op.expand_like(restore(op, node, dy), x)


@gradient("ReduceMean")
def reduce_mean(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy / count, broadcast, where count is the number of elements in each mean."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None and dy.dtype is not None
    count = op.Cast(op.Div(op.Size(x), op.Size(y)), to=dy.dtype.value)
    return op.expand_like(restore(op, node, op.Div(dy, count)), x)


@gradient("ReduceMax", "ReduceMin")
def reduce_extremum(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy / ties at the extremum, which elements that tie share equally, else 0."""
    x = node.inputs[0]
    assert dy.dtype is not None
    hits = op.Cast(op.Equal(x, restore(op, node, node.outputs[0])), to=dy.dtype.value)
    return op.Mul(hits, op.Div(restore(op, node, dy), _total(op, node, hits)))


@gradient("GlobalMaxPool")
def global_max_pool(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy / ties at each plane's maximum, else 0."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None and x.shape is not None and dy.dtype is not None
    hits = op.Cast(op.Equal(x, y), to=dy.dtype.value)
    return op.Mul(hits, op.Div(dy, op.ReduceSum(hits, list(range(2, len(x.shape))), keepdims=1)))


@gradient("ReduceProd")
def reduce_prod(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy times the product of the other elements, exact where some of them are zero."""
    x, axes = [*node.inputs, None][:2]
    assert dy.dtype is not None
    is_zero = op.Equal(x, 0.0)
    zero = op.Cast(is_zero, to=dy.dtype.value)
    safe = op.Where(is_zero, 1.0, x)
    noop = attribute(node, "noop_with_empty_axes", 0)
    product = op.ReduceProd(safe, axes, keepdims=1, noop_with_empty_axes=noop)
    other_zeros = op.Sub(_total(op, node, zero), zero)
    others = op.Where(op.Greater(other_zeros, 0.0), 0.0, op.Div(product, safe))
    return op.Mul(restore(op, node, dy), others)


@gradient("ReduceL1")
def reduce_l1(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy sign(x)."""
    return op.Mul(restore(op, node, dy), op.Sign(node.inputs[0]))


@gradient("ReduceL2")
def reduce_l2(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy x / y, 0 where y = 0."""
    y = node.outputs[0]
    share = op.Where(op.Equal(y, 0.0), 0.0, op.Div(dy, y))
    return op.Mul(restore(op, node, share), node.inputs[0])


@gradient("ReduceSumSquare")
def reduce_sum_square(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = 2 dy x."""
    return op.Mul(restore(op, node, op.Mul(dy, 2.0)), node.inputs[0])


@gradient("ReduceLogSum")
def reduce_log_sum(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy / sum(x)."""
    x = node.inputs[0]
    assert x is not None
    return op.expand_like(op.Div(restore(op, node, dy), _total(op, node, x)), x)


@gradient("ReduceLogSumExp")
def reduce_log_sum_exp(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy exp(x - y)."""
    x = node.inputs[0]
    return op.Mul(restore(op, node, dy), op.Exp(op.Sub(x, restore(op, node, node.outputs[0]))))


def _total(op: Builder, node: ir.Node, values: ir.Value) -> ir.Value:
    """The sum of ``values`` over the axes that ``node`` reduces, these kept with size 1."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    noop = attribute(node, "noop_with_empty_axes", 0)
    return op.ReduceSum(values, axes, keepdims=1, noop_with_empty_axes=noop)


@gradient("CumSum")
def cum_sum(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy, summed up from the other end."""
    exclusive, reverse = attribute(node, "exclusive", 0), attribute(node, "reverse", 0)
    return op.CumSum(dy, node.inputs[1], exclusive=exclusive, reverse=1 - reverse)


@gradient("Softmax")
def softmax(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = y (dy - sum(dy y))."""
    y, axis = node.outputs[0], attribute(node, "axis", -1)
    return op.Mul(y, op.Sub(dy, op.ReduceSum(op.Mul(dy, y), [axis], keepdims=1)))


@gradient("LogSoftmax")
def log_softmax(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy - exp(y) sum(dy)."""
    y, axis = node.outputs[0], attribute(node, "axis", -1)
    return op.Sub(dy, op.Mul(op.Exp(y), op.ReduceSum(dy, [axis], keepdims=1)))
