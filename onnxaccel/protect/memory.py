"""Folders that lie in memory, for libraries that pass models around as files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxaccel.errors import ProtectionError
from onnxaccel.files import scratch_folder

MEMORY_FOLDER = "ONNXACCEL_MEMORY_FOLDER"
"""The variable that names another place than those looked at by default."""

_IN_MEMORY = ("tmpfs", "ramfs")


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A scratch folder that lies in memory, for its owner alone; removed when the block ends.

    Raises:
        ProtectionError: There is no file system in memory that can be written.
    """
    places = [os.environ.get(name, "") for name in (MEMORY_FOLDER, "XDG_RUNTIME_DIR")]
    found = [place for place in [places[0] or "/dev/shm", places[1]] if place and _lies_in_memory(place)]
    if not found:
        raise ProtectionError(
            f"a decrypted model must not touch the disk, and {places[0] or '/dev/shm'} is no folder in "
            f"memory; mount a tmpfs, and name it in {MEMORY_FOLDER}"
        )
    with scratch_folder(max(found, key=_room)) as folder:
        yield folder


def _lies_in_memory(place: str) -> bool:
    """Whether a folder that can be written is on a file system in memory, as Linux tells its mounts."""
    if not os.access(place, os.W_OK | os.X_OK):
        return False
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    kinds = {Path(fields[1]): fields[2] for fields in map(str.split, lines)}
    path = Path(place).resolve()
    return next((kinds[p] for p in (path, *path.parents) if p in kinds), "") in _IN_MEMORY


def _room(place: str) -> int:
    state = os.statvfs(place)
    return state.f_bavail * state.f_frsize
