"""Undoing numpy-style broadcasting, in one place."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, Dim, dims_of


def unbroadcast(op: Builder, grad: ir.Value, x: ir.Value | None, *others: ir.Value | None) -> ir.Value:
    """Sum ``grad`` over the axes along which ``x`` was broadcast.

    Args:
        op: The builder.
        grad: Gradient of the broadcast result.
        x: The operand whose gradient is wanted.
        *others: The operands it was broadcast against.

    Returns:
        The gradient in the shape of ``x``. Axes whose sizes are only known when the graph runs are decided
        then.
    """
    assert x is not None, "only an operand that is there has a gradient"
    dims = _known(x)
    against = [_known(other) for other in others if other is not None]
    rank = max([len(dims), *(len(other) for other in against)])
    extra = rank - len(dims)
    stretched, unsure = [], []
    for axis, dim in enumerate(dims):
        rivals = [other[axis + extra - rank] for other in against if axis + extra - rank >= -len(other)]
        if dim == 1 and any(rival != 1 for rival in rivals):
            stretched.append(axis + extra)
        elif not isinstance(dim, int) and any(rival not in (1, dim) or rival is None for rival in rivals):
            unsure.append(axis + extra)
    if unsure:
        ones = op.Equal(op.Shape(x), [1])
        axes = op.Add(op.Reshape(op.NonZero(ones), [-1]), [extra])
        grad = op.ReduceSum(grad, axes, keepdims=1, noop_with_empty_axes=1)
        if extra:
            grad = op.ReduceSum(grad, list(range(extra)), keepdims=0)
        return grad
    if extra:
        grad = op.ReduceSum(grad, list(range(extra)), keepdims=0)
    if stretched:
        grad = op.ReduceSum(grad, [axis - extra for axis in stretched], keepdims=1)
    return grad


def _known(x: ir.Value) -> list[Dim]:
    dims = dims_of(x)
    if dims is None:
        raise UnsupportedOperator(
            f"the rank of {x.name!r} is unknown, broadcasting cannot be undone; export the model with shapes"
        )
    return dims
