"""Convolution in 1, 2 and 3 dimensions."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of, estimated_size
from onnxaccel.graph.rules.convolution_weight import weight_gradient
from onnxaccel.graph.rules.registry import gradient
from onnxaccel.graph.rules.window import Window

Grads = list[ir.Value | None]

WASTE = 1.25
"""How many times a ConvTranspose's products a convolution may compute in its place: as often as x has
elements, not dy, which has fewer where there is no padding."""


@gradient("Conv")
def conv(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """y = W * x + b: dx = the transposed convolution of dy, dW = x correlated with dy, db = sum of dy."""
    x, weight = node.inputs[:2]
    assert x is not None and weight is not None
    window = Window.of(node, kernel_of(node, weight))
    db = op.ReduceSum(dy, [0, *range(2, 2 + window.rank)], keepdims=0)
    return [_input_gradient(op, x, weight, dy, window), weight_gradient(op, x, weight, dy, window), db]


def kernel_of(node: ir.Node, weight: ir.Value) -> list[int]:
    """The kernel's size, from the attribute or from the weight."""
    kernel = attribute(node, "kernel_shape") or [d for d in (dims_of(weight) or [])[2:] if isinstance(d, int)]
    if not kernel:
        raise UnsupportedOperator(
            f"{describe(node)}: the kernel's size is not known; export the model with shapes"
        )
    return list(kernel)


def _input_gradient(op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, window: Window) -> ir.Value:
    """The transposed convolution, in the size of x; on CUDA it is cuDNN's own gradient of the input."""
    sizes, counts = (dims_of(x) or [])[2:], (dims_of(dy) or [])[2:]
    settings: dict[str, Any] = {
        "kernel_shape": window.kernel,
        "strides": window.strides,
        "dilations": window.dilations,
        "group": window.group,
    }
    if window.known(sizes) and window.known(counts):
        if op.device == "cpu" and _convolves(window) and math.prod(sizes) <= WASTE * math.prod(counts):
            return _convolve_flipped(op, weight, dy, window)
        # the rows that no window reached are output_padding
        missed = [
            n + p + q - e - s * (m - 1)
            for n, m, p, q, e, s in zip(
                sizes, counts, window.begin, window.end, window.extent, window.strides, strict=True
            )
        ]
        return op.ConvTranspose(dy, weight, pads=window.pads, output_padding=missed, **settings)
    return fit(op, op.ConvTranspose(dy, weight, **settings), x, dy, window)


def _convolves(window: Window) -> bool:
    """Whether the input gradient can be a convolution: one group, stride 1, no padding beyond the kernel.

    It is the faster form: onnxruntime multiplies a ConvTranspose image by image, so that small images make
    thin products. Flipping costs a pass over the weight, or, where that is large, over the images.
    """
    within = all(e - 1 >= max(p, q) for p, q, e in zip(window.begin, window.end, window.extent, strict=True))
    return window.group == 1 and window.strides == [1] * window.rank and within


def _flips_weight(weight: ir.Value, dy: ir.Value) -> bool:
    """Whether to flip the weight, being no larger than the images, or else the images."""
    return estimated_size(weight) <= estimated_size(dy)


def _convolve_flipped(op: Builder, weight: ir.Value, dy: ir.Value, window: Window) -> ir.Value:
    """dx = dy * flip(W'), W' being W with its channel axes swapped; or, the same, flip(flip(dy) * W')."""
    spatial = list(range(2, 2 + window.rank))
    reach = [e - 1 for e in window.extent]
    before = [r - p for r, p in zip(reach, window.begin, strict=True)]
    after = [r - q for r, q in zip(reach, window.end, strict=True)]
    swapped = op.Transpose(weight, perm=[1, 0, *spatial])
    settings = {"kernel_shape": window.kernel, "dilations": window.dilations}
    if _flips_weight(weight, dy):
        return op.Conv(dy, _flip(op, swapped, spatial), pads=before + after, **settings)
    return _flip(op, op.Conv(_flip(op, dy, spatial), swapped, pads=after + before, **settings), spatial)


def _flip(op: Builder, x: ir.Value, axes: list[int]) -> ir.Value:
    """Reverse the order along ``axes``."""
    if all(size == 1 for size in (dims_of(x) or [None] * (max(axes) + 1))[min(axes) :]):
        return x
    last = [-(1 << 31)] * len(axes)
    flipped = op.Slice(x, [-1] * len(axes), last, axes, [-1] * len(axes))
    flipped.shape = x.shape
    return flipped


def fit(op: Builder, spread: ir.Value, x: ir.Value, dy: ir.Value, window: Window) -> ir.Value:
    """Bring what windows were spread over back to the plane of x.

    ``spread`` covers the padded x as far as windows reach: ``stride (count - 1) + extent`` per axis. The
    padding is cut off, and zeros fill what no window reached.
    """
    axes = list(range(2, 2 + window.rank))
    sizes, counts = (dims_of(x) or [])[2:], (dims_of(dy) or [])[2:]
    if window.known(sizes) and window.known(counts):
        covered = [s * (m - 1) + e for s, m, e in zip(window.strides, counts, window.extent, strict=True)]
        ends = [min(p + n, c) for p, n, c in zip(window.begin, sizes, covered, strict=True)]
        if any(window.begin) or ends != covered:
            spread = op.Slice(spread, window.begin, ends, axes)
        return extend(op, spread, [p + n - e for p, n, e in zip(window.begin, sizes, ends, strict=True)])
    begin = [-p for p in window.begin]
    end = op.Sub(op.Add(op.Shape(x, start=2), window.begin), op.Shape(spread, start=2))
    return op.Pad(spread, op.Concat(begin, end, axis=0), None, axes)


def extend(op: Builder, x: ir.Value, amounts: list[int]) -> ir.Value:
    """Zeros after the end of each spatial axis; joining them on is several times faster than Pad on CPU."""
    for axis, amount in enumerate(amounts, start=2):
        if amount:
            shape = op.Concat(op.Shape(x, start=0, end=axis), [amount], op.Shape(x, start=axis + 1), axis=0)
            x = op.Concat(x, op.zeros(shape, x), axis=axis)
    return x
