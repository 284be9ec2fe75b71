"""MNIST's IDX format (LeCun, Cortes, Burges), gzipped or not; of plain files images are read as taken."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxaccel.bounds import EXPANSION, entries, fits
from onnxaccel.data.dataset import Arrays, Dataset
from onnxaccel.data.spec import reader
from onnxaccel.data.stored import StoredRows
from onnxaccel.errors import DataError

_PREFIXES = {"train": "train", "test": "t10k"}


@reader("idx")
def idx(path: Path, part: str | None) -> Dataset:
    """A folder with images and labels, or the images file with its labels beside it."""
    base = path if path.is_dir() else path.parent
    pairs = {
        name: pair
        for name, prefix in _PREFIXES.items()
        if part in (None, name)
        and (pair := _pair(base, prefix)) is not None
        and (path.is_dir() or path == pair[0])
    }
    if not pairs:
        wanted = " or ".join([_PREFIXES[part]] if part in _PREFIXES else _PREFIXES.values())
        raise DataError(f"{path}: no pair of {wanted} images and labels (…-images-idx3-ubyte) in it")
    if len(pairs) > 1:
        raise DataError(f"{path}: has parts; write {' or '.join(f'{path}#{name}' for name in pairs)}")
    images, labels = next(iter(pairs.values()))
    x, y = _read(images, 3), _read(labels, 1)
    y = y[np.arange(len(y))]
    return Arrays(str(path), x, y, [str(digit) for digit in range(int(y.max(initial=0)) + 1)])


def _pair(folder: Path, prefix: str) -> tuple[Path, Path] | None:
    """The images and the labels of one part; an unzipped file goes before a zipped one."""
    names = [entry.name for entry in entries(folder, DataError) if entry.is_file()]
    images, labels = (
        next((n for n in names if re.fullmatch(rf"{prefix}-{kind}-ubyte(\.gz)?", n)), None)
        for kind in ("images[-.]idx3", "labels[-.]idx1")
    )
    return (folder / images, folder / labels) if images and labels else None


def _read(path: Path, rank: int) -> npt.NDArray[np.uint8] | StoredRows:
    """One file of bytes: magic 0, 0, 8, rank; then the sizes as big-endian uint32; then the data.

    Images get their channel axis.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            header = file.read(4 + 4 * rank)
            if header[:4] != bytes([0, 0, 8, rank]):
                raise DataError(
                    f"{path}: not an IDX file of {rank} dimensions of bytes (magic {header[:4].hex()})"
                )
            sizes = struct.unpack(f">{rank}I", header[4:]) if len(header) == 4 + 4 * rank else (1,)
            count = math.prod(sizes)
            if not count:
                raise DataError(f"{path}: empty, it declares sizes {list(sizes)}")
            if zipped:
                packed = path.stat().st_size
                fits(count, f"{path}: unpacked, it", DataError)
                data = file.read(count) if count <= EXPANSION * packed else b""
                have = len(data)
            else:
                have = path.stat().st_size - len(header)
    except (OSError, EOFError, MemoryError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again") from None
    if have < count:
        raise DataError(f"{path}: truncated: {have} of {count} bytes; download it again")
    shape = (*sizes, 1) if rank == 3 else sizes
    if zipped:
        return np.frombuffer(data, np.uint8).reshape(shape)
    return StoredRows(path, shape, len(header))
