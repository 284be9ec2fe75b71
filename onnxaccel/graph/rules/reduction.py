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
