"""MaxRoiPool."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.graph.builder import Builder, attribute
from onnxaccel.graph.rules.registry import expansion

_LEAST = -1e38
"""Below every element that is pooled."""


@expansion("MaxRoiPool")
def max_roi_pool(op: Builder, node: ir.Node) -> ir.Value:
    """The maximum of each bin of each region, 0 for an empty bin (Girshick 2015); first along rows."""
    x, rois = node.inputs
    assert x is not None and x.dtype is not None
    height, width = attribute(node, "pooled_shape")
    batch, left, top, right, bottom = op.node("Split", [rois], outputs=5, axis=1, num_outputs=5)
    scale = float(attribute(node, "spatial_scale", 1.0))

    def bins(start: ir.Value, end: ir.Value, count: int, axis: int) -> ir.Value:
        """Which elements of an axis belong to each bin: [R, bins, size]."""
        first, last = (op.Floor(op.Add(op.Mul(edge, scale), 0.5)) for edge in (start, end))
        length = op.Max(op.Add(op.Sub(last, first), 1.0), 1.0)
        number = op.CastLike(op.Range(0, op.constant(count), 1), x)
        begin = op.Add(op.Floor(op.Mul(op.Div(length, float(count)), number)), first)
        stop = op.Add(op.Ceil(op.Mul(op.Div(length, float(count)), op.Add(number, 1.0))), first)
        size = op.Squeeze(op.Shape(x, start=axis, end=axis + 1), [0])
        place = op.CastLike(op.Range(0, size, 1), x)
        after = op.GreaterOrEqual(place, op.Unsqueeze(begin, [2]))
        return op.And(after, op.Less(place, op.Unsqueeze(stop, [2])))

    rows, columns = bins(top, bottom, height, 2), bins(left, right, width, 3)
    own = op.Gather(x, op.Cast(op.Squeeze(batch, [1]), to=ir.DataType.INT64.value), axis=0)  # [R, C, H, W]
    across = op.Where(op.Unsqueeze(columns, [1, 2]), op.Unsqueeze(own, [3]), _LEAST)
    across = op.ReduceMax(across, [4], keepdims=0)  # [R, C, H, width]
    down = op.Where(op.Unsqueeze(rows, [1, 4]), op.Unsqueeze(across, [2]), _LEAST)
    y = op.ReduceMax(down, [3], keepdims=0)  # [R, C, height, width]
    return op.Where(op.LessOrEqual(y, _LEAST), 0.0, y)
