"""Resize, which is linear along each axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, constant_of, describe, dims_of
from onnxaccel.graph.rules.registry import gradient


@gradient("Resize")
def resize(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """Y = X times one interpolation matrix per axis: dX = dY times their transposes.

    The matrix of an axis is the identity, resized along its second axis by the same attributes, so that the
    gradient is that of whatever the runtime's Resize computes.
    """
    x, roi, scales, sizes = [*node.inputs, None, None, None][:4]
    assert x is not None
    dims, out = dims_of(x), dims_of(node.outputs[0])
    if dims is None:
        raise UnsupportedOperator(f"{describe(node)}: the input's rank is not known; export with shapes")
    for geometry in (roi, scales):
        if geometry is not None and geometry.is_graph_input():
            raise UnsupportedOperator(
                f"{describe(node)}: {geometry.name!r} is an input; roi and scales have no gradient rule"
            )
    factors = constant_of(scales)
    if factors is not None and not factors.size:
        scales = None
    rank = len(dims)
    axes = [axis % rank for axis in attribute(node, "axes") or range(rank)]
    settings = {
        name: attribute(node, name)
        for name in (
            "antialias",
            "coordinate_transformation_mode",
            "cubic_coeff_a",
            "exclude_outside",
            "mode",
            "nearest_mode",
        )
    }
    block = _blocks(node, scales)
    if block is not None and rank > 2 and axes == list(range(rank)) and block[:2] == [1, 1]:
        mean = op.AveragePool(dy, kernel_shape=block[2:], strides=block[2:])
        return op.Mul(mean, float(np.prod(block)))
    for place, axis in enumerate(axes):
        whole = settings["coordinate_transformation_mode"] != "tf_crop_and_resize"
        if whole and out is not None and isinstance(dims[axis], int) and dims[axis] == out[axis]:
            continue
        if sizes is not None and attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
            matrix = _matrix_of_ratio(op, node, x, sizes, axes, place, settings)
        else:
            matrix = _matrix(op, x, dy, axis, place, len(axes), (roi, scales, sizes), settings)
        last = [i for i in range(rank) if i != axis] + [axis]
        product = op.MatMul(op.Transpose(dy, perm=last), matrix)
        dy = op.Transpose(product, perm=np.argsort(last).tolist())
    return dy


def _blocks(node: ir.Node, scales: ir.Value | None) -> list[int] | None:
    """The sizes of the blocks that a nearest Resize by whole factors repeats elements over, or None."""
    factors = constant_of(scales)
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    nearest = attribute(node, "nearest_mode", "round_prefer_floor")
    repeats = (mode, nearest) in {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}
    if factors is None or not repeats or attribute(node, "mode", "nearest") != "nearest":
        return None
    return factors.astype(int).tolist() if np.all(factors == np.round(factors)) else None


def _matrix(
    op: Builder,
    x: ir.Value,
    dy: ir.Value,
    axis: int,
    place: int,
    count: int,
    given: tuple[ir.Value | None, ir.Value | None, ir.Value | None],
    settings: dict[str, object],
) -> ir.Value:
    """The transposed interpolation matrix of one axis, [out, in]."""
    roi, scales, sizes = given
    n = op.Shape(x, start=axis, end=axis + 1)
    square = op.ConstantOfShape(
        op.Concat(n, n, axis=0), value=ir.tensor(np.zeros(1, (x.dtype or ir.DataType.FLOAT).numpy()))
    )
    square.type = ir.TensorType(x.dtype or ir.DataType.FLOAT)

    def at(value: ir.Value, index: int) -> ir.Value:
        return op.Slice(value, [index], [index + 1], [0])

    if roi is not None and settings["coordinate_transformation_mode"] == "tf_crop_and_resize":
        kind = roi.dtype or ir.DataType.FLOAT
        zero, one = (op.constant(np.array([value], kind.numpy())) for value in (0, 1))
        roi = op.Concat(zero, at(roi, place), one, at(roi, place + count), axis=0)
    else:
        roi = None
    if scales is not None:
        scales = op.Concat(np.ones(1, np.float32), at(scales, place), axis=0)
    elif sizes is not None:
        scales, sizes = None, op.Concat(n, at(sizes, place), axis=0)
    spread = op.Resize(op.EyeLike(square), roi, scales, sizes, **settings)
    spread.type = square.type
    return op.Transpose(spread, perm=[1, 0])


def _matrix_of_ratio(
    op: Builder,
    node: ir.Node,
    x: ir.Value,
    sizes: ir.Value,
    axes: list[int],
    place: int,
    settings: dict[str, object],
) -> ir.Value:
    """`_matrix` where the sizes of all axes decide on their common scale.

    The unit matrix repeats along the other axes, where its resized form is read at 0.
    """
    lengths = [op.Shape(x, start=axis, end=axis + 1) for axis in axes]
    n = lengths[place]
    kind = x.dtype or ir.DataType.FLOAT
    unit = op.EyeLike(op.ConstantOfShape(op.Concat(n, n, axis=0)), dtype=kind.value)
    unit.type = ir.TensorType(kind)
    ones = [op.constant([1])] * len(axes)
    unit = op.Reshape(unit, op.Concat(n, [1], *ones[:place], n, *ones[place + 1 :], axis=0))
    unit = op.Expand(unit, op.Concat(n, [1], *lengths, axis=0))
    spread = op.Resize(
        unit,
        None,
        None,
        sizes,
        axes=list(range(2, 2 + len(axes))),
        keep_aspect_ratio_policy=attribute(node, "keep_aspect_ratio_policy"),
        **settings,
    )
    spread.type = unit.type
    others = [2 + i for i in range(len(axes)) if i != place]
    for axis in reversed([1, *others]):
        spread = op.Gather(spread, 0, axis=axis)
    return op.Transpose(spread, perm=[1, 0])
