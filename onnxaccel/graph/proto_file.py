"""Writing a ModelProto to a file one weight at a time, so that the weights are never in memory twice.

protobuf serialises a message whole: a ModelProto beside its bytes takes two copies of the weights. Fields may
stand in any order though (https://protobuf.dev/programming-guides/encoding/), so the initializers can be
written by hand behind the rest of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import onnx
import onnx_ir as ir

Predicate = Callable[[ir.TensorProtocol], bool]

_LARGE = 2**20
"""Bytes from which on a weight is written by itself."""

_GRAPH, _INITIALIZER, _RAW_DATA = (bytes([number << 3 | 2]) for number in (7, 5, 9))
"""Keys of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data, with wire type LEN."""


def write_proto(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path`` as a ModelProto with all weights inside, at most 2 GiB of them."""
    with path.open("wb") as file:
        for part in serialized(model)[1]:
            file.write(part)


def serialized(model: ir.Model) -> tuple[int, Iterator[bytes]]:
    """``model`` as the bytes of a ModelProto with all weights inside: how many, then the bytes in pieces."""
    proto, large = without_large(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [(_head(name, tensor), tensor) for name, tensor in large.items()]
    total = len(graph) + sum(len(head) + tensor.nbytes for head, tensor in heads)
    start = proto.SerializeToString() + _GRAPH + _varint(total) + graph
    weights = (part for head, tensor in heads for part in (head, tensor.tobytes()))
    return len(start) + sum(len(head) + tensor.nbytes for head, tensor in heads), chain([start], weights)


def with_references(
    model: ir.Model, location: str, fits: Predicate = lambda tensor: True
) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """``model`` as a ModelProto that refers to its large weights as external data.

    Args:
        model: The model.
        location: The name of the file that would hold the weights one after the other, in the order given.
        fits: Which of the large weights are to be external data.

    Returns:
        The message, and the weights by name.
    """
    proto, large = without_large(model, fits)
    offset = 0
    for name, tensor in large.items():
        about = _about(name, tensor)
        about.data_location = onnx.TensorProto.EXTERNAL
        for key, value in ("location", location), ("offset", offset), ("length", tensor.nbytes):
            about.external_data.add(key=key, value=str(value))
        proto.graph.initializer.append(about)
        offset += tensor.nbytes
    return proto, large


def without_large(
    model: ir.Model, fits: Predicate = lambda tensor: True
) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """``model`` as a ModelProto that lacks its large initializers, and these by name."""
    initializers = model.graph.initializers
    in_order = dict(initializers)
    large = {
        name: value.const_value
        for name, value in in_order.items()
        if value.const_value is not None and _is_large(value.const_value) and fits(value.const_value)
    }
    for name in large:
        del initializers[name]
    try:
        proto = ir.to_proto(ir.external_data.load_to_model(model))
    finally:
        initializers.clear()
        initializers.update(in_order)
    return proto, large


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= _LARGE


def _about(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """An initializer of a GraphProto, up to the bytes of its raw_data."""
    head = _about(name, tensor).SerializeToString() + _RAW_DATA + _varint(tensor.nbytes)
    return _INITIALIZER + _varint(len(head) + tensor.nbytes) + head


def _varint(number: int) -> bytes:
    digits = []
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])
