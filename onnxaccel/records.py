"""Dataclasses from JSON that anybody may have written: every value is of the type that its field declares."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Malformed(ValueError):
    """A JSON document is damaged, or does not have the form it should; the message says where."""


def record_of(kind: type[T], text: str | bytes) -> T:
    """The dataclass that a JSON text holds, fields by name.

    Fields that ``kind`` does not have are ignored, those that are absent take their default. Whole numbers
    stand for floats, lists for tuples.

    Raises:
        Malformed: It is no JSON, nested too deeply, or a value is absent or of another type.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"no JSON document: {error}") from None
    return record(kind, document)


def record(kind: type[T], document: object) -> T:
    """`record_of` for JSON that is parsed already."""
    found: T = _value(kind, document, "")
    return found


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _of_any(arguments, value, where)
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return _fields(kind, value, where)
    if origin is list and isinstance(value, list):
        return [_value(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_value(k, item, f"{where}[{index}]") for index, (k, item) in pairs)
    if origin is dict and isinstance(value, dict):
        return {key: _value(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise Malformed(f"{where or 'the document'} is {_short(value)}, not {getattr(kind, '__name__', kind)}")


def _of_any(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The value as the first kind of a union that it has."""
    complaint = Malformed(f"{where} is {_short(value)}")
    for kind in kinds:
        try:
            return _value(kind, value, where)
        except Malformed as error:
            complaint = error if kind is not types.NoneType else complaint
    raise complaint


def _fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise Malformed(f"{where or 'the document'} is {_short(value)}, not an object")
    hints = typing.get_type_hints(kind)
    dot = f"{where}." if where else ""
    found = {name: _value(hint, value[name], dot + name) for name, hint in hints.items() if name in value}
    if typing.is_typeddict(kind):
        needed = kind.__required_keys__
    else:
        missing = dataclasses.MISSING
        needed = {
            f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing
        }
    absent = sorted(needed - set(found))
    if absent:
        raise Malformed(f"{dot}{absent[0]} is absent")
    return kind(**found)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
