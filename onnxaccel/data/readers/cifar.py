"""CIFAR-10's binary format (Krizhevsky 2009): rows of a label byte and 3 x 32 x 32 pixels, read as taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxaccel.bounds import entries, read_text
from onnxaccel.data.dataset import Array, Dataset, Size
from onnxaccel.data.spec import reader
from onnxaccel.data.stored import StoredRows
from onnxaccel.errors import DataError

_PATTERNS = {"train": "data_batch_*.bin", "test": "test_batch.bin"}
_ROW = 1 + 3 * 32 * 32


@dataclass
class Batches:
    """The rows of several batch files, one after the other.

    Attributes:
        source: The folder.
        files: Rows of each file, uint8 [N, 3073].
        classes: Names of the classes, where the folder has them.
    """

    source: str
    files: list[StoredRows]
    classes: list[str] | None

    def __len__(self) -> int:
        return sum(map(len, self.files))

    def take(self, indices: npt.NDArray[np.int64], size: Size | None = None) -> tuple[Array, Array]:
        """See `Dataset.take`."""
        starts = np.cumsum([0, *map(len, self.files)])
        which = np.searchsorted(starts, indices, side="right") - 1
        rows = np.empty((len(indices), _ROW), np.uint8)
        for w in np.unique(which):
            rows[which == w] = self.files[w][indices[which == w] - starts[w]]
        return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0].astype(np.int64)


@reader("cifar")
def cifar(path: Path, part: str | None) -> Dataset:
    """A folder of data_batch_1.bin ... data_batch_5.bin and test_batch.bin."""
    there = [entry for entry in entries(path, DataError) if entry.is_file()]
    parts = {
        name: files for name, glob in _PATTERNS.items() if (files := [f for f in there if f.match(glob)])
    }
    if part is None and len(parts) > 1:
        raise DataError(f"{path}: has parts; write {' or '.join(f'{path}#{name}' for name in parts)}")
    if part is not None and part not in parts:
        raise DataError(f"{path}: has no {part} batch files")
    files = parts[part or next(iter(parts))]
    for file in files:
        if not (bytes_ := file.stat().st_size) or bytes_ % _ROW:
            raise DataError(f"{file}: truncated: {bytes_} bytes are no whole number of {_ROW}-byte rows")
    names = path / "batches.meta.txt"
    classes = read_text(names, DataError).split() if names in there else None
    rows = [StoredRows(file, (file.stat().st_size // _ROW, _ROW)) for file in files]
    return Batches(str(path), rows, classes or None)
