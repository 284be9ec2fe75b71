"""Hostile files of every format, given to the real command line: refused in one line, or harmless.

Nothing of a file's runs, nothing is written but the result, and the process lives. The same cases, and
damaged copies of real files by the hundred, make the table of docs/measurements (benchmarks/hostile.py).
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security import hostile_frameworks
from tests.security.formats import FORMATS, Format, place
from tests.security.hostile import CASES, Hostile
from tests.security.judge import ACCEPTED, REFUSED, Judge
from tests.security.mutations import damaged
from tests.security.seeds import write_seeds

HARMLESS = {
    ("ONNX", "opset 1"),
    ("HDF5 data", "a group that holds itself"),
    ("caffemodel, HDF5", "a group that holds itself"),
    ("Keras HDF5", "a group that holds itself"),
    ("prototxt", "a layer that is a Python module"),
    ("prototxt", "a layer that writes a file"),
    ("SavedModel (TF1)", "an initializer that saves a checkpoint"),
}
"""What may be accepted, since what is hostile in it is left out or does nothing."""

SLOW = ("Keras archive", "Keras HDF5", "TensorFlow Lite", "parquet")
DAMAGED = 6
"""Damaged copies of each format in the default run; the benchmark makes hundreds."""

assert hostile_frameworks


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeds(tmp_path_factory.mktemp("seeds") / "seeds")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    judge = Judge(tmp_path_factory.mktemp("judge"))
    yield judge
    judge.close()


def _cases() -> list[object]:
    marks = {name: [pytest.mark.slow] for name in SLOW}
    return [pytest.param(c, id=f"{c.format}: {c.what}", marks=marks.get(c.format, [])) for c in CASES]


@pytest.mark.parametrize("case", _cases())
def test_hostile_file(case: Hostile, seeds: Path, judge: Judge) -> None:
    folder = judge.folder / "in"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds, folder)
    verdict = judge(case.make(folder, judge))
    allowed = {REFUSED, ACCEPTED} if (case.format, case.what) in HARMLESS else {REFUSED}
    assert verdict.outcome in allowed, verdict


@pytest.mark.parametrize("kind", [f for f in FORMATS if not f.framework], ids=lambda f: f.name)
def test_damaged_files(kind: Format, seeds: Path, judge: Judge) -> None:
    shutil.rmtree(judge.folder / "in", ignore_errors=True)
    whole = judge(kind.arguments(place(seeds, judge.folder / "in", kind.seed), judge.out))
    assert whole.outcome == ACCEPTED, f"the file before it is damaged: {whole}"
    for number in range(DAMAGED):
        verdict = judge(kind.arguments(spoiled(kind, seeds, judge, number), judge.out))
        assert verdict.outcome in (REFUSED, ACCEPTED), f"damage {number}: {verdict}"


def spoiled(kind: Format, seeds: Path, judge: Judge, number: int) -> Path:
    """A fresh copy of a format's seed, one of its files damaged; which and how follows from ``number``."""
    path = place(seeds, judge.folder / "in", kind.seed)
    files = [path] if path.is_file() else [f for f in sorted(path.rglob("*")) if f.is_file()]
    files = [f for f in files if f.stat().st_size and (not kind.damage or f.name in kind.damage)]
    file = random.Random(number).choice(files)
    file.write_bytes(damaged(file.read_bytes(), number))
    return path
