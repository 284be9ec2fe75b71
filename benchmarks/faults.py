"""The fault suite at length: hundreds of disturbed runs of the real command line, and what was lost.

    python benchmarks/faults.py [--rounds 100] [--jobs 2] [--only kill-train]

Each line of the table is measured by itself and kept in docs/measurements/faults.json; the table in faults.md
beside it is made from all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.faults import rounds as suite  # noqa: E402

RESULTS = ROOT / "docs/measurements/faults.json"
FAULTS = {
    "kill": "`kill -9` at a random moment; in every second pair of rounds while a file is being written",
    "signal": "SIGINT, SIGTERM or SIGHUP at a random moment",
    "full": "a disk that is too small: more and more room, from nothing to nearly enough",
}
EVERY = {"convert": 5, "optimize": 20, "encrypt": 5}
"""After how many kills a verb is run to its end; a training always is."""


def main() -> None:
    """Disturb, count, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", action="append", help="a line of the table, for instance kill-train")
    arguments = parser.parse_args()
    lines = [f"kill-{name}" for name in suite.VERBS]
    lines += [f"signal-{name}" for name in suite.VERBS if name != "optimize"]
    lines += ["full-convert", "full-train"]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for line in arguments.only or lines:
        with tempfile.TemporaryDirectory() as scratch:
            counts, seconds = disturb(line, arguments.rounds, arguments.jobs, Path(scratch))
        results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        results[line] = asdict(counts) | {
            "losses": 0,  # the first one ends this program
            "seconds": round(seconds),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        }
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(table(results))
        print(line, results[line], flush=True)


def disturb(line: str, rounds: int, jobs: int, scratch: Path) -> tuple[suite.Counts, float]:
    """All rounds of one line, some at a time."""
    fault, _, name = line.partition("-")
    verb = suite.VERBS[name]
    inputs = suite.prepare(scratch / "inputs")
    expected = suite.reference(verb, inputs, scratch / "reference")
    began = time.monotonic()

    def share(job: int) -> suite.Counts:
        folder, numbers = scratch / f"job{job}", range(job, rounds, jobs)
        if fault == "kill":
            every = EVERY.get(name, 1)
            return suite.killed_rounds(verb, inputs, folder, numbers, expected, every)
        if fault == "signal":
            return suite.signalled_rounds(verb, inputs, folder, numbers, expected)
        disk = suite.Disk(folder)
        try:
            needed = 2**20
            return suite.full_rounds(verb, inputs, disk, (needed * n // rounds for n in numbers), expected)
        finally:
            disk.close()

    with ThreadPoolExecutor(jobs) as pool:
        return sum(pool.map(share, range(jobs)), suite.Counts()), time.monotonic() - began


def table(results: dict[str, dict[str, int]]) -> str:
    """The page."""
    rows = [
        f"| {line.partition('-')[0]} | `{line.partition('-')[2]}` | {found['rounds']} | {found['writing']} | "
        f"{found['losses']} | {found['after']} | {found['resumed']} |"
        for line, found in sorted(results.items())
    ]
    faults = "\n".join(f"- {name}: {what}." for name, what in FAULTS.items())
    return PAGE.format(rows="\n".join(rows), faults=faults)


PAGE = """\
# Faults

`python benchmarks/faults.py` disturbs the real command line, on small models, and looks for what was lost: a
file at its final name that is neither the old nor the new one, an older file that is gone, something left
beside it, a process that goes on, a next run that fails or ends with other bits. A run that loses anything
ends the program, so that a line stands here only where nothing was lost. `tests/faults` does some rounds of
each in every run of the tests, and besides: data files that shrink or vanish, read-only folders, two
trainings in one folder, and memory that runs out.

{faults}

| fault | verb | rounds | while it wrote | losses | runs to the end after | of them resumed, all bit-exact |
|---|---|--:|--:|--:|--:|--:|
{rows}
"""

if __name__ == "__main__":
    main()
