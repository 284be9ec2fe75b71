"""Looking through archives that hold programs, before torch opens them in a confined process."""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxaccel.bounds import BAD_ZIP
from onnxaccel.converters.pytorch.archive import blocked, check_archive
from onnxaccel.errors import ConversionError

_TOUCHES_FILES = re.compile(rb"\b(?:save|from_file)\b")
"""TorchScript's builtins that read or write files: aten::save and aten::from_file."""

_PICKLE_OR_ZIP = (b"PK\x03\x04", *(bytes([0x80, version]) for version in range(2, 6)))

_RAW_WEIGHTS = re.compile(r"/(?:data/)?(?:weights/weight_|data/)\d+$")

_NATIVE = (".so", ".dll", ".dylib", ".cubin", ".cpp")

_OPERATOR = re.compile(
    r"torch\.ops\.\w+\.(?:(?!__)\w+|__(?:and|or|xor|lshift|rshift)__)(?:\.(?!__)\w+)?"
    r"|torch\.(?:_sym|sym)_[a-z]\w*"
    r"|math\.[a-z]\w*"
    r"|_operator\.(?:add|sub|mul|truediv|floordiv|mod|neg|pos|pow|abs|lt|le|gt|ge|eq|ne|and_|or_|xor|not_|getitem)"
)
"""Operators that a graph may call; torch would resolve any other attribute of its modules, os.system too."""

_NAME = re.compile(r"[\w.:-]*")
"""Names, which end up in source code that torch generates and runs."""

_FREE_CALLS = frozenset(
    {"size", "stride", "storage_offset", "numel", "dim", "len", "min", "max", "abs", "isinstance"}
)
_ARITHMETIC = (
    *(
        ast.Expression,
        ast.Compare,
        ast.BoolOp,
        ast.BinOp,
        ast.UnaryOp,
        ast.Subscript,
        ast.Constant,
        ast.keyword,
    ),
    *(ast.Tuple, ast.List, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)
_ATTRIBUTES = _FREE_CALLS | {"shape", "ndim", "dtype", "device"}


def scan_torchscript(path: Path, trust_pickle: bool) -> None:
    """Refuse a TorchScript archive whose code reads or writes files.

    Its ``__setstate__`` runs while it loads, so its source is searched before torch opens it.

    Raises:
        ConversionError: The archive is damaged, hostile, or its code touches files.
    """
    check_archive(path)
    if trust_pickle:
        return
    for name, content in _members(path):
        found = _TOUCHES_FILES.search(content) if name.endswith(".py") else None
        if found:
            raise ConversionError(
                f"{path}: refused, its code ({name}) calls {found[0].decode()!r}, which touches files; "
                f"pass --trust-pickle if you trust whoever made the file"
            )


def scan_exported_program(path: Path, trust_pickle: bool) -> None:
    """Refuse a .pt2 archive that holds anything but a graph, weights and example inputs.

    ``torch.export.load`` unpickles members without limits when the limited way fails, rebuilds custom
    objects, resolves any attribute of torch as an operator, and evaluates shapes and guards as Python.

    Raises:
        ConversionError: The archive is damaged, or would run code.
    """
    check_archive(path)
    if trust_pickle:
        return
    for name, content in _members(path):
        if "custom_obj" in name or "opaque_obj" in name:
            raise ConversionError(
                f"{path}: refused, it holds a custom object ({name}), which runs code to load"
            )
        if name.endswith(_NATIVE) or "/aotinductor/" in name:
            raise ConversionError(
                f"{path}: refused, it holds compiled code ({name}); export the module again"
            )
        if content.startswith(_PICKLE_OR_ZIP):
            _scan_pickle(path, name, content)
        elif name.endswith(".json"):
            _scan_json(path, name, content)


def _members(path: Path) -> list[tuple[str, bytes]]:
    """Members that are not raw weights, with their content."""
    with zipfile.ZipFile(path) as archive:
        try:
            return [
                (name, archive.read(name))
                for name in archive.namelist()
                if not _RAW_WEIGHTS.search(name) or _opens(archive, name)
            ]
        except (*BAD_ZIP, zlib.error) as error:
            raise ConversionError(f"{path}: a damaged archive ({error}); copy the file again") from None


def _opens(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether a member that passes for raw weights opens like a pickle or an archive."""
    with archive.open(name) as member:
        return member.read(4).startswith(_PICKLE_OR_ZIP)


def _scan_pickle(path: Path, name: str, content: bytes) -> None:
    import torch

    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConversionError(
            f"{path}: refused, its member {name} would run code when loaded ({blocked(error)}); "
            f"pass --trust-pickle if you trust whoever made the file"
        ) from None


def _scan_json(path: Path, name: str, content: bytes) -> None:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConversionError(
            f"{path}: its member {name} is damaged ({error}); copy the file again"
        ) from None
    for key, text in _strings(document):
        if key in ("expr_str", "guards_code"):
            fine = _is_arithmetic(text)
        elif key == "target":
            fine = _OPERATOR.fullmatch(text) is not None and not _TOUCHES_FILES.search(text.encode())
        else:
            fine = not key.endswith("name") or _NAME.fullmatch(text) is not None
        if not fine:
            raise ConversionError(
                f"{path}: refused, {key} {text[:80]!r} in {name} could run code; "
                f"pass --trust-pickle if you trust whoever made the file"
            )


def _strings(item: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a JSON document, with the key it stands under."""
    pending = [(key, item)]
    while pending:
        key, item = pending.pop()
        if isinstance(item, str):
            yield key, item
        elif isinstance(item, list):
            pending.extend((key, entry) for entry in item)
        elif isinstance(item, dict):
            pending.extend(item.items())


def _is_arithmetic(text: str) -> bool:
    """Whether a shape or guard is arithmetic over sizes: "Mod(Symbol('s0'), 2)", "L['x'].size()[0] >= 2"."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.Attribute):
        return node.attr in _ATTRIBUTES
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return called in _FREE_CALLS or called[:1].isupper()  # sympy's classes: Symbol, Mod, Max
    return isinstance(node, _ARITHMETIC)
