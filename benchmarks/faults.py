"""The fault suite at length: hundreds of disturbed runs of the real command line, and what was lost.

    python benchmarks/faults.py [--rounds 100] [--jobs 2] [--only kill-train] [--anew]

Each line of the table is measured by itself, some rounds at a time, and is kept in
docs/measurements/faults.json: a program that was interrupted goes on where it was. The table in faults.md
beside it is made from all lines.
"""

from __future__ import annotations

import argparse
import json
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
EVERY = {"convert": 5, "optimize": 10, "encrypt": 5}
"""After how many kills a verb is run to its end; a training always is."""

ROOM = {"convert": 2**16, "train": 2**20}
"""Bytes that a verb can do with: the disks are of 0, 1, ... hundredths of them."""

CHUNK = 20
"""Rounds that are recorded together."""


def main() -> None:
    """Disturb, count, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", action="append", help="a line of the table, for instance kill-train")
    parser.add_argument("--anew", action="store_true", help="forget what was found before")
    arguments = parser.parse_args()
    lines = [f"kill-{name}" for name in suite.VERBS]
    lines += [f"signal-{name}" for name in suite.VERBS if name != "optimize"]
    lines += ["full-convert", "full-train"]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for line in arguments.only or lines:
        first = 0 if arguments.anew else recorded().get(line, {}).get("tried", 0)
        for number in range(first, arguments.rounds, CHUNK):
            numbers = range(number, min(number + CHUNK, arguments.rounds))
            with tempfile.TemporaryDirectory() as scratch:
                record(line, numbers, disturb(line, numbers, arguments.jobs, Path(scratch)))


def recorded() -> dict[str, dict[str, int]]:
    """What was found so far."""
    found: dict[str, dict[str, int]] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return found


def record(line: str, numbers: range, counts: suite.Counts) -> None:
    """Add the counts of some rounds to what was found before."""
    results = recorded()
    before = results.get(line, {}) if numbers.start else {}
    sums = {name: count + before.get(name, 0) for name, count in asdict(counts).items()}
    results[line] = {"tried": numbers.stop, **sums, "losses": 0}  # the first loss ends this program
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(table(results))
    print(time.strftime("%H:%M:%S"), line, results[line], flush=True)


def disturb(line: str, numbers: range, jobs: int, scratch: Path) -> suite.Counts:
    """Rounds of one line, some at a time."""
    fault, _, name = line.partition("-")
    verb = suite.VERBS[name]
    inputs = suite.prepare(scratch / "inputs")
    expected = suite.reference(verb, inputs, scratch / "reference")

    def share(job: int) -> suite.Counts:
        folder, ours = scratch / f"job{job}", numbers[job::jobs]
        if fault == "kill":
            return suite.killed_rounds(verb, inputs, folder, ours, expected, EVERY.get(name, 1))
        if fault == "signal":
            return suite.signalled_rounds(verb, inputs, folder, ours, expected)
        disk = suite.Disk(folder)
        try:
            return suite.full_rounds(verb, inputs, disk, (ROOM[name] * n // 100 for n in ours), expected)
        finally:
            disk.close()

    with ThreadPoolExecutor(jobs) as pool:
        return sum(pool.map(share, range(jobs)), suite.Counts())


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
What optimize writes depends on the clock; of it only that the model is sound is asked, and of encrypt that it
decrypts to what it was.

{faults}

| fault | verb | rounds | while it wrote | losses | runs to the end after | of them resumed, all bit-exact |
|---|---|--:|--:|--:|--:|--:|
{rows}
"""

if __name__ == "__main__":
    main()
