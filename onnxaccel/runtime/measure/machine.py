"""What the machine as a whole is doing: processors, their load, memory of its GPUs."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_memory() -> int | None:
    """Bytes that all programs have taken on the machine's GPUs; None where there is none to ask about.

    The driver's figures per process are of no use within a container, whose process numbers it does not know.
    """
    tool = _nvidia_smi()
    if tool is None:
        return None
    command = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    used = [int(line) for line in done.stdout.split() if line.isdigit()]
    return sum(used) * 2**20 if used else None


@functools.cache
def _nvidia_smi() -> str | None:
    return shutil.which("nvidia-smi")


def machine_seconds() -> float:
    """Processor seconds that all programs have used since the machine started; 0 where it cannot be known."""
    try:
        fields = [int(f) for f in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return 0.0
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
