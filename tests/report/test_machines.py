"""Several comparisons side by side: what belongs together, what is how many times as good, what differs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from onnxaccel.compare.document import document, save
from onnxaccel.compare.results import Comparison
from onnxaccel.report import machines
from onnxaccel.report.html.machines import render
from onnxaccel.report.machines import SideBySide, side_by_side
from tests.report.samples import comparison, odd, source
from tests.report.test_html import parsed, tables


def beside(*found: Comparison) -> SideBySide:
    return side_by_side(found, [f"{n}.json" for n in range(len(found))])


@pytest.fixture
def two() -> SideBySide:
    """The second machine is twice as fast where the first one's figures follow the factor."""
    fast = comparison(source(factor=0.5), source("only here"), name="Xeon")
    fast.settings.threads = 16
    return beside(comparison(), fast)


def board(found: SideBySide, name: str) -> dict[str, machines.Row]:
    (chosen,) = (b for b in found.meetings[0].boards if b.metric.name == name)
    return {row.name: row for row in chosen.rows}


def test_ratios_are_against_the_first_machine(two: SideBySide) -> None:
    assert [meeting.name for meeting in two.meetings] == ["models:mlp", "only here"]
    for name, expected in (("latency", 2.0), ("throughput", 2.0), ("training", 2.0), ("memory", 1.0)):
        row = board(two, name)["onnxaccel cpu"]
        assert row.ratios == pytest.approx([1.0, expected]), name
        assert all(row.values)
    assert board(two, "training")["TensorFlow Keras"].ratios == [1.0, 1.0]  # which the factor leaves alone
    assert "onnxaccel cuda" not in board(two, "latency")  # it has figures nowhere
    assert two.meetings[0].winners["latency"] == ["onnxaccel cpu"] * 2
    assert two.meetings[1].winners["training"] == [None, "PyTorch eager"]
    assert two.differences == ["threads: A 2, B 16"]


def test_latency_is_taken_at_a_batch_size_that_all_have() -> None:
    other = comparison()
    for candidate in other.sources[0].candidates[:3]:
        assert candidate.inference is not None
        del candidate.inference.batches[0]
    found = beside(comparison(), other)
    (latency,) = (b for b in found.meetings[0].boards if b.metric.name == "latency")
    assert latency.metric.title == "Latency, ms at batch 8"
    assert all(row.values[0] == row.values[1] for row in latency.rows)


def test_the_tables_and_the_page_hold_the_figures(two: SideBySide) -> None:
    out = io.StringIO()
    machines.show(two, Console(file=out, width=80, markup=False, highlight=False))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "A  AMD EPYC, 2 cores, 24.0 GiB (0.json)" in text and "not the same everywhere: threads" in text
    shown = tables(parsed(render(two)))
    assert ["onnxaccel cpu", "0.0400", "0.0200", "2.00×"] in shown["Latency"]
    for row in shown["Latency"]:
        assert " ".join(row).replace("×", "x") in " ".join(text.split())


def test_many_and_odd_machines_fit() -> None:
    found = beside(*(comparison(name=f"machine {n}") for n in range(30)), odd(), odd())
    assert found.letters[25:28] == ["Z", "27", "28"]
    page = render(found)
    parsed(page)
    assert "<script" not in page
    out = io.StringIO()
    machines.show(beside(odd(), comparison()), Console(file=out, width=80, markup=False, highlight=False))
    assert max(map(len, out.getvalue().splitlines())) <= 80 and "\x1b" not in out.getvalue()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxaccel", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_line(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    save(comparison(), first)
    save(comparison(source(factor=0.5), name="Xeon"), second)
    one = run(first, "--html", tmp_path / "one.html", "--tensorboard", tmp_path / "board", "--json")
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout) == document(comparison())
    assert (tmp_path / "one.html").stat().st_size > 10_000
    runs = {path.parent.relative_to(tmp_path / "board") for path in (tmp_path / "board").rglob("events*")}
    assert Path("models_mlp/onnxaccel_cpu") in runs and len(runs) == 4
    both = run(first, second, "--html", tmp_path / "both.html")
    assert both.returncode == 0, both.stderr
    assert "2.00x" in both.stdout and "2 machines" in (tmp_path / "both.html").read_text()
    assert json.loads(run(first, second, "--json").stdout)["schema"] == machines.SCHEMA
    refused = run(first, tmp_path / "none.json", "--html", tmp_path / "none.html")
    assert refused.returncode == 1 and "none.json: no such file" in refused.stderr
    unwritable = run(first, "--html", "/proc/report.html")
    assert unwritable.returncode == 1 and "/proc/report.html: cannot be written" in unwritable.stderr
    assert not (tmp_path / "none.html").exists() and not (refused.stdout or unwritable.stdout)
