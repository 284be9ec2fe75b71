"""Looking through an HDF5 file before its data are read.

An HDF5 file may name others: links to their objects, datasets whose bytes lie in any file (``/etc/passwd``
would do), datasets put together from other files. And a few bytes may declare any number of values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxaccel.bounds import EXPANSION, SLACK, fits, regular
from onnxaccel.errors import AccelError

DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, AttributeError)
"""What h5py raises on a damaged file."""


def check_hdf5(path: Path, error: type[AccelError], *, whole: bool) -> None:
    """Refuse an HDF5 file that reads other files, or declares far more than it holds.

    Args:
        path: The file.
        error: What to raise.
        whole: Its datasets will be read whole, so that memory must hold them; else a chunk must fit.

    Raises:
        AccelError: As ``error``: the file is damaged or hostile.
    """
    import h5py

    regular(path, error)
    try:
        with h5py.File(path, "r") as file:
            total = sum(_checked(item, path, error, whole) for item in _datasets(file, path, error))
    except DAMAGED as reason:
        raise error(
            f"{path}: not a readable HDF5 file, damaged or truncated ({_line(reason)}); copy it again"
        ) from None
    if whole:
        fits(total, f"{path}: read whole, it", error)


def _datasets(file: Any, path: Path, error: type[AccelError]) -> list[Any]:
    """All datasets, each once; a group may hold itself."""
    import h5py

    found, pending, seen = [], [file["/"]], set()
    while pending:
        group = pending.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise error(
                    f"{path}: refused, {name!r} is a link to another file ({link.filename}); copy the data "
                    "into one file"
                )
            item = group[name] if isinstance(link, h5py.HardLink) else None
            if item is None or (address := h5py.h5o.get_info(item.id).addr) in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                pending.append(item)
            elif isinstance(item, h5py.Dataset):
                found.append(item)
    return found


def _checked(item: Any, path: Path, error: type[AccelError], whole: bool) -> int:
    """Bytes that a dataset takes in memory."""
    if item.external or item.is_virtual:
        raise error(f"{path}: refused, the data of {item.name!r} lie in other files; copy them into one file")
    nbytes, held = int(item.size or 0) * item.dtype.itemsize, item.id.get_storage_size()
    if nbytes > EXPANSION * held + SLACK:
        raise error(f"{path}: refused, {item.name!r} declares {nbytes} bytes and holds {held}")
    if item.chunks is not None and not whole:
        chunk = item.dtype.itemsize
        for size in item.chunks:
            chunk *= size
        fits(chunk, f"{path}: a chunk of {item.name!r}", error)
    return int(nbytes)


def _line(reason: BaseException) -> str:
    return " ".join(str(reason).split())[:200] or type(reason).__name__
