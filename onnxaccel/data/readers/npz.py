"""Numpy archives: arrays x and y, or x_train, y_train, x_test, y_test."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np

from onnxaccel.bounds import BAD_ZIP, check_archive, fits, regular
from onnxaccel.data.dataset import Array, Arrays, Dataset, Named
from onnxaccel.data.spec import reader
from onnxaccel.errors import DataError

_SAMPLES = ("x", "images", "data")
_TARGETS = ("y", "labels", "label", "target")
_PARTS = ("_train", "_test", "_val")

_DAMAGED = (
    *(*BAD_ZIP, zlib.error, struct.error),
    *(MemoryError, TypeError, KeyError, SyntaxError, OverflowError, TokenError),
)
"""What numpy raises on a damaged file."""


@reader("npz")
def npz(path: Path, part: str | None) -> Dataset:
    """An archive that `numpy.savez` wrote; arrays of objects, which would be pickles, are refused.

    Further arrays with as many samples feed a model's other inputs, or all of them where there is no x.
    """

    def chosen(names: list[str]) -> tuple[str, ...]:
        others = others_of(names, part)
        x, y = names_of(names, part, path, others)
        return (x, y, *(name for name in others if name != x))

    arrays = load_arrays(path, chosen)
    (name, x), (_, y), *rest = arrays.items()
    suffix = f"_{part}" if part else ""
    others = {n.removesuffix(suffix): array for n, array in rest if array.shape[:1] == y.shape[:1]}
    if not others:
        return Arrays(str(path), images_of(x), y)
    others = {n: images_of(array) for n, array in others.items()}
    return Named(str(path), images_of(x), y, others=others, name=name.removesuffix(suffix))


def others_of(names: Iterable[str], part: str | None) -> list[str]:
    """The names of arrays that are no targets, of a part or of the whole."""
    suffix = f"_{part}" if part else ""
    known = [n for n in names if (n.endswith(suffix) if part else not n.lower().endswith(_PARTS))]
    return [n for n in known if n.lower().removesuffix(suffix) not in _TARGETS]


def load_arrays(path: Path, choose: Callable[[list[str]], Iterable[str]]) -> dict[str, Array]:
    """Arrays of a numpy file, by name.

    Args:
        path: An archive (npz), or one array (npy), whose name is "".
        choose: Gives, of all names, those of the arrays to read.

    Raises:
        DataError: It is damaged, holds objects, which would be pickles, or fits no memory.
    """
    size = regular(path, DataError)
    archived = zipfile.is_zipfile(path)
    try:
        if archived:
            check_archive(path, DataError)
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in choose(archive.files)}
        fits(size, str(path), DataError)
        return {name: np.load(path, allow_pickle=False) for name in choose([""])}
    except _DAMAGED as error:
        raise DataError(
            f"{path}: not a readable {'npz' if archived else 'npy'} file ({' '.join(str(error).split())})"
        ) from None


def names_of(
    names: Iterable[str], part: str | None, path: Path, others: Sequence[str] = ()
) -> tuple[str, str]:
    """The names of the samples and of the targets among the arrays of a file.

    Args:
        names: The names of all arrays.
        part: "train", "test" or None.
        path: The file, for messages.
        others: Arrays of which the first is the samples where none has their name.

    Raises:
        DataError: There are none.
    """
    known = {name.lower(): name for name in names}
    suffix = f"_{part}" if part else ""
    found = [
        next((known[n + suffix] for n in wanted if n + suffix in known), None)
        for wanted in (_SAMPLES, _TARGETS)
    ]
    found[0] = found[0] or next(iter(others), None)
    if found[0] is None or found[1] is None:
        hint = f"; write {path}#train or {path}#test" if part is None and "x_train" in known else ""
        missing = ("x" if found[0] is None else "y") + suffix
        raise DataError(f"{path}: no array {missing!r} in it; it holds {', '.join(known.values())}{hint}")
    return found[0], found[1]


def images_of(x: Array) -> Array:
    """Grey images [N, H, W] of bytes get their channel axis; all else is kept."""
    return x[..., None] if x.dtype == np.uint8 and x.ndim == 3 else x
