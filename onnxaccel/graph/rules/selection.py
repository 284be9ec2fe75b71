"""Operators that make tensors of scalars, pick elements, or keep a cache."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxaccel.graph.builder import Builder, attribute
from onnxaccel.graph.rules.registry import expansion, gradient
from onnxaccel.graph.rules.shape import scatter_flat

Grads = list[ir.Value | None]


@gradient("OneHot")
def one_hot(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """y = off + hot (on - off): d[off, on] = [sum of dy where cold, sum of dy where hot]."""
    indices, depth, _ = node.inputs
    axis = attribute(node, "axis", -1)
    switch = op.CastLike(op.constant([0, 1]), dy)
    hot = op.OneHot(indices, depth, switch, axis=axis)
    on = op.ReduceSum(op.Mul(dy, hot), keepdims=0)
    off = op.Sub(op.ReduceSum(dy, keepdims=0), on)
    return [None, None, op.Concat(op.Unsqueeze(off, [0]), op.Unsqueeze(on, [0]), axis=0)]


@gradient("Range")
def range_(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """y_i = start + i delta: dstart = sum(dy), ddelta = sum(i dy); the limit only ends it."""
    steps = op.CastLike(op.Range(0, op.Squeeze(op.Shape(dy), [0]), 1), dy)
    return [op.ReduceSum(dy, keepdims=0), None, op.ReduceSum(op.Mul(dy, steps), keepdims=0)]


@gradient("Unique")
def unique(op: Builder, node: ir.Node, dy: ir.Value, *rest: ir.Value | None) -> ir.Value:
    """y = x at the first occurrence of each value: dx = dy there."""
    x, axis = node.inputs[0], attribute(node, "axis")
    assert x is not None
    if len(node.outputs) < 2:
        node.resize_outputs(2)
    first = node.outputs[1]
    first.name = first.name or op.fresh("first")
    first.type = ir.TensorType(ir.DataType.INT64)
    if axis is None:
        return scatter_flat(op, x, first, dy)
    rank = len(x.shape or ())
    rows = [axis % rank, *(i for i in range(rank) if i != axis % rank)]
    zeros = op.Transpose(op.zeros_like(x), perm=rows)
    dx = op.ScatterND(zeros, op.Unsqueeze(first, [1]), op.Transpose(dy, perm=rows))
    return op.Transpose(dx, perm=np.argsort(rows).tolist())


@gradient("DequantizeLinear")
def dequantize_linear(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """y = (x - zero) scale for whole numbers x: dscale = sum of dy (x - zero) over what shares the scale."""
    x, scale, zero = [*node.inputs, None][:3]
    assert x is not None and scale is not None
    rank, per = len(x.shape or ()), len(scale.shape or ())
    block, axis = attribute(node, "block_size", 0), attribute(node, "axis", 1)
    axis = axis % rank if rank else 0
    ones = op.Expand(op.CastLike(op.constant(1), scale), op.shape_of(scale))
    steps = op.DequantizeLinear(x, ones, zero, axis=attribute(node, "axis"), block_size=block or None)
    share = op.Mul(dy, op.CastLike(steps, dy))
    if not block:
        others = [i for i in range(rank) if not per or i != axis]
        return [None, op.reshape_like(op.ReduceSum(share, others, keepdims=0), scale)]
    size = op.Shape(x, start=axis, end=axis + 1)
    blocks = op.Shape(scale, start=axis, end=axis + 1)
    missing = op.Sub(op.Mul(blocks, [block]), size)  # the last block may be short
    share = op.Pad(share, op.Concat([0], missing, axis=0), None, [axis])
    split = op.Concat(op.Shape(x, start=0, end=axis), blocks, [block], op.Shape(x, start=axis + 1), axis=0)
    return [None, op.ReduceSum(op.Reshape(share, split), [axis + 1], keepdims=0)]


@gradient("TensorScatter")
def tensor_scatter(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """y = the cache with the update written into it: the update gets dy where it is, the cache the rest."""
    cache, update, start = [*node.inputs, None][:3]
    assert cache is not None and update is not None
    settings = {name: attribute(node, name) for name in ("axis", "mode")}
    empty = op.TensorScatter(dy, op.zeros_like(update), start, **settings)
    rank = len(cache.shape or ())
    axis = attribute(node, "axis", -2) % rank
    length = op.Shape(update, start=axis, end=axis + 1)
    places = op.Range(0, op.Squeeze(length, [0]), 1)
    if start is None:
        return [empty, op.Gather(dy, places, axis=axis)]
    rows = op.Add(op.Unsqueeze(start, [1]), places)  # [batch, length]
    if attribute(node, "mode", "linear") == "circular":
        rows = op.Mod(rows, op.Shape(cache, start=axis, end=axis + 1))
    rows = op.Unsqueeze(rows, [i for i in range(1, rank) if i != axis])
    return [empty, op.GatherElements(dy, op.Expand(rows, op.Shape(update)), axis=axis)]


@expansion("OptionalGetElement")
def optional_get_element(op: Builder, node: ir.Node) -> ir.Value:
    """The tensor itself."""
    x = node.inputs[0]
    producer = x.producer() if x is not None else None
    if producer is not None and producer.op_type == "Optional":
        return op.Identity(*producer.inputs)
    return op.Identity(x)
