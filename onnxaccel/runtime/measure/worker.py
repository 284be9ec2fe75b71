"""A candidate's process: sets itself up, then runs its step for as long as each request says.

Only the standard library is used, so that any Python can run this file, also one in which onnxaccel is not
installed: ``python worker.py MODULE:FUNCTION`` or ``python worker.py FILE.py:FUNCTION``. Requests and answers
are lines of JSON on standard input and output; whatever else is written to standard output goes to standard
error.

The function takes the first line's document and returns what to run, and facts about itself:
``def f(setup: dict) -> tuple[Callable[[], object], dict]``. A function that has nothing to run returns None
in place of the step; one that can run several things returns them by name. A step that raises is an answer
with its "failure"; the process goes on.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
from typing import Any

KEPT = 2000
"""Times sent back per turn, at most: evenly spaced in their order."""


def main() -> None:
    """Serve requests until standard input ends."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    function = _load(sys.argv[1])
    setup = json.loads(sys.stdin.readline())
    before = resident()
    started = time.perf_counter()
    found, facts = function(setup)
    ready = time.perf_counter() - started
    steps = found if isinstance(found, dict) else {"": found}
    first = None
    if found is not None:
        started = time.perf_counter()
        next(iter(steps.values()))()
        first = time.perf_counter() - started
    answer(channel, {"facts": facts, "setup_seconds": ready, "first_seconds": first})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            turn = run(steps[request["step"]], request["seconds"])
        except Exception as error:
            told = str(error).strip().splitlines()[:1]
            answer(channel, {"failure": ": ".join([type(error).__name__, *told])})
            continue
        turn["memory"] = resident(peak=True) - before
        answer(channel, turn)


def run(step: Any, seconds: float) -> dict[str, Any]:
    """Call ``step`` for ``seconds``, at least once: how often, how long each call took, processor time."""
    times: list[float] = []
    cpu, started = time.process_time(), time.perf_counter()
    now, end = started, started + seconds
    while not times or now < end:
        step()
        after = time.perf_counter()
        times.append(after - now)
        now = after
    cpu = time.process_time() - cpu
    count = len(times)
    times.sort()
    if count > KEPT:
        times = [times[i * count // KEPT] for i in range(KEPT)]
    return {"count": count, "seconds": now - started, "cpu": cpu, "times": times}


def resident(peak: bool = False) -> int:
    """Bytes of memory that this process holds now, or held at most."""
    field = "VmHWM:" if peak else "VmRSS:"
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024
    except (OSError, StopIteration):
        return 0


def answer(channel: Any, document: dict[str, Any]) -> None:
    """Send one line."""
    channel.write(json.dumps(document) + "\n")
    channel.flush()


def _load(target: str) -> Any:
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location("candidate", place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    return getattr(module, name)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # not this file's folder, whose names are not meant for import
    main()
