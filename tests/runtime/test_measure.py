"""The measuring harness: candidates in processes of their own, and what becomes of those that misbehave."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from onnxaccel.runtime.measure import Failed, Field, Job, Limits, Worker, machine_seconds, measure, once

CANDIDATES = """
import os, sys, time
def sleeper(setup):
    print("noise on standard output")
    return (lambda: time.sleep(setup["seconds"])), {"asked": setup["seconds"], "pid": os.getpid()}
def raises(setup):
    raise ValueError("no such thing")
def aborts(setup):
    os.abort()
def hangs(setup):
    time.sleep(1000)
def eats(setup):
    setup["eaten"] = bytearray(300 * 2**20)
    time.sleep(1000)
def dies_later(setup):
    calls = []
    def step():
        calls.append(0)
        if len(calls) > 3: sys.exit("gave up")
        time.sleep(0.01)
    return step, {}
def several(setup):
    calls = []
    def wrong():
        raise ValueError("not this one\\nmore")
    def ends():
        os.abort()
    def note():
        calls.append(0)
        open(setup["note"], "a").write("x")
    steps = {"good": lambda: time.sleep(0.002), "wrong": wrong, "ends": ends, "note": note}
    return {name: steps[name] for name in setup["steps"]}, {}
def grows(setup):
    held = bytearray(50 * 2**20)
    return (lambda: time.sleep(0.001)), {}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("candidates") / "candidates.py"
    path.write_text(CANDIDATES)
    return path


def job(file: Path, name: str, **setup: object) -> Job:
    return Job(f"{file}:{name}", setup)


FAILURES = {
    "raises": "ValueError: no such thing",
    "aborts": r"crashed \(SIGABRT\)",
    "hangs": "no answer within 2 s",
    "eats": "took more than 200 MiB of memory",
    "dies_later": "gave up",
}


def test_candidates_take_turns_and_failures_are_results(file: Path) -> None:
    jobs = {"quick": job(file, "sleeper", seconds=0.002)}
    jobs |= {name: job(file, name) for name in FAILURES}
    jobs["slow"] = job(file, "sleeper", seconds=0.02)
    said: list[str] = []
    results = measure(
        jobs, rounds=3, seconds=0.1, limits=Limits(2, 200 * 2**20), gap=0, patience=1, progress=said.append
    )
    for name, message in FAILURES.items():
        with pytest.raises(Failed, match=message):
            raise Failed(results[name].failure)
        assert any(line.startswith(f"{name}: ") for line in said)
    quick, slow = results["quick"], results["slow"]
    for result in (quick, slow):
        assert result.failure is None and len(result.rates) == 3
        assert result.times == sorted(result.times)
        assert result.percentile(0.5) >= result.facts["asked"]
        assert result.percentile(0) <= result.percentile(0.5) <= result.percentile(0.99) <= result.times[-1]
    assert quick.facts["pid"] != slow.facts["pid"]
    assert 1 < quick.rate / slow.rate <= 10.5 and slow.rate <= 50


def test_several_steps_fail_one_by_one(file: Path, tmp_path: Path) -> None:
    steps, note = ["good", "wrong", "ends", "note"], tmp_path / "note"
    jobs = {
        "odd": job(file, "several", steps=steps, note=str(note)),
        "even": job(file, "several", steps=["good", "note"], note=str(note)),
    }
    with Field(jobs, Limits(5), gap=0, patience=1) as candidates:
        good = candidates.measure("good", 2, 0.02)
        wrong = candidates.measure("wrong", 1, 0.02)
        assert candidates.run("note") == {"odd": None, "even": None}
        assert note.read_text() == "xx"
        ends = candidates.measure("ends", 1, 0.02)
        later = candidates.measure("good", 1, 0.02)
    assert all(result.failure is None and len(result.rates) == 2 for result in good.values())
    assert good["odd"].startup_seconds > 0.01 and good["odd"].first_seconds is not None
    assert wrong["odd"].failure == "ValueError: not this one"
    assert wrong["even"].failure == "KeyError: 'wrong'"
    assert ends["odd"].failure == later["odd"].failure == "crashed (SIGABRT)"
    assert later["even"].failure is None and len(later["even"].rates) == 1


def test_memory_is_what_the_candidate_added(file: Path) -> None:
    results = measure(
        {"grows": job(file, "grows"), "plain": job(file, "sleeper", seconds=0.001)},
        rounds=1,
        seconds=0.02,
        gap=0,
        patience=1,
    )
    assert 50 <= results["grows"].memory / 2**20 < 60
    assert results["plain"].memory / 2**20 < 5


def test_processes_beyond_what_may_wait_start_anew(file: Path) -> None:
    jobs = {name: job(file, "sleeper", seconds=0.001) for name in "ab"}
    results = measure(jobs, rounds=2, seconds=0.02, gap=0, patience=1, alive=1)
    assert all(len(result.rates) == 2 for result in results.values())


def test_once_gives_the_facts(file: Path) -> None:
    assert once(job(file, "sleeper", seconds=0), Limits(10))["asked"] == 0
    with pytest.raises(Failed, match="no such thing"):
        once(job(file, "raises"), Limits(10))


def test_closing_ends_the_process(file: Path) -> None:
    with Worker(job(file, "sleeper", seconds=0), Limits(10)) as worker:
        pid = worker.introduction["facts"]["pid"]
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_other_programs_are_noticed() -> None:
    before = machine_seconds()
    cpu = time.process_time()
    while time.process_time() - cpu < 0.3:
        pass
    assert machine_seconds() - before >= 0.25  # the kernel counts in hundredths of a second
