"""Files that appear whole or not at all, and scratch folders that do not outlive their process for long.

A process that is killed cannot clean up behind itself. So each scratch folder is locked by the process that
made it, a lock which ends with the process however that ends. Whoever makes the next one in the same place
first removes those that nobody holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".onnxaccel-"
"""What the names of scratch folders begin with."""


@contextlib.contextmanager
def scratch_folder(parent: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """A folder that is removed when the block ends; after a kill, by the next one made beside it.

    Args:
        parent: Where to make it; None: where temporary files go ($TMPDIR).

    Raises:
        OSError: It cannot be made.
    """
    place = Path(parent if parent is not None else tempfile.gettempdir())
    for left in place.glob(f"{PREFIX}*"):
        with _locked(left, wait=False) as nobodys:
            if nobodys:
                shutil.rmtree(left, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        try:
            with _locked(folder, wait=True):
                if folder.is_dir():  # else another process took it for one that was left behind
                    yield folder
                    return
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A scratch folder inside ``target``; the files left in it move to ``target`` when the block ends well.

    Each file is flushed to disk before it takes its final name. Of several files the alphabetically first one
    is the one that refers to the others: it is taken away before they change and comes last, so that a model
    never refers to data that is not there, or that is another one's.

    Raises:
        OSError: ``target`` is no folder, or cannot be written.
    """
    if not target.is_dir():
        raise OSError(None, f"the folder {target} does not exist")
    with scratch_folder(target) as scratch:
        yield scratch
        files = sorted(scratch.iterdir(), reverse=True)
        for file in files:
            _flush(file)
        if len(files) > 1:
            (target / files[-1].name).unlink(missing_ok=True)
        for file in files:
            os.replace(file, target / file.name)
        with contextlib.suppress(OSError):  # some file systems cannot flush a folder
            _flush(target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(folder: Path, wait: bool) -> Iterator[bool]:
    """Lock a folder; gives whether that worked: it is there, no other process holds it, locks are known."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)
