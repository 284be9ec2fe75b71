"""Layers that move elements without changing them."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, axis_of, dims, layer_type
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Dim


@layer_type("Flatten")
def flatten(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The axes from ``axis`` to ``end_axis`` as one."""
    p, x = layer.proto.flatten_param, bottoms[0]
    first, last = axis_of(layer, p.axis, x), axis_of(layer, p.end_axis, x)
    sizes = dims(x)
    return _reshape(
        net, layer, x, sizes[:first], [_product(sizes[first : last + 1])], sizes[last + 1 :], [-1]
    )


@layer_type("Reshape")
def reshape(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """New sizes for ``num_axes`` axes from ``axis`` on: 0 copies the size in its place, -1 is the rest."""
    p, x = layer.proto.reshape_param, bottoms[0]
    sizes = dims(x)
    first = p.axis if p.axis >= 0 else len(sizes) + 1 + p.axis
    last = len(sizes) if p.num_axes == -1 else first + p.num_axes
    if not 0 <= first <= last <= len(sizes):
        raise ConversionError(
            f"{layer}: axis {p.axis} and num_axes {p.num_axes} do not fit {len(sizes)} axes"
        )
    wanted = list(p.shape.dim)
    middle: list[Dim] = []
    for index, size in enumerate(wanted):
        if size == 0 and first + index >= len(sizes):
            raise ConversionError(f"{layer}: copies axis {first + index} of a blob with {len(sizes)} axes")
        middle.append(sizes[first + index] if size == 0 else size)
    if -1 in wanted:
        known = _product([d for d, w in zip(middle, wanted, strict=True) if w != -1])
        total = _product(sizes[first:last])
        place = wanted.index(-1)
        if isinstance(known, int) and isinstance(total, int):
            if total % known:
                raise ConversionError(f"{layer}: {total} elements do not fit {wanted}")
            middle[place] = total // known
        else:  # the batch cancels out where it stands on both sides
            middle[place] = _quotient(sizes[first:last], [d for i, d in enumerate(middle) if i != place])
    return _reshape(net, layer, x, sizes[:first], middle, sizes[last:], wanted)


@layer_type("Permute")
def permute(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The axes in the given order; those not named follow in their own."""
    order = list(layer.proto.permute_param.order)
    order += [axis for axis in range(len(dims(bottoms[0]))) if axis not in order]
    y = net.op.Transpose(bottoms[0], perm=order)
    return net.shaped(y, [dims(bottoms[0])[axis] for axis in order], layer)


def _reshape(
    net: NetBuilder,
    layer: Layer,
    x: ir.Value,
    front: list[Dim],
    middle: list[Dim],
    back: list[Dim],
    wanted: list[int],
) -> ir.Value:
    """Write Reshape; at most one size may be left to the run."""
    shape = [*front, *middle, *back]
    target = []
    for place, size in enumerate(shape):
        if isinstance(size, int):
            target.append(size)
        elif place < len(dims(x)) and dims(x)[place] == size and place <= len(front):
            target.append(0)  # copied from the same place
        else:
            target.append(-1)
    if target.count(-1) > 1:
        raise ConversionError(
            f"{layer}: more than one of the sizes {shape} is dynamic; give the input's --shape"
        )
    return net.shaped(net.op.Reshape(x, target), shape, layer)


def _product(sizes: list[Dim]) -> Dim:
    if all(isinstance(size, int) for size in sizes):
        return math.prod(size for size in sizes if isinstance(size, int))
    return None


def _quotient(total: list[Dim], divisor: list[Dim]) -> Dim:
    """total / divisor where both hold the same dynamic sizes, else None."""
    rest, fixed = list(total), 1
    for size in divisor:
        if size in rest:
            rest.remove(size)
        elif isinstance(size, int):
            fixed *= size
        else:
            return None
    product = _product(rest)
    return product // fixed if isinstance(product, int) else None
