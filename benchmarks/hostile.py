"""Hostile and damaged files by format, given to the real command line; writes docs/measurements.

    python -m benchmarks.hostile [--damaged 100] [--seconds 1200] [--output hostile_files.md]

Every file is read by `onnxaccel` itself, in a process with 6 GiB of memory, 60 seconds, and a folder in which
files that must not appear, and must not change, are watched. Exit status 1 when anything ran or crashed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.security import hostile_frameworks
from tests.security.formats import FORMATS, place
from tests.security.hostile import CASES
from tests.security.judge import ACCEPTED, CRASHED, EXECUTED, REFUSED, Judge
from tests.security.seeds import write_seeds
from tests.security.test_hostile import spoiled

ROOT = Path(__file__).parents[1]

INTRODUCTION = """# Hostile files

Written by `python -m benchmarks.hostile`. Each file was given to the real command line (`convert`, `inspect`,
`evaluate`, `predict`, `train --resume`). *Made to harm*: the cases of `tests/security`, each with a purpose
(code to run, a path out of the folder, a size of 2^60). *Damaged*: real files with bits flipped, bytes cut,
moved, dropped or overwritten, by a fixed seed. A file counts as *refused* when there was one error in one
line, exit status 1, and no output; as *accepted* when the command did its work: the damage was where nothing
depends on it, or what was hostile was left out. *Executed*: something of the file's ran, or a file was
written that must not be. *Crashed*: the process died, hung, ran out of memory, or showed an exception.

| format | made to harm | damaged | refused | accepted | executed | crashed |
|---|---|---|---|---|---|---|
"""


@dataclass
class Row:
    """What came out for one format."""

    made: int = 0
    damaged: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def cells(self) -> str:
        """The row's cells, without its name."""
        counts = (self.outcomes[o] for o in (REFUSED, ACCEPTED, EXECUTED, CRASHED))
        return " | ".join(map(str, (self.made, self.damaged, *counts)))


def main() -> None:
    """Try all files, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damaged", type=int, default=100, help="damaged copies of each format")
    parser.add_argument("--seconds", type=float, default=1200, help="stop damaging after this time")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/measurements/hostile_files.md")
    options = parser.parse_args()
    rows: dict[str, Row] = {kind.name: Row() for kind in FORMATS}
    wrong: list[str] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        seeds = write_seeds(Path(scratch) / "seeds")
        judges = {name: Judge(Path(scratch) / f"judge-{name}") for name in ("", "torch", "tensorflow")}

        def count(name: str, what: str, outcome: str, said: str) -> None:
            rows[name].outcomes[outcome] += 1
            if outcome in (EXECUTED, CRASHED):
                wrong.append(f"{name}: {what}: {outcome}: {said[-300:]}")
                print(wrong[-1], file=sys.stderr)

        for case in CASES:
            judge = judges[case.framework]
            shutil.rmtree(judge.folder / "in", ignore_errors=True)
            shutil.copytree(seeds, judge.folder / "in")
            verdict = judge(case.make(judge.folder / "in", judge))
            rows.setdefault(case.format, Row()).made += 1
            count(case.format, case.what, verdict.outcome, verdict.said)
        print(f"{len(CASES)} files made to harm, {time.monotonic() - start:.0f} s", file=sys.stderr)
        for judge in judges.values():
            shutil.rmtree(judge.folder / "in", ignore_errors=True)
        for kind in FORMATS:
            judge = judges[kind.framework]
            whole = judge(kind.arguments(place(seeds, judge.folder / "in", kind.seed), judge.out))
            if whole.outcome != ACCEPTED:
                wrong.append(f"{kind.name}: the file before it is damaged: {whole}")
        for number in range(options.damaged):
            for kind in FORMATS:
                if time.monotonic() - start > options.seconds:
                    break
                judge = judges[kind.framework]
                verdict = judge(kind.arguments(spoiled(kind, seeds, judge, number), judge.out))
                rows[kind.name].damaged += 1
                count(kind.name, f"damage {number}", verdict.outcome, verdict.said)
        for judge in judges.values():
            judge.close()
    total = Row()
    for row in rows.values():
        total.made, total.damaged = total.made + row.made, total.damaged + row.damaged
        total.outcomes.update(row.outcomes)
    lines = [f"| {name} | {row.cells()} |" for name, row in rows.items()]
    lines.append(f"| **all** | {total.cells()} |")
    text = INTRODUCTION + "\n".join(lines) + "\n"
    text += "".join(f"\n- {line}" for line in wrong) + ("\n" if wrong else "")
    options.output.write_text(text)
    print(f"| all | {total.cells()} |  {time.monotonic() - start:.0f} s; {options.output}")
    sys.exit(1 if wrong else 0)


assert hostile_frameworks

if __name__ == "__main__":
    main()
