"""LevelDB databases of Caffe's Datum."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from onnxaccel.bounds import read_text
from onnxaccel.data.dataset import Dataset
from onnxaccel.data.readers.datum import Datums
from onnxaccel.data.readers.lmdb import database_in
from onnxaccel.data.spec import reader
from onnxaccel.errors import DataError, MissingDependency

MARK = "CURRENT"
"""The file that names the newest manifest of a database folder."""


class Database:
    """The values of a LevelDB database in the order of their keys.

    Args:
        path: The database's folder.
        plyvel: The module.

    Raises:
        DataError: The database is damaged, or locked by another process.
    """

    def __init__(self, path: Path, plyvel: Any) -> None:
        self._path, self._error = path, plyvel.Error
        if not re.fullmatch(r"MANIFEST-\d+\n?", read_text(path / MARK, DataError)):
            raise self._damaged(f"{MARK} names no manifest")
        try:
            self._database = plyvel.DB(str(path), create_if_missing=False, paranoid_checks=True)
            self._keys = list(self._database.iterator(include_value=False))
        except (plyvel.Error, OSError) as error:
            raise self._damaged(error) from None

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> bytes:
        try:
            value: bytes | None = self._database.get(self._keys[index], verify_checksums=True)
        except self._error as error:
            raise self._damaged(error) from None
        if value is None:
            raise self._damaged("a key has no value")
        return value

    def _damaged(self, error: object) -> DataError:
        text = " ".join(str(error).split())
        hint = "close what else has it open, or copy it again"
        return DataError(f"{self._path}: not a readable LevelDB database ({text}); {hint}")


_open: WeakValueDictionary[Path, Database] = WeakValueDictionary()
"""Databases in use: a process can open each only once, and may take several ranges of it."""


@reader("leveldb")
def leveldb(path: Path, part: str | None) -> Dataset:
    """A database folder; or a folder of databases, whose names hold the name of their part."""
    try:
        import plyvel
    except ImportError:
        raise MissingDependency("plyvel", "caffe", f"read {path}") from None
    folder = database_in(path, part, MARK).parent.resolve()
    database = _open.get(folder)
    if database is None:
        database = _open[folder] = Database(folder, plyvel)
    return Datums(str(path), database)
