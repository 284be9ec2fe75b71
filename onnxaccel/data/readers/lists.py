"""Caffe's lists of files: a line per HDF5 file (HDF5Data), or per image with its label (ImageData)."""

from __future__ import annotations

import re
from collections.abc import Callable
from os.path import exists, isfile  # unlike Path's they are False for names that no file can have
from pathlib import Path

import numpy as np

from onnxaccel.bounds import MESSAGE, guard, read_text
from onnxaccel.data.dataset import Dataset, Joined
from onnxaccel.data.readers.folder import ImageFolder
from onnxaccel.data.readers.hdf5 import hdf5
from onnxaccel.data.spec import reader
from onnxaccel.errors import DataError

_LINE = re.compile(r"(.*\S)\s+(-?\d{1,10})")
_ROOT = "root="


@reader("hdf5-list")
def hdf5_list(path: Path, part: str | None) -> Dataset:
    """The rows of all files, in the list's order; relative names start at the list's folder, or here."""
    files = [_found(line, path) for line in _lines(path)]
    inside = guard(path.parent, Path())
    for number, file in enumerate(files, 1):
        if not isfile(file):
            raise DataError(f"{path}: line {number}: {file}: no such file")
        _check_inside(file, path, number, inside)
    return Joined(str(path), [hdf5(file, part) for file in files])


@reader("image-list")
def image_list(path: Path, part: str | None) -> Dataset:
    """Images and their labels; names start at the list's folder, or here, or at ``#root=FOLDER``."""
    if part is not None and not part.startswith(_ROOT):
        raise DataError(f"{path}: a list has no parts; pick a range, such as {path}#0:1000")
    root = Path(part.removeprefix(_ROOT)) if part else None
    inside = guard(root) if root is not None else guard(path.parent, Path())
    files, labels = [], []
    for number, line in enumerate(_lines(path), 1):
        match = _LINE.fullmatch(line)
        if match is None or not -(2**31) <= int(match[2]) < 2**31:
            raise DataError(f"{path}: line {number} is no image and its label: {line[:80]!r}")
        files.append(root / match[1] if root is not None else _found(match[1], path))
        labels.append(int(match[2]))
        if not isfile(files[-1]):
            hint = "" if part else f"; {path}#root=FOLDER says where the list's names start"
            raise DataError(f"{path}: line {number}: {files[-1]}: no such file{hint}")
        _check_inside(files[-1], path, number, inside)
    return ImageFolder(str(path), files, np.array(labels, np.int64), None)


def _found(name: str, listed: Path) -> Path:
    """The file of that name, from the list's folder or, as Caffe has it, from the working directory."""
    near = listed.parent / name
    return near if exists(near) or not exists(name) else Path(name)


def _check_inside(file: Path, listed: Path, number: int, inside: Callable[[Path], bool]) -> None:
    """Refuse a name that leads out of the folders that the list's names start at."""
    if not inside(file):
        raise DataError(
            f"{listed}: line {number}: refused, {file} is outside the list's folder; move the list, or for "
            f"images allow it with {listed}#root=FOLDER (#root=/ allows any)"
        )


def _lines(path: Path) -> list[str]:
    text = read_text(path, DataError, MESSAGE)
    return [line.strip() for line in text.splitlines() if line.strip()]
