"""Fair timing: each candidate in a process of its own, taking turns, with quiet between the turns.

All candidates start and set themselves up. Then they take turns, round after round: one runs while the
others sleep, after an idle gap in which the threads of the one before go to sleep. A turn during which other
programs kept the machine busy is repeated, and counted as disturbed if it stays so. A candidate that crashes,
hangs or takes too much memory ends as a result with its reason; the others go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from onnxaccel.errors import AccelError

GAP = 0.3
"""Seconds of quiet before a turn."""
BUSY = 0.15
"""Share of the machine's time that other programs may take during a turn."""

ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
}
"""For jobs that import the onnxaccel that started them."""


class Failed(AccelError):
    """A candidate's process crashed, hung or took too much memory."""


@dataclass(frozen=True)
class Limits:
    """What a candidate may take.

    Attributes:
        seconds: Time to set itself up, and for one turn beyond what the turn asks for.
        memory: Bytes of resident memory.
    """

    seconds: float = 120.0
    memory: int = 8 * 2**30


@dataclass(frozen=True)
class Job:
    """A candidate.

    Attributes:
        target: "MODULE:FUNCTION" or "FILE.py:FUNCTION", see `onnxaccel.runtime.measure.worker`.
        setup: The document that the function is given.
        python: The Python to run it in.
        environment: Variables to add to the environment.
    """

    target: str
    setup: Mapping[str, Any]
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """What a candidate gave.

    Attributes:
        facts: What its function said of itself.
        setup_seconds: Seconds that the set-up took.
        first_seconds: Seconds that the first step took, or None.
        rates: Steps per second, one entry per round.
        times: Seconds of single steps over all rounds, in ascending order.
        memory: Bytes that set-up and steps added to the process at their peak.
        disturbed: Rounds during which other programs kept the machine busy.
        failure: Why it did not finish, or None.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    setup_seconds: float = 0.0
    first_seconds: float | None = None
    rates: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    memory: int = 0
    disturbed: int = 0
    failure: str | None = None

    @property
    def rate(self) -> float:
        """Median of the steps per second."""
        return statistics.median(self.rates)

    def percentile(self, share: float) -> float:
        """The time that ``share`` of the steps stayed within, in seconds; 0.5 is the median."""
        return self.times[min(len(self.times) - 1, int(share * len(self.times)))]


class Worker:
    """A candidate's process.

    Args:
        job: What to run.
        limits: What it may take.
    """

    def __init__(self, job: Job, limits: Limits) -> None:
        self._limits = limits
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [job.python, str(Path(__file__).with_name("worker.py")), job.target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **job.environment},
        )
        try:
            self.introduction = self._ask(job.setup, limits.seconds)
        except BaseException:
            self.close()
            raise

    def turn(self, seconds: float) -> dict[str, Any]:
        """Let it run its step for ``seconds``.

        Raises:
            Failed: It crashed, hung or took too much memory.
        """
        return self._ask({"seconds": seconds}, seconds + self._limits.seconds)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _ask(self, document: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        deadline = time.monotonic() + seconds
        with contextlib.suppress(BrokenPipeError):  # its end is noticed below
            print(json.dumps(document), file=self._process.stdin, flush=True)
        while not select.select([self._process.stdout], [], [], 0.1)[0]:
            if time.monotonic() > deadline:
                raise Failed(f"no answer within {seconds:.0f} s")
            if self._resident() > self._limits.memory:
                raise Failed(f"took more than {self._limits.memory / 2**20:,.0f} MiB of memory")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(self._why_it_ended())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _resident(self) -> int:
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _why_it_ended(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        if status < 0:
            return f"crashed ({signal.Signals(-status).name})"
        return lines[-1] if lines else f"ended with status {status}"


def measure(
    jobs: Mapping[str, Job],
    *,
    rounds: int = 5,
    seconds: float = 1.0,
    limits: Limits = Limits(),
    gap: float = GAP,
    patience: int = 4,
    alive: int = 16,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Result]:
    """Measure candidates against each other.

    Args:
        jobs: The candidates by name.
        rounds: Turns of each candidate.
        seconds: Seconds of a turn.
        limits: What each may take.
        gap: Seconds of quiet before a turn.
        patience: How often a turn is tried while the machine is busy.
        alive: How many processes may wait for their turns; beyond it each turn starts its process anew.
        progress: Called with one line per stage.

    Returns:
        One result per candidate, also for those that failed.
    """
    results = {name: Result() for name in jobs}
    workers: dict[str, Worker] = {}
    try:
        for number in range(rounds):
            for name, job in jobs.items():
                result = results[name]
                if result.failure is not None:
                    continue
                try:
                    if name not in workers:
                        if number == 0:
                            progress(f"{name}: starts")
                        workers[name] = Worker(job, limits)
                        _introduce(result, workers[name].introduction)
                        workers[name].turn(min(seconds, 0.2))  # warm
                    _take_turn(result, workers[name], seconds, gap, patience)
                    if len(jobs) > alive:
                        workers.pop(name).close()
                except Failed as error:
                    result.failure = str(error)
                    progress(f"{name}: {error}")
                    if name in workers:
                        workers.pop(name).close()
    finally:
        for worker in workers.values():
            worker.close()
    for result in results.values():
        result.times.sort()
    return results


def once(job: Job, limits: Limits) -> dict[str, Any]:
    """Run a job that has no step, only a set-up; gives its facts.

    Raises:
        Failed: It crashed, hung or took too much memory.
    """
    with Worker(job, limits) as worker:
        facts: dict[str, Any] = worker.introduction["facts"]
        return facts


def reason(message: str) -> str:
    """A traceback's last line without the exception's type."""
    kind, colon, rest = message.partition(": ")
    return rest if colon and kind.rpartition(".")[2].isidentifier() and kind[0].isalpha() else message


def _introduce(result: Result, introduction: Mapping[str, Any]) -> None:
    result.facts = introduction["facts"]
    result.setup_seconds = introduction["setup_seconds"]
    result.first_seconds = introduction["first_seconds"]


def _take_turn(result: Result, worker: Worker, seconds: float, gap: float, patience: int) -> None:
    for _ in range(patience):
        time.sleep(gap)
        before = machine_seconds()
        turn = worker.turn(seconds)
        others = machine_seconds() - before - turn["cpu"]
        busy = others > BUSY * turn["seconds"] * (os.cpu_count() or 1)
        if not busy:
            break
    result.rates.append(turn["count"] / turn["seconds"])
    result.times += turn["times"]
    result.memory = max(result.memory, turn["memory"])
    result.disturbed += busy


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_seconds() -> float:
    """Processor seconds that all programs have used since the machine started; 0 where it cannot be known."""
    try:
        fields = [int(f) for f in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return 0.0
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
