"""LMDB databases of Caffe's Datum, read page by page and without liblmdb.

liblmdb trusts its files: on a truncated or damaged one it ends the process. The format is small (Chu 2011,
lmdb.h and mdb.c): a B+ tree of pages, two alternating meta pages with its root, values that do not fit a leaf
on overflow pages of their own. What Caffe writes is read: one database, no duplicate keys, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxaccel.bounds import check_tree, entries, regular
from onnxaccel.data.dataset import Dataset
from onnxaccel.data.readers.datum import Datums
from onnxaccel.data.spec import reader
from onnxaccel.data.stored import StoredFile
from onnxaccel.errors import DataError

FILE = "data.mdb"
"""The file's name inside a database folder."""

_PAGE = struct.Struct("<QHHHH")  # number, padding, flags, lower, upper
_NODE = struct.Struct("<HHHH")  # low and high half of the data's size, flags, size of the key
_META = struct.Struct("<4sIQQ")  # magic, version, address, map size
_DB = struct.Struct("<IHHQQQQQ")  # page size, flags, depth, branch, leaf and overflow pages, entries, root
_MAGIC = b"\xde\xc0\xef\xbe"
_BRANCH, _LEAF, _BIG = 1, 2, 1
_NO_ROOT = 2**64 - 1


class _Damaged(Exception):
    """A page is not what the page above it says."""


class Database:
    """The values of an LMDB database in the order of their keys; nothing is read before it is asked for.

    Args:
        path: The database's file.

    Raises:
        DataError: The file is no LMDB database, or damaged.
    """

    def __init__(self, path: Path) -> None:
        regular(path, DataError)
        try:
            self._file = StoredFile(path)
            self._page_size, root, entries = self._meta()
            places = [] if root == _NO_ROOT else list(self._leaves(root, set()))
            if len(places) != entries:
                raise _Damaged(f"{len(places)} of {entries} entries found")
        except (OSError, ValueError, struct.error, RecursionError, _Damaged) as error:
            raise DataError(f"{path}: a damaged or truncated LMDB database ({error})") from None
        self._places: npt.NDArray[np.int64] = np.array(places, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        start, size = self._places[index]
        return self._file.read(int(start), int(size))

    def _meta(self) -> tuple[int, int, int]:
        """Page size, root and number of entries, from the newer of the two meta pages."""
        found = []
        size = struct.unpack("<I", self._bytes(_PAGE.size + _META.size, 4))[0]
        if size < 256 or size > 65536 or size & (size - 1):
            raise _Damaged(f"page size {size}")
        for start in (_PAGE.size, size + _PAGE.size):
            meta = self._bytes(start, _META.size + 2 * _DB.size + 16)
            magic, version, _, _ = _META.unpack_from(meta)
            if magic != _MAGIC or version != 1:
                raise _Damaged(f"a meta page of version {version}")
            main = _DB.unpack_from(meta, _META.size + _DB.size)
            transaction = struct.unpack_from("<QQ", meta, _META.size + 2 * _DB.size)[1]
            found.append((transaction, main[7], main[6]))
        _, root, entries = max(found)
        return size, root, entries

    def _bytes(self, start: int, size: int) -> bytes:
        if start + size > self._file.size:
            raise _Damaged(f"it ends at {self._file.size}, before byte {start + size}")
        return self._file.read(start, size)

    def _leaves(self, page: int, seen: set[int]) -> Iterator[tuple[int, int]]:
        """Start and size of each value below a page, which is none of those seen before."""
        start = page * self._page_size
        if page in seen:
            raise _Damaged(f"page {page} is twice in the tree")
        seen.add(page)
        held = self._bytes(start, self._page_size)
        number, _, flags, lower, upper = _PAGE.unpack_from(held)
        ordered = _PAGE.size <= lower <= upper <= self._page_size
        if number != page or not flags & (_BRANCH | _LEAF) or not ordered:
            raise _Damaged(f"page {page} is none of the tree's")
        count = (lower - _PAGE.size) // 2
        for offset in struct.unpack_from(f"<{count}H", held, _PAGE.size):
            if not upper <= offset <= self._page_size - _NODE.size:
                raise _Damaged(f"page {page} has an entry outside it")
            low, high, third, key = _NODE.unpack_from(held, offset)
            if flags & _BRANCH:
                yield from self._leaves(low | high << 16 | third << 32, seen)
                continue
            within = offset + _NODE.size + key
            value, size, end = start + within, low | high << 16, start + self._page_size
            if third == _BIG:
                value = struct.unpack_from("<Q", held, within)[0] * self._page_size + _PAGE.size
                end = self._file.size
            elif third:
                raise _Damaged(f"page {page} holds duplicates or another database")
            if value + size > end:
                raise _Damaged(f"a value of page {page} ends outside the file")
            yield value, size


@reader("lmdb")
def lmdb(path: Path, part: str | None) -> Dataset:
    """A database folder or file; or a folder of databases, whose names hold the name of their part."""
    return Datums(str(path), Database(database_in(path, part, FILE) if path.is_dir() else path))


def database_in(path: Path, part: str | None, mark: str) -> Path:
    """The file ``mark`` of a database folder, or of the sub-folder that is the wanted part.

    Raises:
        DataError: There is no such part, or it is not said which.
    """
    check_tree(path, DataError)
    if (path / mark).is_file() and part is None:
        return path / mark
    below = [folder for folder in entries(path, DataError) if (folder / mark).is_file()]
    found = [folder for folder in below if part is not None and part in folder.name.lower()]
    if len(found) != 1:
        names = ", ".join(folder.name for folder in below) or "no other databases"
        raise DataError(f"{path}: holds {names}; give one of them, or a part that only one is named after")
    return found[0] / mark
