"""Starting a command in several processes on this machine, and starting it again when one of them dies.

A process that is killed (by a signal) takes the others with it, and all start again from the newest
checkpoint, or from the beginning where there is none; the result is the same. A process that ends with an
error of its own ends the training. Across machines torchrun does the same.

None outlives the one that started them: a training that went on by itself would hold its checkpoint folder,
and could not be started again. Ctrl-C reaches only that one, which passes it on, once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from onnxaccel.errors import TrainingError
from onnxaccel.runtime.interrupt import on_signals

RESTARTS = 3
"""How often a training is started again."""

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PARENT_DEATH_SIGNAL = 1


@dataclass
class _Worker:
    """One process; the first one's messages are shown as they come, the others' kept."""

    process: subprocess.Popen[bytes]
    messages: IO[bytes] | None


def launch(
    arguments: Sequence[str],
    workers: int,
    *,
    restarts: int = RESTARTS,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Run ``python -m onnxaccel ARGUMENTS`` in several processes, which find their group in the environment.

    Args:
        arguments: The command line.
        workers: How many processes.
        restarts: How often to start again after a process was killed.
        say: Called with one line when that happens.

    Returns:
        The exit status.

    Raises:
        TrainingError: Processes were killed more often than that.
        KeyboardInterrupt: Interrupted by SIGINT, SIGTERM or SIGHUP, which the processes were told.
    """
    for attempt in range(restarts + 1):
        with on_signals(signal.default_int_handler):
            status, killed = _run(arguments, workers, attempt)
        if killed is None:
            return status
        if attempt < restarts:
            say(f"{killed}; all start again ({attempt + 1} of {restarts} times)")
    raise TrainingError(
        f"{killed}, and all were started again {restarts} times before; where memory runs out, use a "
        "smaller --batch-size or fewer --workers"
    )


def _run(arguments: Sequence[str], workers: int, attempt: int) -> tuple[int, str | None]:
    """One attempt: the exit status, and which process was killed, if one was."""
    started = [
        _start(arguments, rank, workers, attempt, port) for port in [_free_port()] for rank in range(workers)
    ]
    try:
        number = _first_to_fail([worker.process for worker in started])
        if number is None:
            return 0, None
        status = started[number].process.returncode
        if status < 0:
            return 1, f"worker {number} was killed ({signal.Signals(-status).name})"
        if number:  # the first one's messages have been seen
            _show(started[number].messages)
        return status, None
    except KeyboardInterrupt:
        for worker in started:
            with contextlib.suppress(ProcessLookupError):
                worker.process.terminate()
        for worker in started:
            worker.process.wait()
        raise
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.wait()
            if worker.messages is not None:
                worker.messages.close()


def _start(arguments: Sequence[str], rank: int, workers: int, attempt: int, port: int) -> _Worker:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
    }
    messages = tempfile.TemporaryFile() if rank else None
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxaccel", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL if rank else None,
        stderr=messages,
        process_group=0,
        preexec_fn=functools.partial(_end_with, os.getpid()),
    )
    return _Worker(process, messages)


def _end_with(launcher: int) -> None:
    """In a new process: be killed when the launcher ends, however that does; see prctl(2)."""
    if _LIBC is not None:
        _LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != launcher:
            os.kill(os.getpid(), signal.SIGKILL)


def _first_to_fail(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for the end; gives the process that failed, None where all ended well.

    The first one reports and writes the files: once it has ended well, the training is done, whatever becomes
    of the others. Where one was killed, others fail for want of it; where all meet the same error, the first
    one tells.
    """
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline and processes[0].poll() is None:
                time.sleep(0.02)
            break
        time.sleep(0.02)
    if processes[0].poll() == 0:
        return None
    failed = [number for number, process in enumerate(processes) if process.poll()]
    return min(failed, key=lambda number: (processes[number].returncode > 0, number), default=None)


def _show(messages: IO[bytes] | None) -> None:
    if messages is not None:
        messages.seek(0)
        sys.stderr.write(messages.read().decode(errors="replace"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
