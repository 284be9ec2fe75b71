"""HDF5 files with datasets x and y; rows are read when they are taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.data.dataset import Array, Dataset, Size, as_targets, check
from onnxaccel.data.readers.npz import images_of, names_of
from onnxaccel.data.spec import reader
from onnxaccel.data.stored import StoredFile
from onnxaccel.errors import DataError, MissingDependency
from onnxaccel.hdf5 import DAMAGED, check_hdf5


@dataclass
class Rows:
    """Two datasets of an open HDF5 file.

    Attributes:
        source: The file.
        x: The samples, an ``h5py.Dataset`` [N, ...].
        y: The targets, an ``h5py.Dataset`` [N, ...].
        file: The file again.
    """

    source: str
    x: Any
    y: Any
    file: StoredFile

    @property
    def classes(self) -> list[str] | None:
        """The format names none."""
        return None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: npt.NDArray[np.int64], size: Size | None = None) -> tuple[Array, Array]:
        """See `Dataset.take`."""
        rows, back = np.unique(indices, return_inverse=True)  # h5py takes increasing indices only
        try:
            x, y = images_of(self.x[rows][back]), as_targets(self.y[rows][back])
        except DAMAGED as error:
            raise DataError(f"{self.source}: cannot be read ({error})") from None
        self.file.must_be_whole()  # asked afterwards, since then what was read is right
        return x, y


@reader("hdf5")
def hdf5(path: Path, part: str | None) -> Dataset:
    """Datasets at the root of the file, named as in npz archives."""
    try:
        import h5py
    except ImportError:
        raise MissingDependency("h5py", "data", f"read {path}") from None
    check_hdf5(path, DataError, whole=False)
    try:
        file = h5py.File(path, "r")
        arrays = [name for name, entry in file.items() if isinstance(entry, h5py.Dataset) and entry.ndim]
        x, y = (file[name] for name in names_of(arrays, part, path))
        stored = StoredFile(path)
    except DAMAGED as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error})") from None
    check(str(path), x, y)
    return Rows(str(path), x, y, stored)
