"""The page of several machines: what they are, then each source's figures on all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from onnxaccel.compare.document import write_text
from onnxaccel.report.figures import legible, machine_line, times
from onnxaccel.report.html.charts import Look, Row, figure, figure_group, legend, mark_on_row, rows, stretch
from onnxaccel.report.html.elements import Child, Element, page, table, tag
from onnxaccel.report.html.page import notes, style, versions, when
from onnxaccel.report.html.scale import scale
from onnxaccel.report.machines import Board, Meeting, SideBySide, cells

HUES = ("machine-a", "machine-b", "machine-c", "machine-d")
SPELLED = 3
"""Machines whose figures are all written in a chart; of more, only the least and the most."""


def write(found: SideBySide, path: str | os.PathLike[str]) -> Path:
    """Write the report of several machines, atomically.

    Raises:
        OutputError: It cannot be written there.
    """
    return write_text(path, render(found))


def render(found: SideBySide) -> str:
    """The HTML document of several comparisons."""
    looks = [Look(HUES[n % len(HUES)], n) for n in range(len(found.letters))]
    named = [
        (f"{letter}: {legible(comparison.machine.name, 40)}", look)
        for letter, comparison, look in zip(found.letters, found.comparisons, looks, strict=True)
    ]
    machines = []
    for letter, file, c in zip(found.letters, found.files, found.comparisons, strict=True):
        m = c.machine
        line = machine_line(m.name, m.cores, m.memory, m.gpus)
        machines.append((letter, line, legible(m.system), when(c.created), legible(file, 80)))
    every = dict.fromkeys(name for c in found.comparisons for name, _ in versions(c.machine))
    packages = [
        (name, *(dict(versions(c.machine)).get(name, "") for c in found.comparisons)) for name in every
    ]
    title = f"{len(found.letters)} machines side by side"
    return page(
        title,
        style(),
        tag("header", tag("p", "onnxaccel comparison", class_="kicker"), tag("h1", title)),
        tag(
            "section",
            tag("h2", "The machines"),
            table(("name", "machine", "system", "measured", "file"), machines, "Machines", numbers=False),
            class_="short",
        ),
        notes([f"Not the same everywhere: {line}" for line in found.differences]),
        *(_meeting(meeting, found, named) for meeting in found.meetings),
        tag(
            "section",
            tag("h2", "Versions"),
            table(("package", *found.letters), packages, "Versions", numbers=False),
            id="method",
        ),
    )


def _meeting(meeting: Meeting, found: SideBySide, named: list[tuple[str, Look]]) -> Element:
    parts: list[Child] = [tag("h2", legible(meeting.name, 60))]
    if meeting.winners:
        best = [
            (legible(goal, 30), *(legible(name or "", 60) for name in winners))
            for goal, winners in meeting.winners.items()
        ]
        parts.append(table(("goal", *found.letters), best, f"{meeting.name}: best by goal", numbers=False))
    parts += figure_group("Figures", [_board(board, found, named) for board in meeting.boards])
    if not meeting.boards:
        parts.append(tag("p", "No machine has figures of it.", class_="none"))
    return tag("section", *parts)


def _board(board: Board, found: SideBySide, named: list[tuple[str, Look]]) -> Element:
    shift = 2**20 if board.metric.is_bytes else 1
    axis = scale([value / shift for row in board.rows for value in row.values if value])
    lines = []
    for row in board.rows:
        places = [None if not value else axis.at(value / shift) for value in row.values]
        known = [place for place in places if place is not None]
        marks = [stretch(min(known), max(known), "join")]
        for place, value, (name, look) in zip(places, row.values, named, strict=True):
            if place is not None:
                marks.append(mark_on_row(place, look, f"{name}: {board.metric.written(value)}"))
        few = (
            row.values
            if len(row.values) <= SPELLED
            else sorted(filter(None, row.values))[:: len(known) - 1 or 1]
        )
        shown = (" / " if few is row.values else " – ").join(map(board.metric.written, few))
        ratio = times(row.ratios[1], "×") if len(row.values) == 2 and all(row.values) else ""
        lines.append(Row(legible(row.name, 60), shown, ratio, Look("other"), marks))
    columns, figures = cells(found.letters, board, "×")
    title, _, unit = board.metric.title.partition(", ")
    better = "left" if board.metric.smaller_wins else "right"
    order = " / ".join(found.letters) if len(found.letters) <= SPELLED else "the least and the most"
    hint = f"At the right {order}. Farther {better} is better."
    chart = [legend(named, lines=False), rows(lines, axis, axis.unit(unit))]
    return figure(title, hint, chart, columns, figures)


def _ends(values: Sequence[float | None]) -> list[float]:
    """The least and the most of the values."""
    known = [value for value in values if value]
    return [min(known), max(known)]
