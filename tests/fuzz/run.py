"""Fuzz everything for a bounded time: ``python -m tests.fuzz.run [--seconds 60] [--targets idx,onnx]``.

Three quarters of the time go to what we parse ourselves, each target under libFuzzer (atheris), guided by the
coverage of our code. The rest goes to damaged files of every format through the real command line, whose
parsers are native. Exit status 1 when anything crashed; what crashed it is kept in ``--crashes``.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import SEEDS, TEXTS, target
from tests.security.formats import FORMATS
from tests.security.judge import ACCEPTED, REFUSED, Judge
from tests.security.seeds import write_seeds
from tests.security.test_hostile import spoiled

ROOT = Path(__file__).parents[2]


@dataclass
class Found:
    """What came out of one target: executions, edges covered, and what crashed it."""

    name: str
    executions: int
    coverage: str
    crashes: list[str]


def guided(name: str, seconds: int, seeds: Path, crashes: Path) -> Found:
    """Run one target under libFuzzer."""
    with tempfile.TemporaryDirectory() as corpus:
        for index, file in enumerate(SEEDS[name]):
            Path(corpus, f"seed{index}").write_bytes((seeds / file).read_bytes())
        for index, text in enumerate(TEXTS.get(name, ())):
            Path(corpus, f"text{index}").write_bytes(text)
        prefix = crashes / f"{name}-"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.one", name, corpus, f"-max_total_time={seconds}"),
                *(f"-artifact_prefix={prefix}", "-timeout=20", "-rss_limit_mb=3000", "-max_len=65536"),
                *("-print_final_stats=1", "-seed=1"),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            cwd=ROOT,
            check=False,
        )
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
    coverage = f"{covered[-1][0]} edges, {covered[-1][1]} features" if covered else "-"
    kept = [str(path) for path in crashes.glob(f"{name}-*")]
    if done.returncode and not kept:
        kept = [" ".join(done.stderr.split())[-300:]]
    traces = [line for line in done.stderr.splitlines() if re.match(r"\s+File .*onnxaccel|\w+Error", line)]
    return Found(name, int(executed[1]) if executed else 0, coverage, kept + (traces[-2:] if kept else []))


def native(seconds: float, seeds: Path, seed: int) -> Found:
    """Damaged files of every format, in turns, through the command line."""
    rng, count, crashes, covered = random.Random(seed), 0, list[str](), set[str]()
    with tempfile.TemporaryDirectory() as scratch:
        judges = {name: Judge(Path(scratch) / f"judge-{name}") for name in ("", "torch", "tensorflow")}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            kind = FORMATS[count % len(FORMATS)]
            judge, number = judges[kind.framework], rng.randrange(10**6, 10**9)
            verdict = judge(kind.arguments(spoiled(kind, seeds, judge, number), judge.out))
            count, _ = count + 1, covered.add(kind.name)
            if verdict.outcome not in (ACCEPTED, REFUSED):
                crashes.append(f"{kind.name}, damage {number}: {verdict.said[-300:]}")
        for judge in judges.values():
            judge.close()
    return Found("command line", count, f"{len(covered)} formats", crashes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--targets", default=",".join([*target, "command-line"]))
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = options.targets.split(",")
    options.crashes.mkdir(exist_ok=True)
    chosen = [name for name in names if name != "command-line"]
    share = options.seconds * (0.75 if len(chosen) < len(names) else 1) / max(len(chosen), 1)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        seeds = write_seeds(Path(scratch) / "seeds", frameworks=len(chosen) < len(names))
        for name in chosen:
            found.append(guided(name, max(round(share), 1), seeds, options.crashes.resolve()))
            _say(found[-1])
        if len(chosen) < len(names):
            found.append(native(options.seconds * 0.25, seeds, options.seed))
            _say(found[-1])
    crashes = sum(bool(one.crashes) for one in found)
    print(f"{sum(one.executions for one in found):,} executions, {crashes} targets crashed", flush=True)
    sys.exit(1 if crashes else 0)


def _say(found: Found) -> None:
    print(f"{found.name:14} {found.executions:>9,} executions   {found.coverage}", flush=True)
    for crash in found.crashes:
        print(f"    {crash}", flush=True)


if __name__ == "__main__":
    main()
