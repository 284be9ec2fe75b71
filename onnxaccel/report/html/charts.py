"""Charts as SVG and HTML without a script: positions in percent, sizes in pixels.

So a chart is as wide as its place, from a phone to paper, and its text stays as large as the page's. Each
chart is a figure with its title, its legend, and its own table of the same figures, folded away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from onnxaccel.compare.results import Candidate
from onnxaccel.report.figures import legible
from onnxaccel.report.html.elements import Child, Element, table, tag
from onnxaccel.report.html.scale import Scale, label

SHAPES = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "M-3.6,-3.6H3.6V3.6H-3.6Z",
    "M0,-4.6L4.6,3.6H-4.6Z",
    "M0,-5.2L5.2,0L0,5.2L-5.2,0Z",
    "M-1.4,-4.6H1.4V-1.4H4.6V1.4H1.4V4.6H-1.4V1.4H-4.6V-1.4H-1.4Z",
    "M0,4.6L4.6,-3.6H-4.6Z",
)
"""Markers: circle, square, triangle, diamond, plus, triangle upside down."""
DASHES = (None, "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
HUES = ("onnxaccel", "pytorch", "tensorflow", "caffe", "opencv")
"""Frameworks that have a hue in the style sheet; all others are grey."""
POINTS = 240
"""Points of a line at most; a longer one shows means."""
MIDDLE = 28
"""Where a row's marks lie, in pixels below its top; above them stand its name and value."""


@dataclass(frozen=True)
class Look:
    """How something looks in every chart: hue, marker and dash; two of them tell it apart without the hue."""

    hue: str
    shape: int = 0

    @property
    def path(self) -> str:
        """The marker's outline."""
        return SHAPES[self.shape % len(SHAPES)]

    @property
    def dash(self) -> str | None:
        """The line's dashes."""
        return DASHES[self.shape % len(DASHES)]


def looks(candidates: Sequence[Candidate]) -> list[Look]:
    """A look for each candidate: the framework gives the hue, its number among that framework's the shape."""
    seen: dict[str, int] = {}
    found = []
    for candidate in candidates:
        hue = candidate.framework if candidate.framework in HUES else "other"
        found.append(Look(hue, seen.get(hue, 0)))
        seen[hue] = seen.get(hue, 0) + 1
    return found


@dataclass
class Row:
    """A line of a chart of rows.

    Attributes:
        name: Written above it, at the left.
        value: Written above it, at the right.
        ratio: Written after the value.
        look: How it looks.
        marks: What is drawn on it.
    """

    name: str
    value: str
    ratio: str
    look: Look
    marks: list[Element] = field(default_factory=list)


def dot(at: float, radius: float, title: str) -> Element:
    """A dot on a row."""
    return tag("circle", tag("title", title), cx=f"{at:.2f}%", cy=MIDDLE, r=radius)


def mark_on_row(at: float, look: Look, title: str) -> Element:
    """A marker on a row."""
    shape = tag("path", tag("title", title), d=look.path, class_=f"{look.hue} mark")
    return tag("svg", shape, x=f"{at:.2f}%", y=MIDDLE)


def stretch(start: float, end: float, class_: str) -> Element:
    """A thin line along a row."""
    return tag("line", x1=f"{start:.2f}%", x2=f"{end:.2f}%", y1=MIDDLE, y2=MIDDLE, class_=class_)


def bar(start: float, end: float, title: str, class_: str | None = None) -> Element:
    """A bar along a row."""
    place = {"x": f"{start:.2f}%", "width": f"{max(0.0, end - start):.2f}%"}
    return tag("rect", tag("title", title), y=MIDDLE - 6, height=12, rx=1, class_=class_, **place)


def rows(lines: Iterable[Row], axis: Scale, unit: str) -> Element:
    """A chart of rows over one axis: name and value above each, its marks below, grid lines through all."""
    grid = [
        tag("line", x1=f"{at:.2f}%", x2=f"{at:.2f}%", y1="0", y2="100%") for at in map(axis.at, axis.ticks)
    ]
    items = []
    lines = list(lines)
    ratios = any(line.ratio for line in lines)
    for line in lines:
        shown = tag(
            "svg",
            tag("g", *(_copy(element) for element in grid), class_="grid"),
            *line.marks,
            aria_hidden="true",
        )
        text = tag("span", line.name, class_="name", title=line.name)
        value = tag("span", line.value, class_="value")
        ratio = tag("span", line.ratio, class_="times") if ratios else None
        items.append(tag("li", tag("div", text, value, ratio), shown, class_=line.look.hue))
    ticks = [
        tag("text", label(tick), x=f"{axis.at(tick):.2f}%", y=12, text_anchor="middle")
        for tick in _apart(axis)
    ]
    foot = tag("svg", *ticks, class_="ticks", aria_hidden="true")
    return tag(
        "div",
        tag("ol", *items),
        foot,
        tag("p", unit, class_="unit"),
        class_="rows" if axis.low else "rows bars",
    )


@dataclass
class Line:
    """A line of a plot: values over x, in order."""

    name: str
    look: Look
    x: list[float]
    y: list[float]
    pale: bool = False


def plot(
    lines: Sequence[Line],
    across: Scale,
    up: Scale,
    title: str,
    units: tuple[str, str],
    level: tuple[float, str] | None = None,
) -> Element:
    """Lines over two axes, a marker now and then on each, at places of its own so that none hides another.

    Args:
        lines: What is drawn, the first at the bottom.
        across: The horizontal axis.
        up: The vertical axis.
        title: What a screen reader says of it.
        units: Written at the horizontal and at the vertical axis.
        level: A height to mark, with its name.
    """
    drawn: list[Element] = []
    marks: list[Element] = []
    for number, line in enumerate(lines):
        points = thin(line.x, line.y)
        path = _path([(across.at(x) * 10, 1000 - up.at(y) * 10) for x, y in points])
        dash = None if line.pale else line.look.dash
        pale = " pale" if line.pale else ""
        drawn.append(
            tag(
                "path",
                d=path,
                class_=f"{line.look.hue} line{pale}",
                stroke_dasharray=dash,
                vector_effect="non-scaling-stroke",
            )
        )
        known = [(x, y) for x, y in points if math.isfinite(y)]
        for share in (0.12, 0.45, 0.78):
            if known:
                x, y = known[min(len(known) - 1, int(len(known) * (share + 0.22 * number / len(lines))))]
                marks.append(marker(across.at(x), 100 - up.at(y), line.look, line.name))
    inner = tag(
        "svg", *drawn, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%"
    )
    extra: list[Child] = []
    if level is not None:
        height = f"{100 - up.at(level[0]):.2f}%"
        extra = [
            tag("line", x1="0", x2="100%", y1=height, y2=height, class_="level"),
            tag("text", level[1], x=4, y=height, dy=-5),
        ]
    return frame(across, up, title, units, [*extra, inner, *marks])


@dataclass
class Point:
    """A point of a scatter plot; ``named`` ones have their name beside them."""

    name: str
    look: Look
    x: float
    y: float
    named: bool = False


def scatter(points: Sequence[Point], across: Scale, up: Scale, title: str, units: tuple[str, str]) -> Element:
    """Points over two axes."""
    drawn: list[Child] = []
    taken: list[float] = []
    for point in sorted(points, key=lambda point: point.named):
        x, y = across.at(point.x), 100 - up.at(point.y)
        drawn.append(marker(x, y, point.look, point.name))
        if point.named and all(abs(y - other) > 8 for other in taken):
            taken.append(y)
            left = x > 50
            drawn.append(
                tag(
                    "text",
                    legible(point.name, 32),
                    x=f"{x:.2f}%",
                    y=f"{y:.2f}%",
                    dx=-9 if left else 9,
                    dy=4,
                    text_anchor="end" if left else "start",
                    class_="label",
                )
            )
    return frame(across, up, title, units, drawn)


def frame(across: Scale, up: Scale, title: str, units: tuple[str, str], content: Sequence[Child]) -> Element:
    """Axes, their values, and what is drawn between them."""
    grid: list[Element] = []
    text: list[Element] = []
    for tick in up.ticks:
        y = f"{100 - up.at(tick):.2f}%"
        grid.append(tag("line", x1="0", x2="100%", y1=y, y2=y))
        text.append(tag("text", label(tick), x=-8, y=y, dy=4, text_anchor="end"))
    for tick in _apart(across):
        x = f"{across.at(tick):.2f}%"
        text.append(tag("text", label(tick), x=x, y="100%", dy=18, text_anchor="middle"))
        grid.append(tag("line", x1=x, x2=x, y1="0", y2="100%"))
    shown = tag("svg", tag("g", *grid, class_="grid"), *text, *content, role="img", aria_label=title)
    return tag(
        "div",
        tag("p", units[1], class_="unit"),
        shown,
        tag("p", units[0], class_="unit across"),
        class_="plot",
    )


def marker(x: float, y: float, look: Look, title: str | None = None) -> Element:
    """A marker at a place given in percent."""
    name = tag("title", title) if title is not None else None
    shape = tag("path", name, d=look.path, class_=f"{look.hue} mark")
    return tag("svg", shape, x=f"{x:.2f}%", y=f"{y:.2f}%")


def legend(entries: Iterable[tuple[str, Look]], *, lines: bool = True) -> Element:
    """Which look is whose."""
    items = []
    for name, look in entries:
        if not lines:
            mark = tag("path", d=look.path, class_=f"{look.hue} mark", transform="translate(7 7)")
            items.append(tag("li", tag("svg", mark, width=14, height=14, aria_hidden="true"), name))
            continue
        line = tag("line", x1=0, x2=28, y1=7, y2=7, class_=f"{look.hue} line", stroke_dasharray=look.dash)
        mark = tag("path", d=look.path, class_=f"{look.hue} mark", transform="translate(14 7)")
        sample = tag("svg", line, mark, width=28, height=14, aria_hidden="true")
        items.append(tag("li", sample, name))
    return tag("ul", *items, class_="legend")


def figure(
    title: str,
    hint: str,
    chart: Sequence[Child],
    columns: Sequence[str],
    figures: Sequence[Sequence[str]],
) -> Element:
    """A chart with its title, what it says, and its figures behind a fold."""
    caption = tag("figcaption", tag("h4", title), tag("p", hint) if hint else None)
    fold = tag("details", tag("summary", "The figures"), table(columns, figures, title))
    return tag("figure", caption, *chart, fold)


def figure_group(title: str, found: Sequence[Element]) -> list[Child]:
    """Figures side by side under a heading; nothing where there are none."""
    return [tag("h3", title), tag("div", *found, class_="figures")] if found else []


def thin(
    x: Sequence[float],
    y: Sequence[float],
    points: int = POINTS,
) -> list[tuple[float, float]]:
    """At most ``points`` points: means of neighbours, NaN where none of them is finite."""
    count = min(len(x), len(y))
    size = max(1, math.ceil(count / points))
    found = []
    for start in range(0, count, size):
        known = [value for value in y[start : min(start + size, count)] if math.isfinite(value)]
        found.append((x[min(start + size // 2, count - 1)], fmean(known) if known else math.nan))
    return found


def _path(points: Sequence[tuple[float, float]]) -> str:
    """The line through points; it has a gap where one is not finite."""
    words = []
    pen = "M"
    for x, y in points:
        if math.isfinite(y):
            words.append(f"{pen}{x:.1f},{y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(words)


def _apart(axis: Scale) -> list[float]:
    """The ticks whose labels do not run into each other on a phone."""
    kept: list[float] = []
    for tick in axis.ticks:
        if not kept or axis.at(tick) - axis.at(kept[-1]) >= 11:
            kept.append(tick)
    return kept


def _copy(element: Element) -> Element:
    return Element(element.tag, dict(element.attrib))
