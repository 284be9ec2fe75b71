"""The terminal's tables: 80 columns are enough, and they show the document's figures."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from onnxaccel.compare.results import Comparison
from onnxaccel.report.comparison import show
from onnxaccel.report.figures import legible, number, percent, ratios, throughput, times
from tests.report.samples import HOSTILE, comparison, odd, source


def printed(found: Comparison, width: int = 80) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=width, markup=False, highlight=False))
    return out.getvalue()


def test_the_tables_show_the_figures_in_order() -> None:
    text = printed(comparison())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert text.index("Stay with PyTorch eager.") < text.index("Inference (") < text.index("Training (")
    inference = [line.split() for line in lines[lines.index(next(x for x in lines if "p50 ms" in x)) :]]
    rows = {" ".join(row[:2]): row[2:] for row in inference[2:5]}
    assert list(rows) == ["onnxaccel cpu", "PyTorch eager", "TensorFlow Keras"]  # the fastest first
    assert rows["onnxaccel cpu"] == ["0.0400", "0.0480", "0.0800", "2.50x", "70,711", "2.50x"]
    assert rows["PyTorch eager"][3] == rows["PyTorch eager"][5] == "1.00x"
    training = next(line for line in lines if line.startswith("onnxaccel cpu") and "2.25x" in line)
    assert training.split()[2:] == ["900", "2.25x", "0.0444", "0.215", "2.0e-06", "95.0", "%"]
    assert "GPU MiB" not in text  # no machine without a GPU has such a column
    assert "onnxaccel cuda  inference  execution provider 'cuda' is not usable here" in text


@pytest.mark.parametrize("width", [80, 60, 200])
def test_odd_comparisons_fit_and_do_no_harm(width: int) -> None:
    text = printed(odd(), width)
    for line in text.splitlines():
        assert len(line) <= width or line.startswith("    ")  # a command stays whole
    assert not set(text) & {"\x1b", "\x00", "\u202e"}
    assert "not compared: cannot be opened" in text
    for size in (1, 2, 512, 1024):  # every one of many batch sizes has its column
        assert f" {size} " in text or f" {size}\n" in text
    text.encode()  # half surrogates are replaced


def test_ratios_are_held_against_the_best_of_the_own_framework() -> None:
    assert ratios(source(framework="tensorflow"), throughput)["onnxaccel cpu"] == pytest.approx(20)
    assert ratios(source(), throughput)["onnxaccel cpu"] == pytest.approx(2.5)  # of all of them
    assert ratios(source(framework="caffe"), throughput) == {}  # which has no candidate


def test_numbers_read_well() -> None:
    values = (0.0213, 1.2, 12.34, 123.4, 48213.7, 2.14e-7, 0.0, 1e15, None, float("nan"))
    shown = ["0.0213", "1.20", "12.3", "123", "48,214", "2.1e-07", "0", "1.0e+15", "-", "-"]
    assert [number(value) for value in values] == shown
    assert [percent(v) for v in (0.5, 0.9781, 0.9942, 1.0, None)] == [
        "50.0 %",
        "97.8 %",
        "99.42 %",
        "100.0 %",
        "-",
    ]
    assert [times(v) for v in (0.0026, 0.456, 2.1, 12.34, 1234.5, None)] == [
        "0.0026x",
        "0.46x",
        "2.10x",
        "12.3x",
        "1,234x",
        "-",
    ]
    assert legible(HOSTILE).isprintable() and legible("x" * 500, 10) == "x" * 9 + "…"
