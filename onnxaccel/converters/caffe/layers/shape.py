"""Layers that move elements without changing them."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxaccel.converters.caffe.builder import (
    FixedBatch,
    NetBuilder,
    axis_of,
    count,
    dims,
    enum_name,
    layer_type,
    need,
)
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
    total = _product(sizes[first:last])
    if -1 not in wanted and isinstance(_product(middle), int) and total is None and net.dynamic_batch:
        raise FixedBatch(f"{layer} states the batch size")
    if -1 not in wanted and _quotient(sizes[first:last], middle) not in (1, None):
        raise ConversionError(f"{layer}: {total} elements do not fit {wanted}")
    if -1 in wanted:
        place = wanted.index(-1)
        rest = _quotient(sizes[first:last], [d for i, d in enumerate(middle) if i != place])
        if rest == 0:
            raise ConversionError(f"{layer}: {sizes[first:last]} do not fit {wanted}")
        middle[place] = rest
    return _reshape(net, layer, x, sizes[:first], middle, sizes[last:], wanted)


@layer_type("Permute")
def permute(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The axes in the given order; those not named follow in their own."""
    order = list(layer.proto.permute_param.order)
    rank = len(dims(bottoms[0]))
    if len(set(order)) != len(order) or any(axis >= rank for axis in order):
        raise ConversionError(f"{layer}: order {order} does not fit a blob with {rank} axes")
    order += [axis for axis in range(len(dims(bottoms[0]))) if axis not in order]
    y = net.op.Transpose(bottoms[0], perm=order)
    return net.shaped(y, [dims(bottoms[0])[axis] for axis in order], layer)


@layer_type("Tile")
def tile(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The blob ``tiles`` times along ``axis``."""
    p, x = layer.proto.tile_param, bottoms[0]
    axis = axis_of(layer, p.axis, x)
    sizes = dims(x)
    repeats = [p.tiles if i == axis else 1 for i in range(len(sizes))]
    size = sizes[axis]
    sizes[axis] = size * p.tiles if isinstance(size, int) else None
    return net.shaped(net.op.Tile(x, repeats), sizes, layer)


@layer_type("Unsqueeze")
def unsqueeze(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """A new axis of size 1 at ``dim``."""
    x = bottoms[0]
    place = layer.proto.unsqueeze_param.dim
    sizes = dims(x)
    if not -len(sizes) - 1 <= place <= len(sizes):
        raise ConversionError(f"{layer}: dim {place} of a blob with {len(sizes)} axes")
    place %= len(sizes) + 1
    return net.shaped(net.op.Unsqueeze(x, [place]), [*sizes[:place], 1, *sizes[place:]], layer)


@layer_type("Crop")
def crop(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The first bottom cut to the second's size from ``axis`` on; one offset for all axes, or one each."""
    need(layer, bottoms, 2)
    p, (x, like) = layer.proto.crop_param, bottoms
    axis = axis_of(layer, p.axis, x)
    axes = list(range(axis, len(dims(x))))
    offsets = list(p.offset) or [0]
    offsets = offsets * len(axes) if len(offsets) == 1 else offsets
    if len(offsets) != len(axes) or len(dims(like)) != len(dims(x)):
        raise ConversionError(f"{layer}: offsets {offsets} do not fit axes {axes}")
    sizes = dims(like)[axis:]
    for size, offset, whole in zip(sizes, offsets, dims(x)[axis:], strict=True):
        if isinstance(size, int) and isinstance(whole, int) and offset + size > whole:
            raise ConversionError(f"{layer}: cuts {size} at {offset} out of {whole}")
    if all(isinstance(size, int) for size in sizes):
        ends = net.op.constant([o + s for o, s in zip(offsets, sizes, strict=True) if isinstance(s, int)])
    else:
        ends = net.op.Add(net.op.Shape(like, start=axis), net.op.constant(offsets))
    y = net.op.Slice(x, offsets, ends, axes)
    return net.shaped(y, [*dims(x)[:axis], *sizes], layer)


@layer_type("Pad")
def pad(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Rows above and below, columns left and right: a value, the edge, or a reflection; below 0 cuts."""
    p, x = layer.proto.pad_param, bottoms[0]
    mode = {"CONSTANT": "constant", "REPLICATE": "edge", "REFLECT": "reflect"}[enum_name(p, "pad_type")]
    value = net.op.constant(float(p.pad_value)) if mode == "constant" else None
    y = net.op.Pad(x, [0, 0, p.pad_u, p.pad_l, 0, 0, p.pad_d, p.pad_r], value, mode=mode)
    extra = (p.pad_u + p.pad_d, p.pad_l + p.pad_r)
    sizes = [n + e if isinstance(n, int) else None for n, e in zip(dims(x)[2:], extra, strict=True)]
    return net.shaped(y, [*dims(x)[:2], *sizes], layer)


@layer_type("ShuffleChannel")
def shuffle_channel(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """Channels as a matrix with a row per group, transposed."""
    x = bottoms[0]
    channels, group = count(layer, dims(x)[1:2]), layer.proto.shuffle_channel_param.group
    if not group or channels % group:
        raise ConversionError(f"{layer}: {channels} channels do not split into {group} groups")
    spatial = dims(x)[2:]
    fixed = [n for n in spatial if isinstance(n, int)]
    known = len(fixed) == len(spatial)
    fixed = fixed if known else []
    split = net.op.Reshape(x, [0, group, channels // group, *(fixed or [-1])])
    order = [0, 2, 1, *range(3, 3 + (len(spatial) if known else 1))]
    mixed = net.op.Transpose(split, perm=order)
    if known:
        y = net.op.Reshape(mixed, [0, channels, *fixed])
    else:
        y = net.op.Reshape(mixed, net.op.Shape(x))
    return net.like(y, x, layer)


@layer_type("PixelShuffle")
def pixel_shuffle(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """[N, C r^2, H, W] to [N, C, r H, r W]; the channels of one pixel fill an r x r square row by row."""
    x, factor = bottoms[0], layer.proto.pixelshuffle_param.upscale_factor
    channels = count(layer, dims(x)[1:2])
    if factor < 1 or channels % factor**2:
        raise ConversionError(f"{layer}: {channels} channels do not split into squares of side {factor}")
    y = net.op.DepthToSpace(x, blocksize=factor, mode="CRD")
    sizes = [n * factor if isinstance(n, int) else None for n in dims(x)[2:]]
    return net.shaped(y, [dims(x)[0], channels // factor**2, *sizes], layer)


@layer_type("Reduction")
def reduction(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """coeff times the sum, sum of |x|, sum of x^2 or mean over all axes from ``axis`` on."""
    p, x = layer.proto.reduction_param, bottoms[0]
    axis = axis_of(layer, p.axis, x)
    reduce = {
        "SUM": net.op.ReduceSum,
        "ASUM": net.op.ReduceL1,
        "SUMSQ": net.op.ReduceSumSquare,
        "MEAN": net.op.ReduceMean,
    }[enum_name(p, "operation")]
    y = reduce(x, list(range(axis, len(dims(x)))), keepdims=0)
    return net.shaped(net.op.Mul(y, float(p.coeff)) if p.coeff != 1 else y, dims(x)[:axis], layer)


@layer_type("ArgMax")
def argmax(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The places of the ``top_k`` largest values, as floats; of equal ones the last comes first.

    Along ``axis``, places, or with out_max_val the values instead. Without axis over all of an item:
    [N, 1, k], with out_max_val [N, 2, k], places and values.
    """
    p, x = layer.proto.argmax_param, bottoms[0]
    by_axis = p.HasField("axis")
    axis = axis_of(layer, p.axis, x) if by_axis else 1
    rows = x if by_axis or len(dims(x)) == 2 else net.op.Flatten(x, axis=1)
    size = count(layer, dims(x)[axis : axis + 1] if by_axis else dims(x)[1:])
    if not 1 <= p.top_k <= size:
        raise ConversionError(f"{layer}: top_k {p.top_k} of {size} values")
    flipped = net.op.Slice(rows, [-1], [-size - 1], [axis], [-1])  # TopK puts the first of equal ones first
    values, places = net.op.node("TopK", [flipped, [p.top_k]], outputs=2, axis=axis)
    places.type = ir.TensorType(ir.DataType.INT64)
    index = net.op.Cast(net.op.Sub(net.op.constant(size - 1), places), to=ir.DataType.FLOAT.value)
    if by_axis:
        sizes = dims(x)
        sizes[axis] = p.top_k
        return net.shaped(net.op.Identity(values if p.out_max_val else index), sizes, layer)
    parts = [index, values] if p.out_max_val else [index]
    shape = [dims(x)[0], len(parts), p.top_k, *[1] * (len(dims(x)) - 3)]
    joined = net.op.Concat(*parts, axis=1) if len(parts) > 1 else index
    return net.shaped(net.op.Reshape(joined, [0, *(n for n in shape[1:])]), shape, layer)


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
    """total / divisor where both hold the same dynamic sizes, else None; 0 where they do not divide."""
    rest, fixed = list(total), 1
    for size in divisor:
        if size in rest:
            rest.remove(size)
        elif isinstance(size, int):
            fixed *= size
        else:
            return None
    product = _product(rest)
    if not isinstance(product, int) or not fixed:
        return None
    return product // fixed if product % fixed == 0 else 0
