"""A comparison as its JSON document, and back.

The dataclasses of `onnxaccel.compare.results` are the schema: reading walks their type hints, so that a field
is declared in one place. JSON has no NaN: a figure that is not finite is null in the document.
"""

from __future__ import annotations

import json
import math
import os
import types
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from onnxaccel.compare.results import SCHEMA, Comparison
from onnxaccel.errors import ComparisonError, OutputError
from onnxaccel.files import atomic_folder

LARGEST = 32 * 2**20
"""Bytes of a document that are read at most; ten sides with 100,000 steps each take 20 MiB."""


LARGEST_NUMBER = 1e18
"""No count, size, rate, time or loss that was measured is larger."""
SIGNED = ("seed", "training", "losses", "target_loss")
"""Fields whose numbers can be negative."""


def document(comparison: Comparison) -> dict[str, Any]:
    """The JSON document as Python values, with None for what is not finite."""
    return cast(dict[str, Any], _finite(asdict(comparison)))


def save(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write the JSON document, atomically.

    Raises:
        OutputError: It cannot be written there.
    """
    return write_text(path, json.dumps(document(comparison), allow_nan=False) + "\n")


def load(path: str | os.PathLike[str]) -> Comparison:
    """Read a document that `save` or ``onnxaccel compare --json`` wrote.

    Fields that this version does not know are left out: newer writers of this major version may have them.

    Raises:
        ComparisonError: There is no such file, or it is no comparison of this major version.
    """
    try:
        if not Path(path).is_file():
            reason = "a folder" if Path(path).is_dir() else "no such file"
            raise ComparisonError(f"{path}: {reason}; give the JSON document of `onnxaccel compare --json`")
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise ComparisonError(f"{path}: cannot be read ({error})") from None
    if len(data) > LARGEST:
        raise ComparisonError(f"{path}: larger than {LARGEST // 2**20} MiB, which no comparison is")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ComparisonError(
            f"{path}: no complete JSON document ({error}); write it again with `onnxaccel compare --json`"
        ) from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, str) or not schema.startswith("onnxaccel.comparison/"):
        raise ComparisonError(f"{path}: no comparison: its schema is {str(schema)[:60]!r}, not {SCHEMA!r}")
    if schema.partition("/")[2].partition(".")[0] != SCHEMA.partition("/")[2]:
        raise ComparisonError(
            f"{path}: written as {schema[:60]!r}, and this onnxaccel reads {SCHEMA!r}; "
            f"compare again with this version"
        )
    try:
        return cast(Comparison, _read(found, Comparison, "document"))
    except _Unfit as error:
        raise ComparisonError(f"{path}: {error}") from None


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file: whole or not at all.

    Raises:
        OutputError: It cannot be written there.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(None, "a folder of that name is there")
        with atomic_folder(target.parent) as scratch:
            (scratch / target.name).write_bytes(
                text.encode("utf-8", "replace")
            )  # half surrogates have no UTF-8
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written ({error.strerror or error}); choose another place"
        ) from None
    return target


class _Unfit(ValueError):
    """A value is not of its field's type."""


def _read(value: Any, wanted: Any, where: str) -> Any:
    """The value as the type ``wanted``: a dataclass, list, dict, union or plain type of `results`."""
    kind = get_origin(wanted) or wanted
    if kind in (Union, types.UnionType):
        options = get_args(wanted)
        if type(None) in options and (value is None or _endless(value)):
            return None
        return _first(value, [option for option in options if option is not type(None)], where)
    if is_dataclass(kind) and isinstance(value, dict):
        return _read_object(value, cast(type, kind), where)
    if kind is list and isinstance(value, list):
        (item,) = get_args(wanted)
        return [
            math.nan  # an entry that was not finite
            if item is float and (entry is None or _endless(entry))
            else _read(entry, item, f"{where}[{number}]")
            for number, entry in enumerate(value)
        ]
    if kind is dict and isinstance(value, dict):
        item = get_args(wanted)[1]
        return {key: _read(entry, item, f"{where}.{key[:40]}") for key, entry in value.items()}
    if kind in (int, float) and isinstance(value, (int, kind)) and not isinstance(value, bool):
        if _endless(value) or abs(value) > LARGEST_NUMBER:
            raise _Unfit(f"{where} is out of range")
        return kind(value)
    if kind in (str, bool) and isinstance(value, kind):
        return value
    name = "object" if is_dataclass(kind) else kind.__name__
    raise _Unfit(f"{where} is {_kind(value)}, not {name}")


def _first(value: Any, options: list[Any], where: str) -> Any:
    """The value as the first option that fits; numbers before text, whole numbers before others."""
    for option in sorted(options, key=lambda option: option is not int):
        try:
            return _read(value, option, where)
        except _Unfit as error:
            problem = error
    raise problem


def _read_object(value: dict[str, Any], kind: type, where: str) -> Any:
    hints = get_type_hints(kind)
    found = {}
    for field in fields(kind):
        if field.name in value:
            read = found[field.name] = _read(value[field.name], hints[field.name], f"{where}.{field.name}")
            numbers = read if isinstance(read, list) else [read]
            if field.name not in SIGNED and any(isinstance(n, (int, float)) and n < 0 for n in numbers):
                raise _Unfit(f"{where}.{field.name} is negative")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _Unfit(f"{where} has no {field.name!r}")
    return kind(**found)


def _endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _kind(value: Any) -> str:
    return {type(None): "null", dict: "object"}.get(type(value), type(value).__name__)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if _endless(value) else value
