"""Operators that read or write at given positions."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.registry import gradient
from onnxaccel.graph.rules.shape import positions, scatter_flat

PADDING_ROW = "onnxaccel.padding_row"
"""Metadata of a Gather node: reading this row gives it no gradient (the padding_idx of an embedding)."""


@gradient("Gather")
def gather(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = zeros, plus dy at the rows that were read (a row read twice gets both)."""
    x, indices = node.inputs
    assert x is not None and indices is not None
    dims, index_dims = dims_of(x), dims_of(indices)
    if dims is None or index_dims is None:
        raise UnsupportedOperator(f"{describe(node)}: a rank is not known; export the model with shapes")
    axis, rank, k = attribute(node, "axis", 0) % len(dims), len(dims), len(index_dims)
    padding = node.metadata_props.get(PADDING_ROW)
    if padding is not None:
        read = op.Unsqueeze(indices, list(range(k, k + rank - 1)))
        dy = op.Where(op.Equal(read, op.CastLike(int(padding), indices)), 0.0, dy)
    zeros = op.zeros_like(x)
    if axis:  # rows first, so that one index names a row
        zeros = op.Transpose(zeros, perm=[axis, *(i for i in range(rank) if i != axis)])
        lead = range(axis, axis + k)
        dy = op.Transpose(dy, perm=[*lead, *(i for i in range(rank - 1 + k) if i not in lead)])
    if indices.dtype != ir.DataType.INT64:  # all that ScatterND takes
        indices = op.Cast(indices, to=ir.DataType.INT64.value)
    dx = op.ScatterND(zeros, op.Unsqueeze(indices, [-1]), dy, reduction="add")
    return op.Transpose(dx, perm=[*range(1, axis + 1), 0, *range(axis + 1, rank)]) if axis else dx


@gradient("GatherElements")
def gather_elements(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = zeros, plus dy at the elements that were read."""
    x, indices = node.inputs
    assert x is not None
    return op.ScatterElements(op.zeros_like(x), indices, dy, axis=attribute(node, "axis", 0), reduction="add")


@gradient("GatherND")
def gather_nd(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = zeros, plus dy at the slices that were read."""
    x, indices = node.inputs
    assert x is not None and indices is not None
    batch = attribute(node, "batch_dims", 0)
    dims = dims_of(x)
    if not batch:
        return op.ScatterND(op.zeros_like(x), indices, dy, reduction="add")
    if dims is None:
        raise UnsupportedOperator(f"{describe(node)}: the input's rank is not known; export with shapes")
    # the same Gather of every element's position says where each dy goes
    places = op.GatherND(positions(op, x), indices, batch_dims=batch)
    return scatter_flat(op, x, places, dy)


@gradient("TopK")
def top_k(op: Builder, node: ir.Node, dy: ir.Value, dindices: ir.Value | None = None) -> ir.Value:
    """dx = dy at the elements that were chosen, else 0."""
    x, axis = node.inputs[0], attribute(node, "axis", -1)
    assert x is not None
    if not node.outputs[1].name:
        node.outputs[1].name = op.fresh("indices")
    node.outputs[1].type = ir.TensorType(ir.DataType.INT64)
    return op.ScatterElements(op.zeros_like(x), node.outputs[1], dy, axis=axis)


@gradient("ScatterElements", "Scatter")
def scatter_elements(op: Builder, node: ir.Node, dy: ir.Value) -> list[ir.Value | None]:
    """See `_scatter`."""
    indices, axis = node.inputs[1], attribute(node, "axis", 0)
    return _scatter(
        op,
        node,
        dy,
        lambda to, what, how: op.ScatterElements(to, indices, what, axis=axis, reduction=how),
        lambda x: op.GatherElements(x, indices, axis=axis),
    )


@gradient("ScatterND")
def scatter_nd(op: Builder, node: ir.Node, dy: ir.Value) -> list[ir.Value | None]:
    """See `_scatter`."""
    indices = node.inputs[1]
    return _scatter(
        op,
        node,
        dy,
        lambda to, what, how: op.ScatterND(to, indices, what, reduction=how),
        lambda x: op.GatherND(x, indices),
    )


def _scatter(
    op: Builder,
    node: ir.Node,
    dy: ir.Value,
    put: Callable[[ir.Value, ir.Value, str], ir.Value],
    take: Callable[[ir.Value], ir.Value],
) -> list[ir.Value | None]:
    """Gradients of data and updates, by reduction.

    none: dy where nothing was written, and dy where it was. add: dy for both. mul: dy times the product of
    all other factors, exact where some are zero. min, max: dy shared equally by all that tie.
    """
    x, _, updates = node.inputs
    y, how = node.outputs[0], attribute(node, "reduction", "none")
    assert x is not None and updates is not None and dy.dtype is not None
    if how == "none":
        return [put(dy, op.zeros_like(updates), "none"), None, take(dy)]
    if how == "add":
        return [dy, None, take(dy)]
    if how == "mul":
        is_zero = op.Equal(updates, 0.0)
        zero = op.Cast(is_zero, to=dy.dtype.value)
        safe = op.Where(is_zero, 1.0, updates)
        product = put(x, safe, "mul")
        others = op.Sub(take(put(op.zeros_like(x), zero, "add")), zero)
        rest = op.Where(op.Greater(others, 0.0), 0.0, op.Div(take(op.Mul(dy, product)), safe))
        ones = op.Add(op.zeros_like(x), 1.0)
        return [op.Mul(dy, put(ones, updates, "mul")), None, rest]
    data_hits = op.Cast(op.Equal(x, y), to=dy.dtype.value)
    update_hits = op.Cast(op.Equal(updates, take(y)), to=dy.dtype.value)
    share = op.Div(dy, put(data_hits, update_hits, "add"))
    return [op.Mul(share, data_hits), None, op.Mul(take(share), update_hits)]
