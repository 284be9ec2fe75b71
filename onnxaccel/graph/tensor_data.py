"""Whether the tensors of a model have the bytes that they declare, and where those lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxaccel.bounds import within
from onnxaccel.errors import ModelError

_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse tensors whose data lie outside the model's folder, or are not as long as their shape says.

    Raises:
        ModelError: There is such a tensor, or the file of its data is missing.
    """
    folder = path.parent.resolve()
    for tensor in tensors(proto):
        name = f"{path}: tensor {tensor.name!r}"
        try:
            bits = ir.DataType(tensor.data_type).bitwidth if tensor.data_type != ir.DataType.STRING else 0
        except (ValueError, TypeError):
            raise ModelError(f"{name} is of a type that ONNX does not have ({tensor.data_type})") from None
        if any(size < 0 for size in tensor.dims):
            raise ModelError(f"{name} declares shape {list(tensor.dims)}; the file is damaged")
        count = math.prod(tensor.dims)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, path, folder, -(-count * bits // 8))
        elif not _whole(tensor, count, bits):
            raise ModelError(f"{name} declares shape {list(tensor.dims)} and holds other data; copy it again")


def _whole(tensor: onnx.TensorProto, count: int, bits: int) -> bool:
    """Whether a tensor holds as many values as it declares: as bytes, or in a field of their type."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) == -(-count * bits // 8)
    if not bits:
        return len(tensor.string_data) == count
    held = sum(len(getattr(tensor, name)) for name in _FIELDS)
    pairs = 2 if tensor.data_type in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) else 1
    packed = -(-count * bits // 8) if bits < 8 else count * pairs
    return held in (count * pairs, packed)


def _check_external(tensor: onnx.TensorProto, path: Path, folder: Path, nbytes: int) -> None:
    where = {entry.key: entry.value for entry in tensor.external_data}
    location = where.get("location", "")
    if not isinstance(location, str):  # protobuf's Python gives bytes where it is no UTF-8
        raise ModelError(f"{path}: tensor {tensor.name!r} lies in a file of no possible name ({location!r})")
    if not isinstance(location, str):  # protobuf gives bytes where a text is damaged
        raise ModelError(
            f"{path}: the place of tensor {tensor.name!r} is damaged ({location!r}); copy it again"
        )
    target = folder / location
    if target.is_symlink() or not within(target, folder):
        raise ModelError(f"{path}: tensor {tensor.name!r} points outside the model's folder ({location!r})")
    if not target.is_file():
        raise ModelError(f"{path}: its external data {location!r} is missing; keep both files together")
    try:
        offset, length = int(where.get("offset", 0)), int(where.get("length", nbytes))
    except ValueError:
        offset = length = -1
    if offset < 0 or length != nbytes or offset + length > target.stat().st_size:
        raise ModelError(
            f"{path}: tensor {tensor.name!r} is not in its external data {location!r}, which is damaged or "
            "truncated; copy both files again"
        )


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: weights, attributes, those of sub-graphs, functions and training graphs.

    Raises:
        ModelError: A text on the way is none.
    """
    pending = [message]
    while pending:
        message = pending.pop()
        if isinstance(message, onnx.TensorProto):
            yield message
        for field, value in message.ListFields():
            values = value if hasattr(value, "extend") else [value]
            if field.type == field.TYPE_STRING and any(isinstance(text, bytes) for text in values):
                raise ModelError(  # protobuf's Python gives bytes where a text is no UTF-8
                    f"the model is damaged: the {field.name} of a {type(message).__name__} is no text"
                )
            if field.message_type is not None:
                pending.extend(values)
