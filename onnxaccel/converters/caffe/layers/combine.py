"""Layers of several bottoms or tops."""

from __future__ import annotations

from itertools import pairwise

import onnx_ir as ir

from onnxaccel.converters.caffe.builder import NetBuilder, axis_of, dims, layer_type
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Dim


@layer_type("Concat")
def concat(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> ir.Value:
    """The bottoms side by side along ``axis``."""
    p = layer.proto.concat_param
    axis = axis_of(layer, p.concat_dim if p.HasField("concat_dim") else p.axis, bottoms[0])
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
    operation = p.DESCRIPTOR.fields_by_name["operation"].enum_type.values_by_number[p.operation].name
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


@layer_type("Silence")
def silence(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """Reads its bottoms and gives nothing."""
    return []
