"""Data SPECs: ``PATH``, ``PATH#train``, ``PATH#0:8000``, ``PATH#test#0:100``, ``sklearn:digits#0:1500``.

``LIST#root=FOLDER`` says where the names in a list of images start.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from os.path import exists, expanduser
from pathlib import Path

from onnxaccel.bounds import entries, regular
from onnxaccel.data.dataset import Dataset, Part
from onnxaccel.errors import DataError
from onnxaccel.registry import Registry

Reader = Callable[[Path, str | None], Dataset]
"""``reader(path, part) -> Dataset``; ``part`` is "train", "test", None for all there is, or "root=FOLDER"."""

reader: Registry[Reader] = Registry("data reader")
"""Readers by format: ``@reader("idx")``. `format_of` tells the format from the content."""

PARTS = ("train", "val", "test")


def open_dataset(spec: str) -> Dataset:
    """Open the data set that a SPEC names.

    Raises:
        DataError: There is no such data, it is of no format that onnxaccel reads, damaged, or empty.
    """
    name, *picks = spec.split("#")
    part = picks.pop(0) if picks and (picks[0] in PARTS or picks[0].startswith("root=")) else None
    scheme, _, rest = name.partition(":")
    if scheme == "sklearn":
        dataset = _reader("sklearn")(Path(rest), part)
    else:
        path = Path(expanduser(name))  # unlike Path's it leaves the home of nobody as it is
        if not exists(path):  # unlike Path's it is False for a name that no file can have
            raise DataError(f"{path}: no such file or folder; --data takes a path or sklearn:NAME")
        if not path.is_dir():
            regular(path, DataError)
        dataset = _reader(format_of(path))(path, part)
    for pick in picks:
        dataset = _range(dataset, pick)
    if not len(dataset):
        raise DataError(f"{spec}: the data set is empty")
    return dataset


def format_of(path: Path) -> str:
    """The name of the reader for a path, told from its content."""
    if path.is_dir():
        names = [entry.name for entry in entries(path, DataError) if not entry.name.startswith(".")]
        if any(re.search(r"[-.]idx[13]-ubyte(\.gz)?$", name) for name in names):
            return "idx"
        if any(re.fullmatch(r"(data_batch_\d|test_batch)\.bin", name) for name in names):
            return "cifar"
        for name, mark in (("lmdb", "data.mdb"), ("leveldb", "CURRENT")):
            if mark in names or any((path / below / mark).is_file() for below in names):
                return name
        if any((path / name).is_dir() for name in names):
            return "folder"
        raise DataError(
            f"{path}: neither class folders nor MNIST IDX, CIFAR-10 binary, LMDB or LevelDB files are in it"
        )
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise DataError(f"{path}: the file is empty")
    if head.startswith(b"PK\x03\x04"):
        return "npz"
    if head[:3] in (b"\0\0\x08", b"\x1f\x8b\x08"):
        return "idx"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head[16:20] == b"\xde\xc0\xef\xbe":
        return "lmdb"
    if b"\0" not in head:
        first = head.decode(errors="replace").strip().partition("\n")[0].strip()
        if re.fullmatch(r".+\.(h5|hdf5)", first):
            return "hdf5-list"
        if re.fullmatch(r"[^,]*\.\w+\s+-?\d+", first):
            return "image-list"
        if b"," in head:
            return "csv"
    raise DataError(
        f"{path}: of no data format that onnxaccel reads "
        "(folders of images, IDX, npz, csv, parquet, HDF5, CIFAR binary, LMDB, LevelDB, Caffe's file lists)"
    )


def _reader(name: str) -> Reader:
    import onnxaccel.data.readers  # registers the readers

    found = reader.get(name)
    assert found is not None, onnxaccel.data.readers
    return found


def _range(dataset: Dataset, pick: str) -> Dataset:
    match = re.fullmatch(r"(-?\d{0,18}):(-?\d{0,18})", pick)
    if match is None:
        raise DataError(
            f"{dataset.source}: #{pick} picks nothing; write #train, #test or a range such as #0:8000"
        )
    bounds = slice(*(int(text) if text else None for text in match.groups()))
    start, stop, _ = bounds.indices(len(dataset))
    return Part(dataset, start, max(start, stop))
