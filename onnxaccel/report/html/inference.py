"""The charts of inference: latency and throughput by batch size, accuracy over speed, memory, the start."""

from __future__ import annotations

from collections.abc import Sequence
from operator import ge

from onnxaccel.compare.results import Source
from onnxaccel.report import figures
from onnxaccel.report.figures import mebibytes, number, percent, times
from onnxaccel.report.html.charts import (
    Point,
    Row,
    bar,
    dot,
    figure,
    legend,
    rows,
    scatter,
    stretch,
)
from onnxaccel.report.html.elements import Element, tag
from onnxaccel.report.html.scale import logarithmic, scale
from onnxaccel.report.html.sides import Side

NATIVE = "The best native is 1×. "


def inference_figures(source: Source, sides: Sequence[Side]) -> list[Element]:
    """The figures of a source's inference, those left out that have nothing to show."""
    shown = [side for side in sides if figures.batches(side.candidate)]
    if not shown:
        return []
    found = [
        latency(source, shown),
        throughput(source, shown),
        memory_bars(
            "Memory while serving",
            [
                (s, f.memory, f.gpu_memory, f.size)
                for s in shown
                for f in [s.candidate.inference]
                if f is not None
            ],
        ),
        start(shown),
        accuracy(shown),
    ]
    return [element for element in found if element is not None]


def latency(source: Source, sides: Sequence[Side]) -> Element | None:
    """A dot per batch size at the median, with a whisker to the 99th percentile."""
    timed = [(side, [b for b in figures.batches(side.candidate) if b.p50]) for side in sides]
    timed = [(side, batches) for side, batches in timed if batches]
    if not timed:
        return None
    sizes = sorted({batch.size for _, batches in timed for batch in batches})
    axis = scale([value for _, bs in timed for b in bs for value in (b.p50 or 0, b.p99 or b.p50 or 0)])
    ratios = figures.ratios(source, figures.latency, smaller_wins=True)
    lines, cells = [], []
    for side, batches in sorted(timed, key=lambda entry: entry[1][0].p50 or 0):
        marks = [
            stretch(axis.at(batch.p50), axis.at(batch.p99), "whisker")
            for batch in batches
            if batch.p50 is not None and batch.p99 is not None
        ]
        for batch in reversed(batches):  # small dots lie on large ones
            said = f"{side.name}, batch {batch.size}: {number(batch.p50)} ms"
            marks.append(dot(axis.at(batch.p50 or 0), radius(batch.size, sizes), said))
        ratio = times(ratios.get(side.candidate.name), "×") if ratios else ""
        lines.append(Row(side.name, number(batches[0].p50), ratio, side.look, marks))
        for batch in batches:
            spans = map(number, (batch.p50, batch.p90, batch.p99))
            cells.append((side.name, str(batch.size), *spans, ratio if batch.size == sizes[0] else ""))
    return figure(
        "Latency",
        f"Milliseconds per run: dots at the median, lines to the 99th percentile. At the right batch "
        f"{sizes[0]}. {NATIVE if ratios else ''}Farther left is better.",
        [sizes_legend(sizes), rows(lines, axis, axis.unit("ms"))],
        ("candidate", "batch", "p50 ms", "p90 ms", "p99 ms", "ratio"),
        cells,
    )


def throughput(source: Source, sides: Sequence[Side]) -> Element | None:
    """A dot per batch size, joined."""
    timed = [(side, [b for b in figures.batches(side.candidate) if b.throughput]) for side in sides]
    timed = [(side, batches) for side, batches in timed if batches]
    if not timed:
        return None
    sizes = sorted({batch.size for _, batches in timed for batch in batches})
    axis = scale([batch.throughput or 0 for _, batches in timed for batch in batches])
    ratios = figures.ratios(source, figures.throughput)
    lines, cells = [], []
    for side, batches in sorted(timed, key=lambda entry: -(figures.throughput(entry[0].candidate) or 0)):
        places = [axis.at(batch.throughput or 0) for batch in batches]
        marks = [stretch(min(places), max(places), "join")]
        for batch, at in reversed(list(zip(batches, places, strict=True))):
            said = f"{side.name}, batch {batch.size}: {number(batch.throughput)} samples/s"
            marks.append(dot(at, radius(batch.size, sizes), said))
        best = figures.throughput(side.candidate)
        ratio = times(ratios.get(side.candidate.name), "×") if ratios else ""
        lines.append(Row(side.name, number(best), ratio, side.look, marks))
        cells += [
            (
                side.name,
                str(batch.size),
                number(batch.throughput),
                f"±{percent(figures.spread(batch.rounds))}" if len(batch.rounds) > 1 else "",
                ratio if batch.throughput == best else "",
            )
            for batch in batches
        ]
    return figure(
        "Throughput",
        f"Samples per second, at the right the best of each. {NATIVE if ratios else ''}"
        "Farther right is better.",
        [sizes_legend(sizes), rows(lines, axis, axis.unit("samples/s"))],
        ("candidate", "batch", "samples/s", "spread", "ratio"),
        cells,
    )


def accuracy(sides: Sequence[Side]) -> Element | None:
    """Accuracy over speed; without labels, how far the outputs are from the source's."""
    labelled = [
        (s, f.accuracy) for s in sides for f in [s.candidate.inference] if f and f.accuracy is not None
    ]
    known = [(s, f.relative_error) for s in sides for f in [s.candidate.inference] if f and f.relative_error]
    chosen = labelled or known
    points = [(s, v, figures.throughput(s.candidate)) for s, v in chosen]
    placed = [(side, value, speed) for side, value, speed in points if speed]
    if not placed:
        return None
    across = scale([speed for _, _, speed in placed])
    if labelled:
        up = scale([value * 100 for _, value, _ in placed], span=1)
        up = up if up.high <= 100 else type(up)(up.low, 100.0, [tick for tick in up.ticks if tick <= 100])
    else:
        up = logarithmic(min(v for _, v, _ in placed), max(v for _, v, _ in placed))
    sign = 1 if labelled else -1
    goods = [(speed, sign * value) for _, value, speed in placed]
    dots = [
        Point(
            side.name,
            side.look,
            speed,
            value * 100 if labelled else value,
            named=not any(all(map(ge, other, good)) and other != good for other in goods),
        )
        for (side, value, speed), good in zip(placed, goods, strict=True)
    ]
    columns = ("candidate", "samples/s", "accuracy" if labelled else "relative error")
    cells = [(s.name, number(speed), percent(v) if labelled else number(v)) for s, v, speed in placed]
    title = "Accuracy against speed" if labelled else "Error against speed"
    hint = (
        "Named are those that no other beats in both. Up and right is better."
        if labelled
        else "Largest difference to the source's own outputs, relative. Named are those that no other beats "
        "in both. Down and right is better."
    )
    units = (across.unit("samples/s"), "% right" if labelled else up.unit("relative error"))
    chart = scatter(dots, across, up, f"{title}: the figures are in the table below", units)
    return figure(
        title, hint, [chart, legend(((s.name, s.look) for s, _, _ in placed), lines=False)], columns, cells
    )


def memory_bars(
    title: str, found: Sequence[tuple[Side, int | None, int | None, int | None]]
) -> Element | None:
    """Bars of memory, for sides with their bytes of memory, of GPU memory and of files."""
    known = sorted(((entry, entry[1]) for entry in found if entry[1] is not None), key=lambda entry: entry[1])
    if not known:
        return None
    axis = scale([size / 2**20 for _, size in known], zero=True)
    lines, cells = [], []
    for (side, memory, gpu, file), size in known:
        mark = bar(0, axis.at(size / 2**20), f"{side.name}: {mebibytes(size)} MiB")
        lines.append(Row(side.name, mebibytes(size), "", side.look, [mark]))
        cells.append((side.name, *map(mebibytes, (memory, gpu, file))))
    return figure(
        title,
        "MiB that loading and running add to the process at their peak. Shorter is better.",
        [rows(lines, axis, "MiB")],
        ("candidate", "MiB", "GPU MiB", "file MiB"),
        cells,
    )


def start(sides: Sequence[Side]) -> Element | None:
    """Bars of the time until the first answer: loading, then the first run."""
    known = [
        (side, found.startup or 0.0, found.first_run or 0.0)
        for side in sides
        for found in [side.candidate.inference]
        if found is not None and (found.startup is not None or found.first_run is not None)
    ]
    if not known:
        return None
    known.sort(key=lambda entry: entry[1] + entry[2])
    axis = scale([loading + first for _, loading, first in known], zero=True)
    lines = []
    for side, loading, first in known:
        middle = axis.at(loading)
        marks = [
            bar(0, middle, f"{side.name}: loaded after {number(loading)} s"),
            bar(middle, axis.at(loading + first), f"{side.name}: first run {number(first)} s", "second"),
        ]
        lines.append(Row(side.name, number(loading + first), "", side.look, marks))
    cells = [(side.name, number(a), number(b), number(a + b)) for side, a, b in known]
    return figure(
        "Time to the first answer",
        "From the process's start to the loaded model, then, pale, the first run. Shorter is better.",
        [rows(lines, axis, "s")],
        ("candidate", "loaded s", "first run s", "together s"),
        cells,
    )


def radius(size: int, sizes: Sequence[int]) -> float:
    """A dot's radius in pixels: larger batches have larger dots."""
    return 3.0 + 4.0 * sizes.index(size) / max(1, len(sizes) - 1) if len(sizes) > 1 else 4.5


def sizes_legend(sizes: Sequence[int]) -> Element | None:
    """Which dot is which batch size."""
    if len(sizes) < 2:
        return None
    items = [
        tag(
            "li",
            tag(
                "svg",
                tag("circle", cx=8, cy=8, r=radius(size, sizes)),
                width=16,
                height=16,
                aria_hidden="true",
            ),
            str(size),
        )
        for size in sizes
    ]
    return tag("ul", tag("li", "batch of"), *items, class_="legend sizes")
