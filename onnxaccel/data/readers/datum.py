"""Caffe's Datum: one sample of a database, an image with its label."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from onnxaccel.data.dataset import Array, Size
from onnxaccel.data.readers.folder import decode_image
from onnxaccel.errors import DataError

_FIELDS = {"channels": 1, "height": 2, "width": 3, "data": 4, "label": 5, "float_data": 6, "encoded": 7}
"""Names and numbers of caffe.proto's message Datum."""


class Values(Protocol):
    """The values of a database in the order of their keys."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


@dataclass
class Datums:
    """A database of Datum messages.

    Images of three channels are taken to be blue, green, red, as Caffe's own tools write them, and given as
    red, green, blue like all images here; a Caffe model's preparation turns them back.

    Attributes:
        source: The database.
        values: Its serialized messages.
    """

    source: str
    values: Values

    @property
    def classes(self) -> list[str] | None:
        """The format names none."""
        return None

    def __len__(self) -> int:
        return len(self.values)

    def take(self, indices: npt.NDArray[np.int64], size: Size | None = None) -> tuple[Array, Array]:
        """See `Dataset.take`.

        Raises:
            DataError: A sample is damaged, or of another size than the first of the batch.
        """
        images, labels = [], []
        for index in indices:
            datum = self._datum(int(index))
            images.append(self._image(datum, int(index), size))
            labels.append(datum.label)
            if images[-1].shape != images[0].shape:
                raise DataError(
                    f"{self.source}: sample {index} has shape {list(images[-1].shape)}, sample {indices[0]} "
                    f"{list(images[0].shape)}; a batch takes one shape"
                )
        return np.stack(images), np.array(labels, np.int64)

    def _datum(self, index: int) -> Any:
        try:
            return datum_type().FromString(self.values[index])
        except DecodeError as error:
            raise DataError(f"{self.source}: sample {index} is no Datum ({error})") from None

    def _image(self, datum: Any, index: int, size: Size | None) -> Array:
        """A sample as [H, W, C], a view where nothing is decoded."""
        if datum.encoded:
            return decode_image(io.BytesIO(datum.data), f"{self.source}: sample {index}", size)
        flat: Array = (
            np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data, np.float32)
        )
        shape = (datum.channels, datum.height, datum.width)
        if min(shape) < 1 or shape[0] * shape[1] * shape[2] != flat.size:
            raise DataError(
                f"{self.source}: sample {index} declares {list(shape)} and holds {flat.size} values; "
                "the database is damaged"
            )
        image = flat.reshape(shape).transpose(1, 2, 0)
        return image[..., ::-1] if shape[0] == 3 else image


@cache
def datum_type() -> Any:
    """The class of the message Datum."""
    kinds = descriptor_pb2.FieldDescriptorProto
    numbers = dict.fromkeys(_FIELDS, kinds.TYPE_INT32)
    numbers |= {"data": kinds.TYPE_BYTES, "float_data": kinds.TYPE_FLOAT, "encoded": kinds.TYPE_BOOL}
    file = descriptor_pb2.FileDescriptorProto(name="datum.proto", package="onnxaccel.data", syntax="proto2")
    message = file.message_type.add(name="Datum")
    for name, number in _FIELDS.items():
        label = kinds.LABEL_REPEATED if name == "float_data" else kinds.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=numbers[name], label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnxaccel.data.Datum"))
