"""What a file from anybody may ask for: so many bytes, and nothing outside its own folder.

Readers pass the class of their own error, and every refusal says what, where, and what to do.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from onnxaccel.errors import AccelError

MESSAGE = 2**31 - 1
"""Bytes of one protobuf message at most, protobuf's own limit."""

TEXT = 2**26
"""Bytes of a text that describes a network or a data set, at most."""

EXPANSION = 1100
"""How many times its packed size data may unpack to: deflate reaches 1032."""

SLACK = 2**24
"""Bytes that are never called too many."""


def regular(path: Path, error: type[AccelError]) -> int:
    """The size of a regular file; pipes and devices, which may never end, are refused.

    Raises:
        AccelError: As ``error``: it is none, or is not there.
    """
    try:
        if path.is_file():
            return path.stat().st_size
        what = "no regular file" if path.exists() else "no such file"
    except (OSError, ValueError) as reason:  # a loop of links; a name with a null byte
        what = f"cannot be read ({reason})"
    raise error(f"{path}: {what}; give the path of a file")


def read(path: Path, error: type[AccelError], most: int = MESSAGE) -> bytes:
    """The bytes of a file that may not have more than ``most``.

    Raises:
        AccelError: As ``error``: it is too large, no regular file, or cannot be read.
    """
    size = regular(path, error)
    if size > most:
        raise error(f"{path}: {size} bytes are more than such a file can have ({most}); is it the right one?")
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason})") from None


def read_text(path: Path, error: type[AccelError], most: int = TEXT) -> str:
    """The text of a file in UTF-8, see `read`."""
    try:
        return read(path, error, most).decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path}: is no text ({reason}); give a text file in UTF-8") from None


def within(path: Path, *folders: Path) -> bool:
    """Whether a path, links followed, lies in one of the folders."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links; a name with a null byte
        return False
    return any(real.is_relative_to(folder.resolve()) for folder in folders)


def guard(*folders: Path) -> Callable[[Path], bool]:
    """`within` for many paths: what folders they are in is found out once per folder."""
    known: dict[Path, bool] = {}

    def inside(path: Path) -> bool:
        if path.is_symlink():
            return within(path, *folders)
        if path.parent not in known:
            known[path.parent] = within(path.parent, *folders)
        return known[path.parent]

    return inside


def entries(folder: Path, error: type[AccelError], root: Path | None = None) -> list[Path]:
    """What is in a folder, sorted by name: files and folders, and links that stay inside.

    Args:
        folder: The folder.
        error: What to raise.
        root: Where links may lead to; by default ``folder``.

    Raises:
        AccelError: As ``error``: the folder cannot be read, a link leaves it, or there is a pipe or a device.
    """
    found = []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                path = Path(entry.path)
                if entry.is_symlink() and not within(path, root or folder):
                    raise error(f"{path}: refused, the link leaves its folder; copy what it points to there")
                if not entry.is_dir() and not entry.is_file():
                    raise error(f"{path}: is neither a file nor a folder; remove it")
                found.append(path)
    except OSError as reason:
        raise error(f"{folder}: cannot be read ({reason.strerror or reason})") from None
    return sorted(found)


def check_tree(folder: Path, error: type[AccelError]) -> None:
    """Refuse a folder in which, however deep, a link leaves it or there is a pipe or a device."""
    pending = [folder]
    while pending:
        found = entries(pending.pop(), error, folder)
        pending += [path for path in found if path.is_dir() and not path.is_symlink()]


def fits(nbytes: int, what: str, error: type[AccelError]) -> None:
    """Refuse what this machine's memory cannot hold, before it is allocated.

    Raises:
        AccelError: As ``error``; its message begins with ``what``.
    """
    limit = _memory()
    if nbytes > limit:
        raise error(
            f"{what} would take {nbytes / 2**30:,.1f} GiB of memory, there are {limit / 2**30:,.1f}; "
            "it is damaged or hostile, or needs a larger machine"
        )


def _memory() -> int:
    """Bytes of memory that this process can have."""
    limits = list(_limits())
    return min(limits) if limits else MESSAGE


def _limits() -> Iterator[int]:
    try:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        import resource
    except (ImportError, ValueError, OSError, AttributeError):  # not on Windows
        return
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft


def check_archive(path: Path, error: type[AccelError], expansion: int = EXPANSION) -> None:
    """Refuse a zip archive whose members leave its folder, or unpack to far more than the file holds.

    Args:
        path: The archive.
        error: What to raise.
        expansion: Largest ratio of unpacked to packed size.

    Raises:
        AccelError: As ``error``: the archive is damaged, or hostile.
    """
    size = regular(path, error)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except BAD_ZIP as reason:
        raise error(f"{path}: a damaged or truncated archive ({reason}); copy the file again") from None
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in member.filename.split("/")[0]:
            raise error(f"{path}: refused, its member {member.filename!r} points outside the archive")
    unpacked = sum(member.file_size for member in members)
    if unpacked > expansion * size + SLACK:
        raise error(f"{path}: refused, {size} bytes that unpack to {unpacked} are no saved model")
    fits(unpacked, f"{path}: unpacked, it", error)


BAD_ZIP = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, IndexError)
"""What zipfile raises on a damaged archive: also for names it cannot decode, and ways of packing it lacks."""
