"""The HTML report: well-formed, alone in the world, harmless, and true to the document's figures."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxaccel.compare.results import Comparison, Source
from onnxaccel.errors import OutputError
from onnxaccel.report import html
from onnxaccel.report.figures import mebibytes, number, percent
from onnxaccel.report.html import render, write
from onnxaccel.report.html.charts import thin
from onnxaccel.report.html.scale import label, logarithmic, scale
from tests.report.samples import HOSTILE, comparison, odd, source

STYLE = Path(html.__file__).with_name("style.css").read_text()
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Strict(HTMLParser):
    """A tree of the document; refuses what a browser would have to repair."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[ET.Element] = [ET.Element("document")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        element = ET.SubElement(self.open[-1], tag, {name: value or "" for name, value in attrs})
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        parent = self.open[-1]
        if len(parent):
            parent[-1].tail = (parent[-1].tail or "") + data
        else:
            parent.text = (parent.text or "") + data


def parsed(text: str) -> ET.Element:
    parser = Strict()
    parser.feed(text)
    parser.close()
    assert len(parser.open) == 1, f"never closed: {[element.tag for element in parser.open[1:]]}"
    return parser.open[0]


def text_of(element: ET.Element) -> str:
    return "".join(element.itertext())


def tables(tree: ET.Element) -> dict[str, list[list[str]]]:
    """The rows of each table by its caption, without the head."""
    found: dict[str, list[list[str]]] = {}
    for table in tree.iter("table"):
        caption = table.find("caption")
        assert caption is not None
        rows = [[text_of(cell) for cell in row] for row in table.iterfind("tbody/tr")]
        found.setdefault(text_of(caption), rows)
    return found


@pytest.mark.parametrize(
    "found",
    [comparison(), odd(), comparison(Source("bare")), comparison(source("a"), source("b", "pytorch"))],
    ids=["plain", "odd", "bare", "two"],
)
def test_the_document_is_sound_and_needs_nothing_else(found: Comparison) -> None:
    text = render(found)
    tree = parsed(text)
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for element in tree.iter():
        assert element.tag not in {
            "script",
            "iframe",
            "object",
            "embed",
            "img",
            "base",
            "form",
            "use",
            "image",
        }
        assert not [name for name in element.attrib if name.startswith("on") or name == "src"]
        href = element.get("href")
        assert href in (None, "data:,") or (href.startswith("#") and href[1:] in ids)
    (style,) = tree.iter("style")
    assert "url(" not in text_of(style) and "@import" not in text_of(style) and "http" not in text_of(style)
    (policy,) = (m.get("content", "") for m in tree.iter("meta") if "http-equiv" in m.attrib)
    assert policy.startswith("default-src 'none'") and "script" not in policy
    assert len(list(tree.iter("h1"))) == 1 and len(list(tree.iter("main"))) == 1
    for figure in tree.iter("figure"):  # every chart has a title, a name for who cannot see it, and its table
        assert figure.find("figcaption/h4") is not None
        assert list(figure.iter("svg")) and figure.find("details//tbody/tr/td") is not None
        for picture in figure.iter("svg"):
            within = any(
                picture is not other and picture in list(other.iter("svg")) for other in figure.iter("svg")
            )
            assert within or picture.get("aria-hidden") == "true" or picture.get("aria-label")
    for element in tree.iter():  # nothing is drawn outside its chart
        for place in ("cx", "x1", "x2", "x", "y"):
            value = element.get(place, "0%")
            assert not value.endswith("%") or 0 <= float(value[:-1]) <= 100
        assert "nan" not in (element.get("d") or "").lower()


def test_what_means_harm_is_text() -> None:
    text = render(odd())
    assert "<script" not in text
    assert not set(text) & {"\x00", "\x1b", "\u202e", "\ud800"}
    shown = text_of(parsed(text))
    assert '</title><script src="http://evil.example/x.js">alert(1)</script>&"\'' in shown
    assert HOSTILE not in shown
    text.encode()


def test_the_tables_hold_the_figures() -> None:
    found = comparison()
    shown = tables(parsed(render(found)))
    for candidate in found.sources[0].candidates[:3]:
        assert candidate.inference is not None and candidate.training is not None
        for batch in candidate.inference.batches:
            figures = [candidate.name, str(batch.size), *map(number, (batch.p50, batch.p90, batch.p99))]
            assert figures in [row[:5] for row in shown["Latency"]]
            assert [*figures[:2], number(batch.throughput)] in [row[:3] for row in shown["Throughput"]]
        size = [candidate.name, mebibytes(candidate.inference.memory), mebibytes(candidate.inference.size)]
        assert size in shown["Memory while serving"]
        assert [candidate.name, percent(candidate.inference.accuracy)] in [
            [row[0], row[2]] for row in shown["Accuracy against speed"]
        ]
        rate = [candidate.name, number(candidate.training.steps_per_second)]
        assert rate in [row[:2] for row in shown["Training speed"]]
        losses = next(row for row in shown["The same losses"] if row[0] == candidate.name)
        assert losses[1] == number(candidate.training.losses[0])
        assert losses[-1] == number(candidate.training.losses[-1])
    assert ["onnxaccel cpu", "2.0e-06"] in shown["How far apart"]
    assert "2.50×" in shown["Latency"][0]


def test_bars_are_as_long_as_their_figures_and_dots_in_their_order() -> None:
    found = comparison()
    sides = found.sources[0].candidates[:3]
    for side, size in zip(sides, (30, 60, 120), strict=True):
        assert side.inference is not None
        side.inference.memory = size * 2**20
    by_title = {text_of(f.find("figcaption/h4")): f for f in parsed(render(found)).iter("figure")}  # type: ignore[arg-type]
    widths = [float(bar.get("width", "")[:-1]) for bar in by_title["Memory while serving"].iter("rect")]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 2, 4], rel=1e-3)
    places = {
        text_of(dot): float(dot.get("cx", "")[:-1]) for dot in by_title["Latency"].iter("circle") if len(dot)
    }
    times = {
        f"{s.name}, batch {b.size}: {number(b.p50)} ms": b.p50
        for s in sides
        if s.inference
        for b in s.inference.batches
    }
    assert places.keys() == times.keys()
    assert sorted(places, key=lambda name: places[name]) == sorted(times, key=lambda name: times[name] or 0)


@given(st.lists(st.floats(-1e12, 1e12), min_size=1), st.booleans(), st.booleans())
def test_a_scale_holds_its_values_in_order(values: list[float], zero: bool, even: bool) -> None:
    axis = scale(values, zero=zero, even=even)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places) and 0 <= places[0] and places[-1] <= 100
    assert axis.low < axis.high and axis.ticks == sorted(axis.ticks) and len(axis.ticks) < 20
    assert all(axis.low <= tick <= axis.high or abs(tick) < 1e-9 for tick in axis.ticks)


@given(st.floats(1e-12, 1e12), st.floats(1, 1e9))
def test_a_logarithmic_scale_has_values_at_it(low: float, wide: float) -> None:
    axis = logarithmic(low, low * wide)
    assert 0 < axis.at(low) <= axis.at(low * wide) < 100
    assert 1 <= len(axis.ticks) < 20 or wide < 2


def test_ticks_are_short() -> None:
    values = (0.0, 0.05, 1.0, 2.5, 250.0, 1500.0, 20_000.0, 5e6, 1e-7, 3e-5)
    assert [label(value) for value in values] == [
        "0",
        "0.05",
        "1",
        "2.5",
        "250",
        "1,500",
        "20k",
        "5M",
        "1e-7",
        "3e-5",
    ]


@given(st.lists(st.floats(0, 10) | st.just(float("nan")), max_size=900))
def test_a_long_line_is_thinned_to_means(values: list[float]) -> None:
    points = thin([float(n) for n in range(len(values))], values)
    assert len(points) <= 240
    known = [value for value in values if value == value]
    assert all(min(known) - 1e-9 <= y <= max(known) + 1e-9 for _, y in points if y == y)
    if len(values) <= 240:
        assert len(points) == len(values)


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write(comparison(), tmp_path / "report.html")
    assert path.read_text() == render(comparison())
    assert path.stat().st_size < 200_000
    with pytest.raises(OutputError, match="cannot be written"):
        write(comparison(), "/proc/report.html")


def palettes() -> dict[str, dict[str, str]]:
    """The colours of the light and of the dark sheet, by name."""
    light, dark, *_ = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    return {
        name: dict(re.findall(r"--(\w+): (#\w{6})", text))
        for name, text in (("light", light), ("dark", dark))
    }


def linear(colour: str) -> np.ndarray:
    """Red, green and blue of sRGB as amounts of light."""
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    low, high = sorted(float(linear(colour) @ (0.2126, 0.7152, 0.0722)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(light: np.ndarray) -> np.ndarray:
    """CIE L*a*b* under D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(light, 0, 1) / (0.9505, 1, 1.089), 0.009))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


BLINDNESS = {  # Machado, Oliveira and Fernandes 2009, at full severity; rows of a matrix over linear light
    "none": "1 0 0; 0 1 0; 0 0 1",
    "protanopia": "0.152286 1.052583 -0.204868; 0.114503 0.786281 0.099216; -0.003882 -0.048116 1.051998",
    "deuteranopia": "0.367322 0.860646 -0.227968; 0.280085 0.672501 0.047413; -0.01182 0.04294 0.968881",
    "tritanopia": "1.255528 -0.076749 -0.178779; -0.078411 0.930809 0.147602; 0.004733 0.691367 0.3039",
}
DRAWN = ("onnxaccel", "pytorch", "tensorflow", "caffe", "opencv", "other")


@pytest.mark.parametrize("sheet", ["light", "dark"])
def test_colours_can_be_read_and_told_apart(sheet: str) -> None:
    colours = palettes()[sheet]
    for ground in ("paper", "sheet"):
        for text in ("ink", "soft"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)  # WCAG AA, text
    for text in ("good", "onnxaccel"):  # the ratios and the links
        assert contrast(colours[text], colours["paper"]) >= 4.5, text
    for name in DRAWN:
        assert contrast(colours[name], colours["paper"]) >= 3, name  # WCAG AA, graphics
    for kind, rows in BLINDNESS.items():
        matrix = np.array([row.split() for row in rows.split(";")], float)
        for one, other in itertools.combinations(DRAWN, 2):
            seen = [lab(matrix @ linear(colours[name])) for name in (one, other)]
            assert math.dist(*seen) > 20, f"{one} and {other} look alike under {kind}"
