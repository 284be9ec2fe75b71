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
from onnxaccel.runtime.measure.machine import cores, gpu_memory, machine_seconds

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


class StepFailed(Failed):
    """A candidate's step raised an error; its process is still there."""


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
        startup_seconds: Seconds from the process's start until it was set up.
        first_seconds: Seconds that the first step took, or None.
        rates: Steps per second, one entry per round.
        times: Seconds of single steps over all rounds, in ascending order.
        memory: Bytes that set-up and steps added to the process at their peak.
        gpu_memory: Bytes that they added on the machine's GPUs, or None: there is none.
        disturbed: Rounds during which other programs kept the machine busy.
        failure: Why it did not finish, or None.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    setup_seconds: float = 0.0
    startup_seconds: float = 0.0
    first_seconds: float | None = None
    rates: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    memory: int = 0
    gpu_memory: int | None = None
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
        started = time.monotonic()
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
        first = self.introduction["first_seconds"] or 0.0
        self.introduction["startup_seconds"] = time.monotonic() - started - first

    def turn(self, seconds: float, step: str = "") -> dict[str, Any]:
        """Let it run a step for ``seconds``, at least once.

        Raises:
            Failed: It crashed, hung or took too much memory, or (`StepFailed`) the step raised an error.
        """
        return self._ask({"seconds": seconds, "step": step}, seconds + self._limits.seconds)

    def resident(self) -> int:
        """Bytes of memory that it holds now; 0 where that cannot be known."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

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
            if self.resident() > self._limits.memory:
                raise Failed(f"took more than {self._limits.memory / 2**20:,.0f} MiB of memory")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(self._why_it_ended())
        answer: dict[str, Any] = json.loads(line)
        if "failure" in answer:
            raise StepFailed(answer["failure"])
        return answer

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
    with Field(jobs, limits, gap=gap, patience=patience, alive=alive, progress=progress) as candidates:
        return candidates.measure("", rounds, seconds)


class Field:
    """Candidates that run several steps, one step of all of them after the other; see `measure`.

    A candidate whose process ended has failed in all later steps too; one whose step raised an error has
    failed in that step alone.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        limits: Limits = Limits(),
        *,
        gap: float = GAP,
        patience: int = 4,
        alive: int = 16,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._jobs, self._limits = jobs, limits
        self._gap, self._patience, self._alive = gap, patience, alive
        self._progress = progress
        self._workers: dict[str, Worker] = {}
        self._introductions: dict[str, dict[str, Any]] = {}
        self._gpu_memory: dict[str, int] = {}
        self._ended: dict[str, str] = {}

    def measure(self, step: str, rounds: int, seconds: float) -> dict[str, Result]:
        """Give each candidate ``rounds`` turns of ``seconds`` at a step; a result for each."""
        results = {name: Result(failure=self._ended.get(name)) for name in self._jobs}
        for number in range(rounds):
            for name, result in results.items():
                if result.failure is not None:
                    continue
                try:
                    worker = self._warm(name, step, min(seconds, 0.2), first=number == 0)
                    if number == 0:
                        _introduce(result, self._introductions[name])
                    _take_turn(result, worker, step, seconds, self._gap, self._patience)
                    result.gpu_memory = self._gpu_memory.get(name)
                    if len(self._jobs) > self._alive or self._crowded():
                        self._workers.pop(name).close()
                except Failed as error:
                    result.failure = self._failed(name, error)
        for result in results.values():
            result.times.sort()
        return results

    def run(self, step: str) -> dict[str, str | None]:
        """Let each candidate run a step once, unmeasured; why it failed, or None, for each."""
        failures: dict[str, str | None] = {}
        for name in self._jobs:
            failures[name] = self._ended.get(name)
            if failures[name] is None:
                try:
                    self._worker(name).turn(0.0, step)
                except Failed as error:
                    failures[name] = self._failed(name, error)
        return failures

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _worker(self, name: str) -> Worker:
        """A candidate's process, started if it is not there."""
        if name not in self._workers:
            if name not in self._introductions:
                self._progress(f"{name}: starts")
            self._workers[name] = Worker(self._jobs[name], self._limits)
            self._introductions.setdefault(name, self._workers[name].introduction)
        return self._workers[name]

    def _warm(self, name: str, step: str, seconds: float, first: bool) -> Worker:
        """A candidate's process, warm for a step; what it takes on the GPU until then is its own."""
        cold = name not in self._workers
        if not cold and not first:
            return self._workers[name]
        before = gpu_memory() if first else None
        worker = self._worker(name)
        worker.turn(seconds, step)
        if before is not None:
            taken = (gpu_memory() or before) - before
            self._gpu_memory[name] = self._gpu_memory.get(name, 0) + max(0, taken)
        return worker

    def _failed(self, name: str, error: Failed) -> str:
        self._progress(f"{name}: {error}")
        if not isinstance(error, StepFailed):
            self._ended[name] = str(error)
            if name in self._workers:
                self._workers.pop(name).close()
        return str(error)

    def _crowded(self) -> bool:
        """Whether those who wait hold more than half of the machine's memory."""
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return sum(worker.resident() for worker in self._workers.values()) > machine / 2


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
    result.startup_seconds = introduction["startup_seconds"]
    result.first_seconds = introduction["first_seconds"]


def _take_turn(result: Result, worker: Worker, step: str, seconds: float, gap: float, patience: int) -> None:
    for _ in range(patience):
        time.sleep(gap)
        before = machine_seconds()
        turn = worker.turn(seconds, step)
        others = machine_seconds() - before - turn["cpu"]
        busy = others > BUSY * turn["seconds"] * (os.cpu_count() or 1)
        if not busy:
            break
    result.rates.append(turn["count"] / turn["seconds"])
    result.times += turn["times"]
    result.memory = max(result.memory, turn["memory"])
    result.disturbed += busy


__all__ = [
    "BUSY",
    "ENVIRONMENT",
    "GAP",
    "Failed",
    "Field",
    "Job",
    "Limits",
    "Result",
    "StepFailed",
    "Worker",
    "cores",
    "gpu_memory",
    "machine_seconds",
    "measure",
    "once",
    "reason",
]
