"""The gradient of a convolution by its weight, in the form that is cheapest for its shape.

Timed on CPU (docs/performance.md). With channels first and everything else flattened to one axis, all forms
are the product ``dW_k = dY X_k^T``, where X_k is what kernel position k saw; they differ in what is copied.
"""

from __future__ import annotations

import itertools

import onnx_ir as ir

from onnxaccel.graph.builder import Builder, Dim, dims_of
from onnxaccel.graph.rules.window import Window

THIN = 16
"""Input channels below which a product per kernel position is slower than one over all positions."""

SMALL = 64
"""Channels up to which shifting both images is cheaper than cutting out what each position saw."""


def weight_gradient(op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, window: Window) -> ir.Value:
    """dW of ``y = W * x``, shaped like the weight."""
    spatial = range(2, 2 + window.rank)
    inputs, outputs = _channels(weight, 1), _channels(weight, 0)
    plane, reached = _plane(x), _plane(dy)
    if inputs == 1 and outputs == window.group:
        return _by_channel(op, x, weight, dy, window)
    x = op.Transpose(x, perm=[1, 0, *spatial])
    rows = op.Transpose(dy, perm=[1, 0, *spatial])
    if window.group > 1 or inputs < THIN:
        return _by_stack(op, x, weight, dy, rows, window)
    if max(inputs, outputs) <= SMALL and plane and reached and _shiftable(window):
        return _by_shifts(op, x, weight, rows, window, plane, reached)
    return _by_position(op, x, weight, dy, rows, window)


def _by_channel(op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, window: Window) -> ir.Value:
    """Depthwise: each channel on its own, ``dW_k = sum(dY X_k)``."""
    axes = [0, *range(2, 2 + window.rank)]
    sums = [op.ReduceSum(op.Mul(dy, part), axes, keepdims=0) for part in _seen_by_kernel(op, x, dy, window)]
    stacked = op.Concat(*[op.Unsqueeze(each, [1]) for each in sums], axis=1)
    return op.reshape_like(stacked, weight)


def _by_position(
    op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, rows: ir.Value, window: Window
) -> ir.Value:
    """One product per kernel position: no copy of x outlives its product."""
    inputs, outputs = _channels(weight, 1), _channels(weight, 0)
    flat = op.Reshape(rows, [outputs, -1])
    seen = _seen_by_kernel(op, x, dy, window)
    products = [op.Gemm(flat, op.Reshape(part, [inputs, -1]), transB=1) for part in seen]
    if len(products) == 1:
        return op.reshape_like(products[0], weight)
    stacked = op.Reshape(op.Concat(*products, axis=0), [len(products), outputs, inputs])
    return op.reshape_like(op.Transpose(stacked, perm=[1, 2, 0]), weight)


def _by_shifts(
    op: Builder,
    x: ir.Value,
    weight: ir.Value,
    rows: ir.Value,
    window: Window,
    plane: list[int],
    reached: list[int],
) -> ir.Value:
    """x shifted along the columns against dy shifted along the rows, one product per kernel column.

    ``dW[a, b] = sum over rows r and columns c of dy[r - a d + p, c] x[r, c + b d - p]``: three copies of each
    image for a 3 x 3 kernel instead of nine of one.
    """
    inputs, outputs = _channels(weight, 1), _channels(weight, 0)
    (height, width), (tall, wide) = plane, reached
    across = [window.begin[1] - b * window.dilations[1] for b in range(window.kernel[1])]
    down = [a * window.dilations[0] - window.begin[0] for a in range(window.kernel[0])]
    columns = [_shift(op, x, 3, begin, wide - width - begin, inputs) for begin in across]
    stacked = op.Concat(
        *[_shift(op, rows, 2, begin, height - tall - begin, outputs) for begin in down], axis=0
    )
    products = [op.Gemm(stacked, column, transB=1) for column in columns]
    whole = op.Reshape(op.Concat(*products, axis=0), [*window.kernel[::-1], outputs, inputs])
    return op.Transpose(whole, perm=[2, 3, 1, 0])


def _shift(op: Builder, x: ir.Value, axis: int, begin: int, end: int, channels: int) -> ir.Value:
    """x with zeros (or, below 0, cuts) of those sizes at both ends of an axis, as [channels, the rest]."""
    shifted = op.Pad(x, [begin, end], None, [axis]) if begin or end else x
    return op.Reshape(shifted, [channels, -1])


def _shiftable(window: Window) -> bool:
    """Whether `_by_shifts` applies: rows and columns of kernel positions, stride 1."""
    return window.rank == 2 and window.strides == [1, 1] and min(window.kernel) > 1


def _plane(x: ir.Value) -> list[int] | None:
    """The sizes of the spatial axes, or None where one is symbolic."""
    sizes = (dims_of(x) or [None])[2:]
    known = [size for size in sizes if isinstance(size, int)]
    return known if known and len(known) == len(sizes) else None


def _by_stack(
    op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, rows: ir.Value, window: Window
) -> ir.Value:
    """One product over all kernel positions, what they saw being stacked; groups become a batch."""
    inputs, group = _channels(weight, 1), window.group
    outputs = _channels(weight, 0) // group
    columns = [op.Reshape(part, [group, inputs, -1]) for part in _seen_by_kernel(op, x, dy, window)]
    stacked = op.Concat(*columns, axis=1) if len(columns) > 1 else columns[0]
    if group == 1:
        seen = op.Reshape(stacked, [len(columns) * inputs, -1])
        product = op.Gemm(seen, op.Reshape(rows, [outputs, -1]), transB=1)
    else:
        product = op.MatMul(stacked, op.Transpose(op.Reshape(rows, [group, outputs, -1]), perm=[0, 2, 1]))
    # [group, kernel positions, in, out] to [group, out, in, kernel positions]
    product = op.Reshape(product, [group, len(columns), inputs, outputs])
    return op.reshape_like(op.Transpose(product, perm=[0, 3, 2, 1]), weight)


def _channels(weight: ir.Value, axis: int) -> int:
    size: Dim = (dims_of(weight) or [])[axis]
    assert isinstance(size, int), "a weight has a fixed shape"
    return size


def _seen_by_kernel(op: Builder, x: ir.Value, dy: ir.Value, window: Window) -> list[ir.Value]:
    """For each kernel position the elements of x that it was multiplied with, spatial axes last.

    Position k starts at offset ``k dilation`` of the padded x and advances by the stride, as often as dy is
    long.
    """
    axes = list(range(2, 2 + window.rank))
    if any(window.pads):
        x = op.Pad(x, [0, 0, *window.begin, 0, 0, *window.end])
    if window.kernel == [1] * window.rank and window.strides == [1] * window.rank:
        return [x]
    sizes = (dims_of(dy) or [])[2:]
    parts = []
    for position in itertools.product(*(range(k) for k in window.kernel)):
        starts = [p * d for p, d in zip(position, window.dilations, strict=True)]
        if window.known(sizes):
            reach = [(n - 1) * s + 1 for n, s in zip(sizes, window.strides, strict=True)]
            ends: ir.Value | list[int] = [a + r for a, r in zip(starts, reach, strict=True)]
        else:
            count = op.Shape(dy, start=2)
            ends = op.Add(op.Mul(op.Sub(count, [1]), window.strides), [a + 1 for a in starts])
        parts.append(op.Slice(x, starts, ends, axes, window.strides))
    return parts
