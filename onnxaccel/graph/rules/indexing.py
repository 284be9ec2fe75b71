"""Operators that read or write at given positions."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.registry import gradient


@gradient("Gather")
def gather(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = zeros, plus dy at the rows that were read (a row read twice gets both)."""
    x, indices = node.inputs
    assert x is not None and indices is not None
    dims, index_dims = dims_of(x), dims_of(indices)
    if dims is None or index_dims is None:
        raise UnsupportedOperator(f"{describe(node)}: a rank is not known; export the model with shapes")
    axis, rank, k = attribute(node, "axis", 0) % len(dims), len(dims), len(index_dims)
    zeros = op.zeros_like(x)
    if axis:  # rows first, so that one index names a row
        zeros = op.Transpose(zeros, perm=[axis, *(i for i in range(rank) if i != axis)])
        lead = range(axis, axis + k)
        dy = op.Transpose(dy, perm=[*lead, *(i for i in range(rank - 1 + k) if i not in lead)])
    dx = op.ScatterND(zeros, op.Unsqueeze(indices, [-1]), dy, reduction="add")
    return op.Transpose(dx, perm=[*range(1, axis + 1), 0, *range(axis + 1, rank)]) if axis else dx


@gradient("GatherElements")
def gather_elements(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = zeros, plus dy at the elements that were read."""
    x, indices = node.inputs
    assert x is not None
    return op.ScatterElements(op.zeros_like(x), indices, dy, axis=attribute(node, "axis", 0), reduction="add")
