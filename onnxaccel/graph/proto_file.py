"""Writing a ModelProto to a file one weight at a time, so that the weights are never in memory twice.

protobuf serialises a message whole: a ModelProto beside its bytes takes two copies of the weights. Fields may
stand in any order though (https://protobuf.dev/programming-guides/encoding/), so the initializers can be
written by hand behind the rest of the graph.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

_LARGE = 2**20
"""Bytes from which on a weight is written by itself."""

_GRAPH, _INITIALIZER, _RAW_DATA = (bytes([number << 3 | 2]) for number in (7, 5, 9))
"""Keys of ModelProto.graph, GraphProto.initializer and TensorProto.raw_data, with wire type LEN."""


def write_proto(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path`` as a ModelProto with all weights inside, at most 2 GiB of them."""
    initializers = model.graph.initializers
    in_order = dict(initializers)
    large = {name: v.const_value for name, v in in_order.items() if _is_large(v.const_value)}
    for name in large:
        del initializers[name]
    try:
        proto = ir.to_proto(ir.external_data.load_to_model(model))
    finally:
        initializers.clear()
        initializers.update(in_order)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [(tensor, _head(name, tensor)) for name, tensor in large.items() if tensor is not None]
    total = len(graph) + sum(len(head) + tensor.nbytes for tensor, head in heads)
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + _GRAPH + _varint(total) + graph)
        for tensor, head in heads:
            file.write(head)
            file.write(tensor.tobytes())


def _is_large(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= _LARGE


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """An initializer of a GraphProto, up to the bytes of its raw_data."""
    about = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    head = about.SerializeToString() + _RAW_DATA + _varint(tensor.nbytes)
    return _INITIALIZER + _varint(len(head) + tensor.nbytes) + head


def _varint(number: int) -> bytes:
    digits = []
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])
