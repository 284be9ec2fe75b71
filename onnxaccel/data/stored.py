"""Files that samples are read from when they are asked for.

They are not memory-mapped: where a mapped file became shorter, or its disk fails, touching its pages kills
the process (SIGBUS). A read says what is wrong.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxaccel.errors import DataError


class StoredFile:
    """A file, open for reading at any place.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from place ``start`` on.

        Raises:
            DataError: They cannot be read, or are not there any more.
        """
        try:
            data = os.pread(self._descriptor, size, start)
            while data and len(data) < size:  # one call gives 2 GiB at most
                more = os.pread(self._descriptor, size - len(data), start + len(data))
                data = data + more if more else b""
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read ({error.strerror or error}); check the disk"
            ) from None
        if len(data) < size:
            raise self._shorter()
        return data

    def must_be_whole(self) -> None:
        """Raise `DataError` where the file became shorter; for those whose library does not tell.

        HDF5 gives zeros for what lies behind a file's end.
        """
        if os.fstat(self._descriptor).st_size < self.size:
            raise self._shorter()

    def _shorter(self) -> DataError:
        return DataError(
            f"{self.path}: became shorter while it was in use; copy it again, and go on with --resume"
        )


class StoredRows:
    """An array of bytes in a file, indexed by its first axis like numpy's.

    Args:
        path: The file, which has all of it.
        shape: The array's shape.
        start: Where in the file it begins.

    Raises:
        OSError: The file cannot be opened.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, shape: Sequence[int], start: int = 0) -> None:
        self.shape = tuple(shape)
        self.ndim = len(self.shape)
        self._file = StoredFile(path)
        self._start, self._row = start, math.prod(self.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The rows at ``indices``.

        Raises:
            DataError: They cannot be read, or are not there any more.
        """
        read, row = self._file.read, self._row
        if len(indices) and np.array_equal(indices, np.arange(indices[0], indices[0] + len(indices))):
            data = read(self._start + int(indices[0]) * row, len(indices) * row)
        else:
            data = b"".join([read(start, row) for start in (indices * row + self._start).tolist()])
        return np.frombuffer(data, np.uint8).reshape(len(indices), *self.shape[1:])
