"""The gradient of a convolution by its weight, in the form that is cheapest for its shape.

Timed on CPU (docs/performance.md). With channels first and everything else flattened to one axis, all forms
are the product ``dW_k = dY X_k^T``, where X_k is what kernel position k saw; they differ in what is copied.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import onnx_ir as ir

from onnxaccel.graph.builder import Builder, Dim, dims_of
from onnxaccel.graph.rules.window import Window

THIN = 16
"""Input channels below which a product per kernel position is slower than one over all positions."""

SMALL = 64
"""Channels up to which shifting both images is cheaper than cutting out what each position saw."""

WASTE = 1.5
"""How many times the products needed may be computed for the sake of shifting."""


def weight_gradient(op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, window: Window) -> ir.Value:
    """dW of ``y = W * x``, shaped like the weight."""
    spatial = range(2, 2 + window.rank)
    inputs, outputs = _channels(weight, 1), _channels(weight, 0)
    if inputs == 1 and outputs == window.group:
        return _by_channel(op, x, weight, dy, window)
    canvas = _canvas(x, dy, window) if window.group == 1 else None
    if canvas is not None and _shifts(op, inputs, outputs, window, canvas):
        return _by_shifts(op, x, weight, dy, window, canvas)
    if window.group == 1 and inputs < THIN:
        return _by_stack(op, x, weight, dy, window)
    x = op.Transpose(x, perm=[1, 0, *spatial])
    rows = op.Transpose(dy, perm=[1, 0, *spatial])
    if op.device == "cuda" or window.group > 1:
        return _by_group(op, x, weight, dy, rows, window)
    return _by_position(op, x, weight, dy, rows, window)


def _shifts(op: Builder, inputs: int, outputs: int, window: Window, canvas: _Canvas) -> bool:
    """Whether to shift both images, where that can be done.

    On CUDA a product costs little beside the copies that feed it, so that the form with fewer elements to
    copy for an image is taken: both stacks and their product, or what all kernel positions saw. (By
    arithmetic; not measured on a GPU yet, benchmarks/convolution_forms.py --ep cuda does.)
    """
    if op.device == "cpu":
        return THIN <= inputs and max(inputs, outputs) <= SMALL
    down, across = window.kernel
    shifted = (down * outputs + across * inputs) * canvas.length + down * across * inputs * outputs
    return shifted <= (down * across * inputs + inputs + outputs) * canvas.length


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


@dataclass(frozen=True)
class _Canvas:
    """Where images and gradients lie when both are flattened to rows of equal width, zeros between the rows.

    Attributes:
        width: Columns of a row: those of the image and, once, the wider of its paddings.
        length: Elements of a block, which holds one shifted copy.
        rows: For each kernel row where dy begins in its block.
        columns: For each kernel column where x begins in its block.
    """

    width: int
    length: int
    rows: list[int]
    columns: list[int]

    @classmethod
    def of(cls, plane: list[int], reached: list[int], window: Window) -> _Canvas:
        """``dy[r, c]`` meets ``x[r + a d - p, c + b d - p]`` when their begins differ by that much."""
        (top, left), (down, across) = window.begin, window.dilations
        width = max(plane[1] + max(left, window.end[1]), reached[1])
        spare = max(0, (window.kernel[1] - 1) * across - left - top * width)
        rows = [spare + a * down * width for a in range(window.kernel[0])]
        columns = [spare + top * width + left - b * across for b in range(window.kernel[1])]
        length = max(max(rows) + reached[0] * width, max(columns) + plane[0] * width)
        return cls(width, length, rows, columns)


def _by_shifts(
    op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, window: Window, canvas: _Canvas
) -> ir.Value:
    """``dW[a, b] = sum over rows r and columns c of dy[r, c] x[r + a d - p, c + b d - p]``, image by image.

    dy shifted for each kernel row against x shifted for each kernel column: a product of two stacks of three
    copies for a 3 x 3 kernel, where what all positions saw would be nine. The images are a batch of products,
    which threads share; their sum comes last.
    """
    inputs, outputs = _channels(weight, 1), _channels(weight, 0)
    lines = _shifted(op, dy, outputs, canvas.rows, canvas)
    columns = _shifted(op, x, inputs, canvas.columns, canvas)
    product = op.ReduceSum(op.MatMul(lines, op.Transpose(columns, perm=[0, 2, 1])), [0], keepdims=0)
    whole = op.Reshape(product, [outputs, window.kernel[0], inputs, window.kernel[1]])
    return op.Transpose(whole, perm=[0, 2, 1, 3])


def _shifted(op: Builder, x: ir.Value, channels: int, begins: list[int], canvas: _Canvas) -> ir.Value:
    """Copies of [N, channels, H, W], each in a block that it begins where told, as [N, rows, length]."""
    plane = _plane(x)
    assert plane is not None

    def zeros(*shape: int) -> ir.Value:
        return op.zeros(op.Concat(op.Shape(x, start=0, end=2), list(shape), axis=0), x)

    if canvas.width > plane[1]:
        x = op.Concat(x, zeros(plane[0], canvas.width - plane[1]), axis=3)
    used = plane[0] * canvas.width
    flat = op.Reshape(x, [0, channels, used])
    gaps = [begin + (canvas.length - before - used) for before, begin in itertools.pairwise(begins)]
    parts = [flat]
    for gap in gaps:
        parts += [zeros(gap), flat] if gap else [flat]
    first, last = begins[0], canvas.length - begins[-1] - used
    parts = [*([zeros(first)] if first else []), *parts, *([zeros(last)] if last else [])]
    stacked = op.Concat(*parts, axis=2) if len(parts) > 1 else flat
    return op.Reshape(stacked, [0, channels * len(begins), canvas.length])


def _canvas(x: ir.Value, dy: ir.Value, window: Window) -> _Canvas | None:
    """The canvas of `_by_shifts`, or None where that does not apply or computes much for nothing.

    It needs rows and columns of kernel positions, stride 1, and planes of known size.
    """
    plane, reached = _plane(x), _plane(dy)
    if window.rank != 2 or window.strides != [1, 1] or min(window.kernel) == 1 or not plane or not reached:
        return None
    canvas = _Canvas.of(plane, reached, window)
    return canvas if canvas.length <= WASTE * reached[0] * reached[1] else None


def _plane(x: ir.Value) -> list[int] | None:
    """The sizes of the spatial axes, or None where one is symbolic."""
    sizes = (dims_of(x) or [None])[2:]
    known = [size for size in sizes if isinstance(size, int)]
    return known if known and len(known) == len(sizes) else None


def _by_stack(op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, window: Window) -> ir.Value:
    """One product per image over all kernel positions, what they saw being stacked; then their sum."""
    inputs, outputs = _channels(weight, 1), _channels(weight, 0)
    columns = [op.Reshape(part, [0, inputs, -1]) for part in _seen_by_kernel(op, x, dy, window)]
    stacked = op.Concat(*columns, axis=1) if len(columns) > 1 else columns[0]
    rows = op.Transpose(op.Reshape(dy, [0, outputs, -1]), perm=[0, 2, 1])
    product = op.ReduceSum(op.MatMul(stacked, rows), [0], keepdims=0)
    product = op.Reshape(product, [len(columns), inputs, outputs])
    return op.reshape_like(op.Transpose(product, perm=[2, 1, 0]), weight)


def _by_group(
    op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, rows: ir.Value, window: Window
) -> ir.Value:
    """One product per group over all images and kernel positions, what they saw being stacked."""
    inputs, group = _channels(weight, 1), window.group
    outputs = _channels(weight, 0) // group
    columns = [op.Reshape(part, [group, inputs, -1]) for part in _seen_by_kernel(op, x, dy, window)]
    stacked = op.Concat(*columns, axis=1) if len(columns) > 1 else columns[0]
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
