"""Pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.convolution import extend, fit
from onnxaccel.graph.rules.registry import gradient
from onnxaccel.graph.rules.window import Window


@gradient("GlobalAveragePool")
def global_average_pool(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy / count, broadcast over the spatial axes."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None and dy.dtype is not None
    count = op.Cast(op.Div(op.Size(x), op.Size(y)), to=dy.dtype.value)
    return op.expand_like(op.Div(dy, count), x)


@gradient("MaxPool")
def max_pool(op: Builder, node: ir.Node, dy: ir.Value, dindices: ir.Value | None = None) -> ir.Value:
    """dx = dy at the maximum of each window.

    Windows that tile the input need no indices: the places that equal the enlarged y are the maxima. Where
    several elements of a window tie, they share dy equally, the mean of the subgradients that name one of
    them.
    """
    x = node.inputs[0]
    assert x is not None
    window = Window.of(node, attribute(node, "kernel_shape"))
    if _tiles(x, node.outputs[0], window) and len(node.outputs) == 1:
        return _tiled_max_pool(op, x, node.outputs[0], dy, window)
    return _indexed_max_pool(op, x, node, dy)


def _tiles(x: ir.Value, y: ir.Value, window: Window) -> bool:
    """Whether windows stand side by side on a plane of known size, without padding, each of them whole."""
    sizes, pooled = (dims_of(x) or [])[2:], (dims_of(y) or [])[2:]
    return (
        window.rank == 2
        and window.strides == window.kernel
        and not any(window.pads)
        and window.dilations == [1, 1]
        and all(isinstance(n, int) for n in sizes)
        and pooled == [n // k for n, k in zip(sizes, window.kernel, strict=True) if isinstance(n, int)]
    )


def _tiled_max_pool(op: Builder, x: ir.Value, y: ir.Value, dy: ir.Value, window: Window) -> ir.Value:
    """``mask = (x == up(y))``, ``dx = mask * up(dy / ties)``; zeros for the edge that no window reached."""
    sizes = [int(n) for n in (dims_of(x) or [])[2:] if isinstance(n, int)]
    covered = [n - n % k for n, k in zip(sizes, window.kernel, strict=True)]
    reached = op.Slice(x, [0, 0], covered, [2, 3]) if covered != sizes else x
    # y is nowhere less than the x of its window, so x - y is negative everywhere but at a maximum
    mask = op.indicator(op.Sub(reached, _enlarge(op, y, window)), inclusive=True)
    ties = op.AveragePool(mask, kernel_shape=window.kernel, strides=window.strides)
    share = op.Div(dy, op.Mul(ties, float(np.prod(window.kernel))))
    dx = op.Mul(mask, _enlarge(op, share, window))
    return extend(op, dx, [n - c for n, c in zip(sizes, covered, strict=True)])


def _enlarge(op: Builder, values: ir.Value, window: Window) -> ir.Value:
    """Each value repeated over the window it was pooled from, for windows that tile the plane."""
    return op.Resize(
        values,
        None,
        np.array([1.0, 1.0, *window.kernel], np.float32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _indexed_max_pool(op: Builder, x: ir.Value, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dy added to zeros at MaxPool's Indices, which are positions in the flattened x."""
    if attribute(node, "storage_order", 0):
        raise UnsupportedOperator(f"{describe(node)}: column-major storage_order has no gradient rule")
    if len(node.outputs) == 1:
        node.resize_outputs(2)
    indices = node.outputs[1]
    indices.name = indices.name or op.fresh("indices")
    indices.type = ir.TensorType(ir.DataType.INT64)
    zeros = op.Reshape(op.zeros_like(x), [-1])
    flat = op.ScatterElements(zeros, op.Reshape(indices, [-1]), op.Reshape(dy, [-1]), axis=0, reduction="add")
    return op.reshape_like(flat, x)


@gradient("AveragePool")
def average_pool(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy / count, spread over each window; count has the padding if count_include_pad is set."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    window = Window.of(node, attribute(node, "kernel_shape"))
    share = op.Div(dy, _counts(op, x, y, window, bool(attribute(node, "count_include_pad", 0))))
    if _tiles(x, y, window):
        spread = _enlarge(op, share, window)
    else:
        # each channel of each sample on its own: one input channel, one output channel
        lone = op.Reshape(share, op.Concat([-1, 1], op.Shape(share, start=2), axis=0))
        ones = _ones(x, [1, 1, *window.kernel])
        spread = op.ConvTranspose(lone, ones, strides=window.strides, dilations=window.dilations)
        spread = op.Reshape(spread, op.Concat(op.Shape(x, start=0, end=2), op.Shape(spread, start=2), axis=0))
    return fit(op, spread, x, y, window)


def _counts(op: Builder, x: ir.Value, y: ir.Value, window: Window, include_pad: bool) -> ir.Value:
    """How many elements each window averages, shaped [1, 1, ...]: ones convolved with ones.

    A window that ceil_mode adds at the end counts only what lies within the padded input.
    """
    shape = op.Concat([1, 1], op.Shape(x, start=2), axis=0)
    ones = op.Expand(_ones(x, [1]), shape)
    if include_pad:
        ones = op.Pad(ones, [0, 0, *window.begin, 0, 0, *window.end], 1.0)
    else:
        ones = op.Pad(ones, [0, 0, *window.begin, 0, 0, *window.end])
    reach = [(e - 1) for e in window.extent]
    needed = op.Add(op.Mul(op.Sub(op.Shape(y, start=2), [1]), window.strides), [r + 1 for r in reach])
    short = op.Max(op.Sub(needed, op.Shape(ones, start=2)), [0])
    zeros = [0] * (2 + window.rank) + [0, 0]
    ones = op.Pad(ones, op.Concat(zeros, short, axis=0))
    return op.Conv(
        ones,
        _ones(x, [1, 1, *window.kernel]),
        strides=window.strides,
        dilations=window.dilations,
    )


def _ones(x: ir.Value, shape: list[int]) -> npt.NDArray[Any]:
    return np.ones(shape, (x.dtype or ir.DataType.FLOAT).numpy())
