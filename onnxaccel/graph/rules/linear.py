"""Matrix products."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.broadcast import unbroadcast
from onnxaccel.graph.rules.registry import gradient

Grads = list[ir.Value | None]


@gradient("Gemm")
def gemm(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """Y = alpha A' B' + beta C: dA' = alpha dY B'^T, dB' = alpha A'^T dY, dC = beta dY."""
    a, b, c = [*node.inputs, None][:3]
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    ta, tb = attribute(node, "transA", 0), attribute(node, "transB", 0)
    if ta:
        da = op.Gemm(b, dy, alpha=alpha, transA=tb, transB=1)
    else:
        da = op.Gemm(dy, b, alpha=alpha, transB=1 - tb)
    if tb:
        db = op.Gemm(dy, a, alpha=alpha, transA=1, transB=ta)
    else:
        db = op.Gemm(a, dy, alpha=alpha, transA=1 - ta)
    if c is None:
        return [da, db]
    dc = unbroadcast(op, dy, c, node.outputs[0])
    return [da, db, dc if beta == 1.0 else op.Mul(dc, float(beta))]


@gradient("MatMul")
def matmul(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """Y = A B: dA = dY B^T, dB = A^T dY, summed over broadcast batches; 1-D operands as in numpy.matmul."""
    a, b = node.inputs
    assert a is not None and b is not None
    rank_a, rank_b = _rank(node, a), _rank(node, b)
    if rank_a == 1:
        dy = op.Unsqueeze(dy, [-2 if rank_b > 1 else 0])
    if rank_b == 1:
        dy = op.Unsqueeze(dy, [-1])
    wide_a = op.Unsqueeze(a, [0]) if rank_a == 1 else a
    wide_b = op.Unsqueeze(b, [1]) if rank_b == 1 else b
    n = max(rank_a, 2), max(rank_b, 2)
    if n == (2, 2):
        da, db = op.Gemm(dy, wide_b, transB=1), op.Gemm(wide_a, dy, transA=1)
    elif n[1] == 2:
        da = op.MatMul(dy, _swap(op, wide_b, 2))
        k, m = op.Shape(wide_b, start=0, end=1), op.Shape(wide_b, start=1, end=2)
        rows_a = op.Reshape(wide_a, op.Concat([-1], k, axis=0))
        rows_dy = op.Reshape(dy, op.Concat([-1], m, axis=0))
        db = op.Gemm(rows_a, rows_dy, transA=1)
    else:
        da = op.MatMul(dy, _swap(op, wide_b, n[1]))
        db = op.MatMul(_swap(op, wide_a, n[0]), dy)
        da, db = _sum_batch(op, da, a, b), _sum_batch(op, db, b, a)
    if rank_a == 1:
        da = op.reshape_like(da, a)
    if rank_b == 1:
        db = op.reshape_like(db, b)
    return [da, db]


def _rank(node: ir.Node, x: ir.Value) -> int:
    dims = dims_of(x)
    if dims is None:
        raise UnsupportedOperator(
            f"{describe(node)}: the rank of {x.name!r} is not known; export with shapes"
        )
    return len(dims)


def _swap(op: Builder, x: ir.Value, rank: int) -> ir.Value:
    return op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _sum_batch(op: Builder, grad: ir.Value, x: ir.Value, other: ir.Value) -> ir.Value:
    """Undo the broadcasting of the axes before the last two."""
    lead_x, lead_other = (dims_of(x) or [])[:-2], (dims_of(other) or [])[:-2]
    if len(dims_of(x) or []) == 1:
        axes = len(lead_other)
        return op.ReduceSum(grad, list(range(axes)), keepdims=0) if axes else grad
    trimmed_x = ir.Value(name=x.name, shape=ir.Shape([*lead_x, "m", "k"]))
    trimmed_other = ir.Value(name=other.name, shape=ir.Shape([*lead_other, "m", "k"]))
    return unbroadcast(op, grad, trimmed_x, trimmed_other)
