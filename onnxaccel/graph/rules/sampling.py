"""Operators that read tensors between their elements: GridSample, RoiAlign, DeformConv.

A position along an axis stands for a few neighbours with a weight each, its taps. The value at a point is the
sum over all combinations of taps, which makes gradients for values and positions alike.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.convolution import kernel_of
from onnxaccel.graph.rules.registry import expansion
from onnxaccel.graph.rules.window import Window

_INT64 = ir.DataType.INT64.value
_CUBIC = -0.75
"""The coefficient of cubic convolution (Keys 1981) that GridSample uses."""


@dataclass(frozen=True)
class Tap:
    """A neighbour of each of P positions: its index along the axis (int64) and its weight, each [N, P]."""

    index: ir.Value
    weight: ir.Value


@dataclass(frozen=True)
class Axis:
    """One spatial axis: its size as a float scalar, what lies beyond it, and where it is mirrored.

    Attributes:
        size: Number of elements.
        padding: "zeros", "border" or "reflection".
        low: First mirror.
        high: Second mirror.
    """

    size: ir.Value
    padding: str = "zeros"
    low: ir.Value | None = None
    high: ir.Value | None = None

    def reflected(self, op: Builder, x: ir.Value) -> ir.Value:
        """``x`` thrown back by the mirrors as often as it takes."""
        span = op.Max(op.Sub(self.high, self.low), 1e-6)
        double = op.Mul(span, 2.0)
        way = op.Mod(op.Abs(op.Sub(x, self.low)), double, fmod=1)
        return op.Add(op.Where(op.Greater(way, span), op.Sub(double, way), way), self.low)

    def tap(self, op: Builder, index: ir.Value, weight: ir.Value) -> Tap:
        """The neighbour at a whole-numbered ``index``, which may lie beyond the axis."""
        last = op.Sub(self.size, 1.0)
        if self.padding == "reflection":
            index = self.reflected(op, index)
        elif self.padding == "zeros":
            inside = op.And(op.GreaterOrEqual(index, 0.0), op.LessOrEqual(index, last))
            weight = op.Where(inside, weight, 0.0)
        index = op.Max(op.Min(index, last), 0.0)
        return Tap(op.Cast(index, to=_INT64), weight)

    def linear(self, op: Builder, x: ir.Value) -> list[Tap]:
        """The two neighbours of ``x``."""
        low = op.Floor(x)
        part = op.Sub(x, low)
        return [self.tap(op, low, op.Sub(1.0, part)), self.tap(op, op.Add(low, 1.0), part)]

    def cubic(self, op: Builder, x: ir.Value) -> list[Tap]:
        """The four neighbours of ``x``, weighted by cubic convolution."""
        low = op.Floor(x)
        t, a = op.Sub(x, low), _CUBIC

        def near(d: ir.Value) -> ir.Value:  # |d| <= 1: (a + 2) d^3 - (a + 3) d^2 + 1
            return op.Add(op.Mul(op.Sub(op.Mul(d, a + 2), a + 3), op.Mul(d, d)), 1.0)

        def far(d: ir.Value) -> ir.Value:  # 1 < |d| < 2: a d^3 - 5a d^2 + 8a d - 4a
            return op.Sub(op.Mul(op.Add(op.Mul(op.Sub(op.Mul(d, a), 5 * a), d), 8 * a), d), 4 * a)

        rest = op.Sub(1.0, t)
        weights = [far(op.Add(t, 1.0)), near(t), near(rest), far(op.Add(rest, 1.0))]
        return [self.tap(op, op.Add(low, float(k - 1)), weight) for k, weight in enumerate(weights)]

    def nearest(self, op: Builder, x: ir.Value) -> list[Tap]:
        """The element closest to ``x``."""
        index = op.Round(x)
        return [self.tap(op, index, op.Add(op.Mul(index, 0.0), 1.0))]


def read(op: Builder, x: ir.Value, taps: Sequence[Sequence[Tap]]) -> tuple[ir.Value, ir.Value]:
    """The elements of ``x``, [N, C, *spatial], at all combinations of taps, and their weights.

    Args:
        op: The builder.
        x: What is read.
        taps: For each spatial axis its taps, of P positions.

    Returns:
        Elements [N, K, P, C] and weights [N, K, P, 1] for K combinations.
    """
    rank = len(taps)
    sizes = [op.Shape(x, start=2 + axis, end=3 + axis) for axis in range(rank)]
    indices, weights = [], []
    for choice in itertools.product(*taps):
        index = choice[0].index
        for axis in range(1, rank):
            index = op.Add(op.Mul(index, sizes[axis]), choice[axis].index)
        indices.append(op.Unsqueeze(index, [1]))
        weight = functools.reduce(lambda a, b: op.Mul(a, b), [tap.weight for tap in choice])
        weights.append(op.Unsqueeze(weight, [1, 3]))
    plane = functools.reduce(lambda a, b: op.Mul(a, b), sizes)
    batch = op.Shape(x, start=0, end=1)
    first = op.Mul(op.Range(0, op.Squeeze(batch, [0]), 1), plane)  # where each sample begins
    rows = op.Reshape(x, op.Concat(op.Shape(x, start=0, end=2), plane, axis=0))
    rows = op.Reshape(
        op.Transpose(rows, perm=[0, 2, 1]), op.Concat([-1], op.Shape(x, start=1, end=2), axis=0)
    )
    place = op.Add(op.Concat(*indices, axis=1), op.Unsqueeze(first, [1, 2]))
    return op.Gather(rows, place, axis=0), op.Concat(*weights, axis=1)


def interpolate(op: Builder, x: ir.Value, taps: Sequence[Sequence[Tap]]) -> ir.Value:
    """``x``, [N, C, *spatial], at P points: [N, P, C]."""
    values, weights = read(op, x, taps)
    return op.ReduceSum(op.Mul(values, weights), [1], keepdims=0)


def _float_size(op: Builder, x: ir.Value, axis: int) -> ir.Value:
    assert x.dtype is not None
    return op.Cast(op.Squeeze(op.Shape(x, start=axis, end=axis + 1), [0]), to=x.dtype.value)


@expansion("GridSample", "com.microsoft::GridSample")
def grid_sample(op: Builder, node: ir.Node) -> ir.Value:
    """x at the points of a grid, whose coordinates -1 and 1 are the ends of each axis, last axis first."""
    x, grid = node.inputs
    assert x is not None and grid is not None
    dims = dims_of(x)
    if dims is None:
        raise UnsupportedOperator(f"{describe(node)}: the input's rank is not known; export with shapes")
    rank = len(dims) - 2
    named = attribute(node, "mode", "linear")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(named, named)
    padding, aligned = attribute(node, "padding_mode", "zeros"), attribute(node, "align_corners", 0)
    points = op.Reshape(grid, op.Concat(op.Shape(grid, start=0, end=1), [-1, rank], axis=0))
    taps = []
    for axis in range(rank):
        size = _float_size(op, x, 2 + axis)
        at = op.Add(op.Gather(points, rank - 1 - axis, axis=2), 1.0)
        if aligned:
            low, high = op.Mul(size, 0.0), op.Sub(size, 1.0)
            position = op.Mul(op.Mul(at, 0.5), high)
        else:
            low, high = op.Sub(op.Mul(size, 0.0), 0.5), op.Sub(size, 0.5)
            position = op.Sub(op.Mul(op.Mul(at, size), 0.5), 0.5)
        along = Axis(size, padding, low, high)
        if padding == "border" and mode != "cubic":
            position = op.Max(op.Min(position, op.Sub(size, 1.0)), 0.0)
        elif padding == "reflection" and mode != "cubic":
            position = along.reflected(op, position)
        taps.append(getattr(along, mode)(op, position))
    y = op.Transpose(interpolate(op, x, taps), perm=[0, 2, 1])
    spatial = op.Shape(grid, start=1, end=1 + rank)
    return op.Reshape(y, op.Concat(op.Shape(x, start=0, end=2), spatial, axis=0))


@expansion("AffineGrid")
def affine_grid(op: Builder, node: ir.Node) -> ir.Value:
    """The points theta (p, 1) for all p of a grid over [-1, 1], coordinates last axis first."""
    theta, size = node.inputs
    rank = ((dims_of(theta) if theta is not None else None) or [None, None])[1]
    if theta is None or not isinstance(rank, int):
        raise UnsupportedOperator(f"{describe(node)}: the shape of theta is not known; export with shapes")
    columns = op.node("Split", [theta], outputs=rank + 1, axis=2, num_outputs=rank + 1)  # [N, rank, 1]

    def spread(value: ir.Value) -> ir.Value:  # [N, 1, ..., 1, rank]
        return op.Reshape(value, [0, *[1] * rank, rank])

    grid = spread(columns[rank])
    for axis in range(rank):
        count = op.Gather(size, 2 + axis, axis=0)
        n, step = _as(op, count, theta), _as(op, op.Range(0, count, 1), theta)
        if attribute(node, "align_corners", 0):
            last = op.Sub(n, 1.0)  # a single point lies at 0, as in onnxruntime and torch
            at = op.Div(op.Sub(op.Mul(step, 2.0), last), op.Max(last, 1.0))
        else:
            at = op.Sub(op.Div(op.Add(op.Mul(step, 2.0), 1.0), n), 1.0)
        along = op.Reshape(at, [-1, *[1] * (rank - axis)])
        grid = op.Add(grid, op.Mul(along, spread(columns[rank - 1 - axis])))
    return grid


@expansion("RoiAlign")
def roi_align(op: Builder, node: ir.Node) -> ir.Value:
    """The mean, or the maximum, of points spread evenly over each bin of each region (He et al. 2017)."""
    x, rois, batch = node.inputs
    assert x is not None and rois is not None
    scale = float(attribute(node, "spatial_scale", 1.0))
    half = attribute(node, "coordinate_transformation_mode", "half_pixel") == "half_pixel"
    counts = [attribute(node, "output_height", 1), attribute(node, "output_width", 1)]
    ratio = attribute(node, "sampling_ratio", 0)
    scaled = op.Sub(op.Mul(rois, scale), 0.5 if half else 0.0)
    taps, number, masks, shape = [], [], [], []
    for axis, bins in enumerate(counts):
        start, end = (op.Gather(scaled, [k], axis=1) for k in (1 - axis, 3 - axis))  # [R, 1]
        length = op.Sub(end, start) if half else op.Max(op.Sub(end, start), 1.0)
        width = op.Div(length, float(bins))
        # points per bin: as given, or as many as cover the bin, which differs from region to region
        points = op.Add(op.Mul(width, 0.0), float(ratio)) if ratio else op.Max(op.Ceil(width), 1.0)
        most = op.Cast(
            op.ReduceMax(op.Concat(op.Reshape(points, [-1]), _ones(op, x), axis=0), keepdims=0), to=_INT64
        )
        step = _as(op, op.Range(0, most, 1), x)  # [M]
        within = op.Div(op.Add(step, 0.5), points)  # [R, M]
        bin_ = _as(op, op.Range(0, op.constant(bins), 1), x)
        place = op.Add(op.Unsqueeze(bin_, [0, 2]), op.Unsqueeze(within, [1]))  # [R, bins, M]
        position = op.Add(op.Unsqueeze(start, [2]), op.Mul(op.Unsqueeze(width, [2]), place))
        masks.append(op.Less(step, points))
        number.append(points)
        shape.append(op.Unsqueeze(most, [0]))
        taps.append(_roi_taps(op, position, _float_size(op, x, 2 + axis)))
    return _pooled_regions(op, node, op.Gather(x, batch, axis=0), taps, number, masks, shape, counts)


def _pooled_regions(
    op: Builder,
    node: ir.Node,
    x: ir.Value,
    taps: list[list[Tap]],
    number: list[ir.Value],
    masks: list[ir.Value],
    shape: list[ir.Value],
    counts: list[int],
) -> ir.Value:
    """Combine the taps of both axes, [R, bins, M] each, and pool over the points of each bin."""
    rows, columns = taps
    crossed: list[list[Tap]] = [[], []]
    full = op.Concat([1], [counts[0]], shape[0], [counts[1]], shape[1], axis=0)
    for axis, (own, insert) in enumerate(((rows, [3, 4]), (columns, [1, 2]))):
        for tap in own:  # [R, bins, M, bins, M], flattened to [R, P]
            crossed[axis].append(
                Tap(*(op.Flatten(op.Expand(op.Unsqueeze(v, insert), full)) for v in (tap.index, tap.weight)))
            )
    values, weights = read(op, x, crossed)
    inside = op.And(op.Unsqueeze(masks[0], [1, 3, 4]), op.Unsqueeze(masks[1], [1, 2, 3]))
    inside = op.Unsqueeze(op.Flatten(op.Expand(inside, full)), [2])  # [R, P, 1]
    weighted = op.Mul(values, weights)
    maximum = attribute(node, "mode", "avg") == "max"
    if maximum:  # of the weighted neighbours, as onnxruntime and the reference have it
        points = op.Where(inside, op.ReduceMax(weighted, [1], keepdims=0), -1e30)
    else:
        points = op.Where(inside, op.ReduceSum(weighted, [1], keepdims=0), 0.0)
    split = op.Concat([-1, counts[0]], shape[0], [counts[1]], shape[1], op.Shape(x, start=1, end=2), axis=0)
    points = op.Reshape(points, split)
    if maximum:
        y = op.ReduceMax(points, [2, 4], keepdims=0)
    else:
        total = op.Mul(*number)
        y = op.Div(op.ReduceSum(points, [2, 4], keepdims=0), op.Unsqueeze(total, [2, 3]))
    return op.Transpose(y, perm=[0, 3, 1, 2])


def _roi_taps(op: Builder, position: ir.Value, size: ir.Value) -> list[Tap]:
    """The two neighbours of a point; up to one element beyond an axis counts as its end, further off as 0."""
    inside = op.And(op.GreaterOrEqual(position, -1.0), op.LessOrEqual(position, size))
    last = op.Sub(size, 1.0)
    at = op.Min(op.Max(position, 0.0), last)
    low = op.Min(op.Floor(at), last)
    part = op.Sub(at, low)
    pairs = [(low, op.Sub(1.0, part)), (op.Min(op.Add(low, 1.0), last), part)]
    return [Tap(op.Cast(i, to=_INT64), op.Where(inside, w, 0.0)) for i, w in pairs]


def _ones(op: Builder, x: ir.Value) -> ir.Value:
    return op.CastLike(op.constant([1]), x)


def _as(op: Builder, integers: ir.Value, x: ir.Value) -> ir.Value:
    assert x.dtype is not None
    return op.Cast(integers, to=x.dtype.value)


@expansion("DeformConv")
def deform_conv(op: Builder, node: ir.Node) -> ir.Value:
    """A convolution whose kernel reads at positions moved by offsets (Dai et al. 2017, Zhu et al. 2018)."""
    x, weight, offset, bias, mask = [*node.inputs, None, None][:5]
    assert x is not None and weight is not None and offset is not None
    window = Window.of(node, kernel_of(node, weight))
    groups, rank = attribute(node, "offset_group", 1), window.rank
    positions = [list(p) for p in itertools.product(*(range(k) for k in window.kernel))]
    spatial = op.Shape(offset, start=2)
    planes = op.Reshape(
        x, op.Concat([-1], op.Div(op.Shape(x, start=1, end=2), [groups]), op.Shape(x, start=2), axis=0)
    )
    # offsets: [N, groups, kernel positions, axes, *out] to [N groups, kernel positions, axes, out]
    moves = op.Reshape(offset, op.Concat([-1, len(positions), rank], _total(op, spatial), axis=0))
    taps = []
    for axis in range(rank):
        out = _as(op, op.Range(0, op.Squeeze(op.Shape(offset, start=2 + axis, end=3 + axis), [0]), 1), x)
        base = op.Sub(op.Mul(out, float(window.strides[axis])), float(window.begin[axis]))
        along = op.Unsqueeze(base, [i for i in range(rank) if i != axis])  # over the other out axes
        base = op.Reshape(op.Expand(along, spatial), [1, 1, -1])
        steps = op.CastLike(op.constant([[[float(p[axis] * window.dilations[axis])] for p in positions]]), x)
        position = op.Add(op.Add(base, steps), op.Gather(moves, axis, axis=2))  # [N groups, kernel, out]
        taps.append(Axis(_float_size(op, x, 2 + axis)).linear(op, op.Reshape(position, [0, -1])))
    seen = interpolate(op, planes, taps)  # [N groups, kernel * out, C / groups]
    if mask is not None:
        seen = op.Mul(seen, op.Reshape(mask, op.Concat(op.Shape(seen, start=0, end=2), [1], axis=0)))
    # to [N, conv groups, C / conv groups * kernel, out], the columns of a convolution as one product
    columns = op.Reshape(
        op.Transpose(seen, perm=[0, 2, 1]),
        op.Concat(op.Shape(x, start=0, end=1), [window.group, -1], _total(op, spatial), axis=0),
    )
    filters = op.Reshape(weight, op.Concat([window.group, -1], _total(op, op.Shape(weight, start=1)), axis=0))
    y = op.Reshape(
        op.MatMul(filters, columns),
        op.Concat(op.Shape(x, start=0, end=1), op.Shape(weight, start=0, end=1), spatial, axis=0),
    )
    return y if bias is None else op.Add(y, op.Reshape(bias, [1, -1, *[1] * rank]))


def _total(op: Builder, sizes: ir.Value) -> ir.Value:
    return op.ReduceProd(sizes, keepdims=1)
