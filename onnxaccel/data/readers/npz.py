"""Numpy archives: arrays x and y, or x_train, y_train, x_test, y_test."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from onnxaccel.data.dataset import Array, Arrays, Dataset
from onnxaccel.data.spec import reader
from onnxaccel.errors import DataError

_SAMPLES = ("x", "images", "data")
_TARGETS = ("y", "labels", "label", "target")


@reader("npz")
def npz(path: Path, part: str | None) -> Dataset:
    """An archive that `numpy.savez` wrote; arrays of objects, which would be pickles, are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            x_name, y_name = names_of(archive.files, part, path)
            x, y = archive[x_name], archive[y_name]
    except (OSError, ValueError, RuntimeError, MemoryError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable npz file ({' '.join(str(error).split())})") from None
    return Arrays(str(path), images_of(x), y)


def names_of(names: Iterable[str], part: str | None, path: Path) -> tuple[str, str]:
    """The names of the samples and of the targets among the arrays of a file.

    Raises:
        DataError: There are none.
    """
    known = {name.lower(): name for name in names}
    suffix = f"_{part}" if part else ""
    found = [
        next((known[n + suffix] for n in wanted if n + suffix in known), None)
        for wanted in (_SAMPLES, _TARGETS)
    ]
    if found[0] is None or found[1] is None:
        hint = f"; write {path}#train or {path}#test" if part is None and "x_train" in known else ""
        missing = ("x" if found[0] is None else "y") + suffix
        raise DataError(f"{path}: no array {missing!r} in it; it holds {', '.join(known.values())}{hint}")
    return found[0], found[1]


def images_of(x: Array) -> Array:
    """Grey images [N, H, W] of bytes get their channel axis; all else is kept."""
    return x[..., None] if x.dtype == np.uint8 and x.ndim == 3 else x
