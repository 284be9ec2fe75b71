"""Gives files to the real command line, in a process with limits, and judges how that ended."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

REFUSED, ACCEPTED, EXECUTED, CRASHED = "refused", "accepted", "executed", "crashed"


@dataclass
class Verdict:
    """How one file ended.

    Attributes:
        outcome: REFUSED: one error in one line, and no output; ACCEPTED: the command was done;
            EXECUTED: something of the file's ran or wrote; CRASHED: the process died, hung, ran out of
            memory, showed an exception, or left half an output.
        said: The error, or why it counts as a crash.
        seconds: How long it took.
    """

    outcome: str
    said: str
    seconds: float


@dataclass
class Judge:
    """Runs command lines; the process is kept from one to the next while it lives.

    Args:
        folder: A folder of its own. ``canary`` in it is what hostile files try to make, ``victim`` what they
            try to change, ``out`` where results go.
        memory: Bytes of private memory that the process may have.
        seconds: Seconds that one command may take.
    """

    folder: Path
    memory: int = 6 * 2**30
    seconds: float = 60
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    VICTIM = "what the user keeps here\n"

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(exist_ok=True)
        self.elsewhere.mkdir(exist_ok=True)
        self.victim.write_text(self.VICTIM)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def elsewhere(self) -> Path:
        """The working directory."""
        return self.folder / "elsewhere"

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    @property
    def victim(self) -> Path:
        return self.folder / "victim"

    def __call__(self, arguments: list[str]) -> Verdict:
        start = time.monotonic()
        answer = self._ask(arguments)
        outcome, said = self._judged(answer)
        if self.canary.exists() or self.victim.read_text(errors="replace") != self.VICTIM:
            outcome, said = EXECUTED, f"wrote {self.canary if self.canary.exists() else self.victim}"
            self.victim.write_text(self.VICTIM)
            if self.canary.exists():
                os.rename(self.canary, self.folder / f"canary-{time.monotonic_ns()}")
        left = sorted(path.name for path in self.out.iterdir())
        if outcome == REFUSED and left:
            outcome, said = CRASHED, f"refused, and left {left}"
        for path in self.out.iterdir():
            path.unlink() if not path.is_dir() else __import__("shutil").rmtree(path)
        return Verdict(outcome, said, time.monotonic() - start)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None

    def _judged(self, answer: dict[str, Any] | str) -> tuple[str, str]:
        if isinstance(answer, str):
            return CRASHED, answer
        said = answer["said"].strip()
        last = said.splitlines()[-1] if said else ""
        if answer["status"] == 0:
            return ACCEPTED, last
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        fine = answer["status"] == 1 and len(errors) == 1 and last == errors[0]
        if not fine or "a bug in onnxaccel" in last or "Traceback" in said:
            return CRASHED, f"status {answer['status']}: {said[-400:]}"
        return REFUSED, last.removeprefix("error: ")

    def _ask(self, arguments: list[str]) -> dict[str, Any] | str:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.security.worker", str(self.memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=self.elsewhere,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT}:{self.folder / 'in'}",
                    "TF_CPP_MIN_LOG_LEVEL": "3",
                    "OMP_NUM_THREADS": "1",
                    "ONNXACCEL_CAFFE": str(self.folder / "no-caffe"),  # OpenCV, which runs in the process
                },
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(arguments) + "\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], self.seconds)
            line = self._process.stdout.readline() if ready else None
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        words = f"took more than {self.seconds:g} seconds"
        if line is not None:
            code = self._process.wait()
            words = f"the process died of signal {-code}" if code < 0 else f"the process exited with {code}"
        self.close()
        return words
