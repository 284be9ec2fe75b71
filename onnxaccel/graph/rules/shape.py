"""Operators that move elements without changing them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, constant_of, describe, dims_of
from onnxaccel.graph.rules.registry import gradient

Grads = list[ir.Value | None]


@gradient("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy in the shape of x."""
    return op.reshape_like(dy, _input(node))


@gradient("Transpose")
def transpose(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy with the inverse permutation."""
    perm = attribute(node, "perm")
    return op.Transpose(dy, perm=None if perm is None else np.argsort(perm).tolist())


@gradient("Expand")
def expand(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy summed over the broadcast axes."""
    from onnxaccel.graph.rules.broadcast import unbroadcast

    return unbroadcast(op, dy, _input(node), node.outputs[0])


@gradient("Concat")
def concat(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """dx_i = the part of dy that x_i filled."""
    axis = attribute(node, "axis")
    sizes = _sizes(op, [x for x in node.inputs if x is not None], axis)
    return list(op.node("Split", [dy, sizes], outputs=len(node.inputs), axis=axis))


@gradient("Split")
def split(op: Builder, node: ir.Node, *dys: ir.Value | None) -> ir.Value:
    """dx = the gradients of all parts, joined; zeros for parts that nothing reads."""
    parts = [dy if dy is not None else op.zeros_like(y) for dy, y in zip(dys, node.outputs, strict=True)]
    return op.Concat(*parts, axis=attribute(node, "axis", 0))


@gradient("Slice")
def slice_(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy at the places that were read, zero elsewhere."""
    x, *bounds = node.inputs
    assert x is not None
    pads = _static_pads(x, [constant_of(b) for b in bounds])
    if pads is not None:
        return op.Pad(dy, pads)
    places = op.Slice(positions(op, x), *bounds)
    return scatter_flat(op, x, places, dy)


def positions(op: Builder, x: ir.Value) -> ir.Value:
    """The position of each element in the flattened ``x``, in the shape of ``x``."""
    return op.reshape_like(op.Range(0, op.Size(x), 1), x)


def scatter_flat(op: Builder, x: ir.Value, places: ir.Value, dy: ir.Value) -> ir.Value:
    """Add ``dy`` to zeros shaped like ``x``, at flat positions ``places``."""
    zeros = op.Reshape(op.zeros_like(x), [-1])
    flat = op.ScatterElements(zeros, op.Reshape(places, [-1]), op.Reshape(dy, [-1]), axis=0, reduction="add")
    return op.reshape_like(flat, x)


def _static_pads(x: ir.Value, bounds: list[npt.NDArray[Any] | None]) -> list[int] | None:
    """What a Slice with constant bounds and unit steps cut off, as the pads of Pad; None when not static."""
    dims = dims_of(x)
    starts, ends, axes, steps = [*bounds, None, None][:4]
    if dims is None or starts is None or ends is None or (steps is not None and np.any(steps != 1)):
        return None
    before, after = [0] * len(dims), [0] * len(dims)
    chosen = axes.tolist() if axes is not None else range(len(starts))
    for axis, start, end in zip(chosen, starts.tolist(), ends.tolist(), strict=True):
        size = dims[axis]
        if not isinstance(size, int):
            return None
        start, end, _ = slice(start, end).indices(size)
        before[axis], after[axis] = start, size - max(end, start)
    return before + after


@gradient("Pad")
def pad(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """dx = dy without its border; the constant's gradient is the sum over the border."""
    x, pads, value, axes = [*node.inputs, None, None][:4]
    assert x is not None
    mode = attribute(node, "mode", "constant")
    if mode != "constant":  # the border repeats elements of x, each of which gets the sum
        return [scatter_flat(op, x, op.Pad(positions(op, x), pads, None, axes, mode=mode), dy)]
    dx = _unpad(op, dy, pads, axes)
    if value is None:
        return [dx]
    border = op.Sub(op.ReduceSum(dy, keepdims=0), op.ReduceSum(dx, keepdims=0))
    return [dx, None, op.reshape_like(border, value)]


def _unpad(op: Builder, dy: ir.Value, pads: ir.Value | None, axes: ir.Value | None) -> ir.Value:
    widths = constant_of(pads)
    if widths is None or np.any(widths < 0):  # Pad with negative widths crops, and fills what was cropped
        return op.Pad(dy, op.Neg(pads), None, axes)
    rank = len(widths) // 2
    ends = [-int(w) if w else np.iinfo(np.int64).max for w in widths[rank:]]
    return op.Slice(dy, widths[:rank].tolist(), ends, axes if axes is not None else list(range(rank)))


@gradient("DepthToSpace")
def depth_to_space(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy with the blocks moved back into channels."""
    size = attribute(node, "blocksize")
    blocks = op.SpaceToDepth(dy, blocksize=size)
    if attribute(node, "mode", "DCR") == "DCR":
        return blocks
    x = _input(node)
    channels = op.Div(op.Shape(x, start=1, end=2), [size * size])
    front, back = op.Shape(x, start=0, end=1), op.Shape(x, start=2, end=4)
    split = op.Reshape(blocks, op.Concat(front, [size * size], channels, back, axis=0))
    return op.reshape_like(op.Transpose(split, perm=[0, 2, 1, 3, 4]), x)


@gradient("SpaceToDepth")
def space_to_depth(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy with the channels moved back into blocks."""
    return op.DepthToSpace(dy, blocksize=attribute(node, "blocksize"), mode=attribute(node, "mode", "DCR"))


@gradient("Tile")
def tile(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy summed over the repetitions: in the shape [r0, d0, r1, d1, ...] over every other axis."""
    x, repeats = node.inputs
    assert x is not None
    dims = dims_of(x)
    if dims is None:
        raise UnsupportedOperator(f"{describe(node)}: the input's rank is not known; export with shapes")
    if not dims:
        return dy
    pairs = op.Concat(op.Unsqueeze(repeats, [1]), op.Unsqueeze(op.shape_of(x), [1]), axis=1)
    split = op.Reshape(dy, op.Reshape(pairs, [-1]))
    return op.ReduceSum(split, list(range(0, 2 * len(dims), 2)), keepdims=0)


@gradient("Trilu")
def trilu(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = the same triangle of dy."""
    return op.Trilu(dy, *node.inputs[1:], upper=attribute(node, "upper", 1))


@gradient("ReverseSequence")
def reverse_sequence(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy, reversed once more."""
    settings = {name: attribute(node, name) for name in ("batch_axis", "time_axis")}
    return op.ReverseSequence(dy, node.inputs[1], **settings)


def _input(node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    assert x is not None
    return x


def _sizes(op: Builder, values: list[ir.Value], axis: int) -> ir.Value:
    """The sizes of ``values`` along ``axis``, as an int64 vector."""
    static = []
    for value in values:
        dims = dims_of(value)
        if dims is not None and isinstance(dims[axis], int):
            static.append(dims[axis])
    if len(static) == len(values):
        return op.constant(static)
    parts = []
    for value in values:
        rank = len(dims_of(value) or [])
        if not rank:
            raise UnsupportedOperator(
                f"the rank of {value.name!r} is not known; export the model with shapes"
            )
        place = axis % rank
        parts.append(op.Shape(value, start=place, end=place + 1))
    return op.Concat(*parts, axis=0)
