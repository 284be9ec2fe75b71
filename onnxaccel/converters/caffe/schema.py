"""Caffe's messages, as classes of the installed protobuf.

The schema is caffe.proto; the compiled descriptor set beside it loads with any version of protobuf.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from onnxaccel.errors import ConversionError


@cache
def _pool() -> Any:
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(
        resources.files("onnxaccel.converters.caffe").joinpath("caffe.desc").read_bytes()
    )
    for file in files.file:
        pool.Add(file)
    return pool


def message(name: str) -> Any:
    """The class of the message ``name``, for instance "NetParameter"."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"onnxaccel.caffe.{name}"))


def parse_text(text: str, name: str, source: str) -> Any:
    """Parse a prototxt.

    Raises:
        ConversionError: A syntax error or an unknown field, with line and column.
    """
    try:
        return text_format.Parse(text, message(name)())
    except (text_format.ParseError, ValueError, RecursionError) as error:
        raise ConversionError(f"{source}:{error}; a field of a Caffe fork may be unknown here") from None


def parse_binary(data: bytes, name: str, source: str) -> Any:
    """Parse a binary message.

    Raises:
        ConversionError: It is damaged or truncated.
    """
    try:
        return message(name).FromString(data)
    except DecodeError as error:
        raise ConversionError(f"{source}: damaged or truncated ({error}); copy the file again") from None
