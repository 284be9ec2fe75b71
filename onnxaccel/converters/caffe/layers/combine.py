"""Layers of several bottoms or tops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import (
    FixedBatch,
    NetBuilder,
    axis_of,
    dims,
    enum_name,
    layer_type,
    need,
)
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Dim, constant_of


@layer_type("Concat")
def concat(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The bottoms side by side along ``axis``."""
    p = layer.proto.concat_param
    axis = axis_of(layer, p.concat_dim if p.HasField("concat_dim") else p.axis, bottoms[0])
    for other in bottoms[1:]:
        _check_like(layer, dims(bottoms[0]), dims(other), axis)
    known = [constant_of(b) for b in bottoms]
    if all(k is not None for k in known):  # the priors of a detector
        return net.constant(layer, np.concatenate([k for k in known if k is not None], axis))
    sizes = [dims(b)[axis] for b in bottoms]
    total: Dim = (
        sum(n for n in sizes if isinstance(n, int)) if all(isinstance(n, int) for n in sizes) else None
    )
    shape = dims(bottoms[0])
    shape[axis] = total
    return net.shaped(net.op.Concat(*bottoms, axis=axis), shape, layer)


@layer_type("Slice")
def slice_(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """Parts along ``axis``, cut at ``slice_point``, or equal ones."""
    p, x = layer.proto.slice_param, bottoms[0]
    axis = axis_of(layer, p.slice_dim if p.HasField("slice_dim") else p.axis, x)
    size = dims(x)[axis]
    if size == "batch" and net.dynamic_batch:
        raise FixedBatch(f"{layer} cuts the batch")
    if not isinstance(size, int):
        raise ConversionError(f"{layer}: cuts along an axis without a fixed size")
    parts = len(layer.tops)
    cuts = [0, *p.slice_point, size] if p.slice_point else [size // parts * i for i in range(parts + 1)]
    widths = [b - a for a, b in pairwise(cuts)]
    if len(widths) != parts or min(widths) <= 0 or sum(widths) != size:
        raise ConversionError(f"{layer}: cannot cut {size} at {list(p.slice_point)} into {parts} parts")
    tops = net.op.node("Split", [x, widths], outputs=parts, axis=axis)
    for top, width in zip(tops, widths, strict=True):
        net.shaped(top, [*dims(x)[:axis], width, *dims(x)[axis + 1 :]], layer)
    return list(tops)


@layer_type("Eltwise")
def eltwise(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The elementwise product, maximum, or sum weighted by ``coeff``."""
    p = layer.proto.eltwise_param
    operation = enum_name(p, "operation")
    if len(bottoms) < 2:
        raise ConversionError(f"{layer}: has one bottom, needs two or more")
    for other in bottoms[1:]:
        _check_like(layer, dims(bottoms[0]), dims(other))
    if p.coeff and len(p.coeff) != len(bottoms):
        raise ConversionError(f"{layer}: {len(p.coeff)} coefficients for {len(bottoms)} bottoms")
    terms = list(bottoms)
    if operation == "SUM":
        terms = [
            net.op.Mul(b, float(c)) if c != 1 else b
            for b, c in zip(terms, p.coeff or [1.0] * len(terms), strict=True)
        ]
        y = net.op.Add(*terms) if len(terms) == 2 else net.op.Sum(*terms)
    elif operation == "MAX":
        y = net.op.Max(*terms)
    else:
        y = terms[0]
        for term in terms[1:]:
            y = net.op.Mul(y, term)
    return net.like(y, bottoms[0], layer)


@layer_type("Split")
def split(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """The same blob under several names."""
    return [net.like(net.op.Identity(bottoms[0]), bottoms[0], layer) for _ in layer.tops]


@layer_type("Silence", "HDF5Output")
def silence(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """Reads its bottoms and gives nothing."""
    return []


@layer_type("Axpy")
def axpy(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """A x + y, with one factor a per channel: bottoms a [N, C, 1, 1], x and y [N, C, H, W]."""
    need(layer, bottoms, 3)
    a, x, y = bottoms
    if len(dims(a)) == 2:
        a = net.op.Unsqueeze(a, list(range(2, len(dims(x)))))
    return net.like(net.op.Add(net.op.Mul(a, x), y), x, layer)


@layer_type("Parameter")
def parameter(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """A blob of weights as a top."""
    shape = list(layer.proto.parameter_param.shape.dim)
    return net.shaped(net.op.Identity(net.parameter(layer, "weight", 0, *shape)), shape, layer)


@layer_type("BatchReindex")
def batch_reindex(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The items of the first bottom that the second names, in its order."""
    need(layer, bottoms, 2)
    index = net.op.Cast(net.op.Reshape(bottoms[1], [-1]), to=ir.DataType.INT64.value)
    y = net.op.Gather(bottoms[0], index, axis=0)
    return net.shaped(y, [dims(bottoms[1])[0], *dims(bottoms[0])[1:]], layer)


@layer_type("Filter")
def filter_(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """The items of all bottoms but the last for which the last, the selector, is not 0."""
    need(layer, bottoms, len(layer.tops) + 1)
    *blobs, selector = bottoms
    chosen = net.op.Squeeze(net.op.NonZero(net.op.Reshape(selector, [-1])), [0])
    items: Dim = f"{layer.name}_items"
    return [net.shaped(net.op.Gather(b, chosen, axis=0), [items, *dims(b)[1:]], layer) for b in blobs]


def _check_like(layer: Layer, first: list[Dim], other: list[Dim], axis: int | None = None) -> None:
    """Refuse bottoms of different shape, but for ``axis``."""
    if len(first) != len(other) or any(
        isinstance(a, int) and isinstance(b, int) and a != b
        for i, (a, b) in enumerate(zip(first, other, strict=False))
        if i != axis
    ):
        raise ConversionError(f"{layer}: its bottoms have shapes {first} and {other}, which do not fit")
