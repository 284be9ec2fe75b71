"""Caffe's lists of files: a line per HDF5 file (HDF5Data), or per image with its label (ImageData)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from onnxaccel.bounds import MESSAGE, read_text, within
from onnxaccel.data.dataset import Dataset, Joined
from onnxaccel.data.readers.folder import ImageFolder
from onnxaccel.data.readers.hdf5 import hdf5
from onnxaccel.data.spec import reader
from onnxaccel.errors import DataError

_LINE = re.compile(r"(.*\S)\s+(-?\d+)")
_ROOT = "root="


@reader("hdf5-list")
def hdf5_list(path: Path, part: str | None) -> Dataset:
    """The rows of all files, in the list's order; relative names start at the list's folder, or here."""
    files = [_found(line, path) for line in _lines(path)]
    for number, file in enumerate(files, 1):
        if not file.is_file():
            raise DataError(f"{path}: line {number}: {file}: no such file")
        _check_inside(file, path, number, path.parent, Path())
    return Joined(str(path), [hdf5(file, part) for file in files])


@reader("image-list")
def image_list(path: Path, part: str | None) -> Dataset:
    """Images and their labels; names start at the list's folder, or here, or at ``#root=FOLDER``."""
    if part is not None and not part.startswith(_ROOT):
        raise DataError(f"{path}: a list has no parts; pick a range, such as {path}#0:1000")
    files, labels = [], []
    for number, line in enumerate(_lines(path), 1):
        match = _LINE.fullmatch(line)
        if match is None or not -(2**31) <= int(match[2]) < 2**31:
            raise DataError(f"{path}: line {number} is no image and its label: {line[:80]!r}")
        files.append(Path(part.removeprefix(_ROOT), match[1]) if part else _found(match[1], path))
        labels.append(int(match[2]))
        if not files[-1].is_file():
            hint = "" if part else f"; {path}#root=FOLDER says where the list's names start"
            raise DataError(f"{path}: line {number}: {files[-1]}: no such file{hint}")
        _check_inside(
            files[-1], path, number, *([Path(part.removeprefix(_ROOT))] if part else [path.parent, Path()])
        )
    return ImageFolder(str(path), files, np.array(labels, np.int64), None)


def _found(name: str, listed: Path) -> Path:
    """The file of that name, from the list's folder or, as Caffe has it, from the working directory."""
    near = listed.parent / name
    return near if near.exists() or not Path(name).exists() else Path(name)


def _check_inside(file: Path, listed: Path, number: int, *folders: Path) -> None:
    """Refuse a name that leads out of the folders that the list's names start at."""
    if not within(file, *folders):
        raise DataError(
            f"{listed}: line {number}: refused, {file} is outside the list's folder; move the list, or for "
            f"images allow it with {listed}#root=FOLDER (#root=/ allows any)"
        )


def _lines(path: Path) -> list[str]:
    text = read_text(path, DataError, MESSAGE)
    return [line.strip() for line in text.splitlines() if line.strip()]
