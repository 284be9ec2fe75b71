"""What a command writes, and where: every write of it and its children, seen by strace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SEEN = 256
"""Bytes of each write that are looked at; longer ones are shorter pieces of the same file."""

NEEDLE = 48
"""Bytes that are no coincidence."""

_LINE = re.compile(r'(?:write|pwrite64)\(\d+<(?P<path>[^>]*)>(?:\(deleted\))?, "(?P<data>(?:\\x..)*)"')
_VECTOR = re.compile(r"writev\(\d+<(?P<path>[^>]*)>(?:\(deleted\))?, \[(?P<rest>.*)")
_BASE = re.compile(r'iov_base="((?:\\x..)*)"')
_OPENED = re.compile(r'(?:openat\([^"]*|creat\()"(?P<path>[^"]*)", (?P<flags>[A-Z_|]*)')

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace shows what is written where")


@dataclass
class Trace:
    """What a command wrote.

    Attributes:
        status: Its exit status.
        output: Its standard output and standard error.
        writes: The beginnings of all writes, by the path of the file.
        opened: Paths that were opened to write.
    """

    status: int
    output: str
    writes: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    opened: set[str] = field(default_factory=set)

    def on_disk(self) -> dict[str, list[bytes]]:
        """The writes but those to memory, pipes, sockets, terminals and processes."""
        return {
            path: data
            for path, data in self.writes.items()
            if path.startswith("/") and not path.startswith(("/dev/", "/proc/", "/memfd:", "/sys/"))
        }

    def leaks(self, secrets: Iterable[bytes]) -> list[str]:
        """Paths on disk to which a piece of a secret was written, and "output" if it was printed."""
        secrets = list(secrets)
        found = {
            path
            for path, writes in self.on_disk().items()
            for data in writes
            if len(data) >= NEEDLE and any(data[:NEEDLE] in secret for secret in secrets)
        }
        return sorted(found)


def traced(*arguments: object, cwd: Path, environment: Mapping[str, str] | None = None) -> Trace:
    """Run the command line under strace."""
    log = cwd.parent / f"{cwd.name}.strace"
    command = ["strace", "-f", "-qq", "-y", "-xx", "-s", str(SEEN), "-o", str(log)]
    command += ["-e", "trace=write,pwrite64,writev,openat,creat,copy_file_range,sendfile"]
    command += [sys.executable, "-m", "onnxaccel", *(str(argument) for argument in arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    trace = Trace(done.returncode, done.stdout)
    with log.open(errors="replace") as lines:
        for line in lines:
            _read(line, trace)
    log.unlink()
    return trace


def _read(line: str, trace: Trace) -> None:
    if (found := _LINE.search(line)) is not None:
        trace.writes[_plain(found["path"])].append(_bytes(found["data"]))
    elif (found := _VECTOR.search(line)) is not None:
        trace.writes[_plain(found["path"])] += [_bytes(base) for base in _BASE.findall(found["rest"])]
    elif (found := _OPENED.search(line)) is not None:
        flags = set(found["flags"].split("|"))
        if flags & {"O_WRONLY", "O_RDWR"} or "creat(" in line:
            trace.opened.add(_plain(found["path"]))
    elif "copy_file_range(" in line or "sendfile(" in line:
        trace.writes["/copied by the kernel"].append(line.encode())


def _plain(path: str) -> str:
    """A path, which -xx writes in hexadecimal where it is a string."""
    return _bytes(path).decode(errors="replace") if path.startswith("\\x") else path


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
