"""Comparisons of several machines side by side: per source and candidate a column per machine, and ratios."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from onnxaccel.compare.results import Candidate, Comparison, Settings
from onnxaccel.report import figures
from onnxaccel.report.comparison import table
from onnxaccel.report.figures import legible, mebibytes, number, times

SCHEMA = "onnxaccel.machines/1"
"""Version of `document`, as `onnxaccel.compare.results.SCHEMA` is a comparison's."""
LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Metric:
    """Something that machines are held against each other by.

    Attributes:
        name: Its key in the document.
        title: What it is, with its unit.
        figure: Reads it.
        smaller_wins: Whether less of it is better.
        is_bytes: Whether it is shown as MiB.
    """

    name: str
    title: str
    figure: figures.Figure
    smaller_wins: bool = False
    is_bytes: bool = False

    def written(self, value: float | None) -> str:
        """The figure as the tables show it."""
        return mebibytes(value) if self.is_bytes else number(value)


@dataclass(frozen=True)
class Row:
    """A candidate: its figure on each machine, and how many times as good as on the first one that is."""

    name: str
    values: list[float | None]
    ratios: list[float | None]


@dataclass(frozen=True)
class Board:
    """One metric of one source."""

    metric: Metric
    rows: list[Row]


@dataclass(frozen=True)
class Meeting:
    """A source on all machines.

    Attributes:
        name: The source's name.
        boards: A board for each metric that any machine has a figure of.
        winners: By goal, the recommended candidate of each machine.
    """

    name: str
    boards: list[Board]
    winners: dict[str, list[str | None]]


@dataclass(frozen=True)
class SideBySide:
    """Several comparisons.

    Attributes:
        letters: What each machine is called in the tables.
        comparisons: The comparisons.
        files: Where each came from.
        meetings: The sources, in the order in which they first appear.
        differences: What was not the same everywhere.
    """

    letters: list[str]
    comparisons: list[Comparison]
    files: list[str]
    meetings: list[Meeting]
    differences: list[str]


def side_by_side(comparisons: Sequence[Comparison], files: Sequence[str]) -> SideBySide:
    """Put comparisons beside each other: sources and candidates of the same name belong together."""
    names = dict.fromkeys(source.name for found in comparisons for source in found.sources)
    letters = [LETTERS[n] if n < len(LETTERS) else str(n + 1) for n in range(len(comparisons))]
    return SideBySide(
        letters,
        list(comparisons),
        list(files),
        [_meeting(name, comparisons) for name in names],
        _differences(letters, [found.settings for found in comparisons]),
    )


def document(found: SideBySide) -> dict[str, Any]:
    """What ``onnxaccel report --json`` prints of several comparisons."""
    machines = [
        {"file": file, "created": c.created, "machine": asdict(c.machine), "settings": asdict(c.settings)}
        for file, c in zip(found.files, found.comparisons, strict=True)
    ]
    sources = [
        {
            "name": meeting.name,
            "winners": meeting.winners,
            "figures": {board.metric.name: [asdict(row) for row in board.rows] for board in meeting.boards},
        }
        for meeting in found.meetings
    ]
    return {"schema": SCHEMA, "machines": machines, "sources": sources, "differences": found.differences}


def show(found: SideBySide, console: Console | None = None) -> None:
    """Print the machines, then a table per source and metric."""
    out = console or Console(markup=False, highlight=False)
    for letter, file, comparison in zip(found.letters, found.files, found.comparisons, strict=True):
        m = comparison.machine
        line = figures.machine_line(m.name, m.cores, m.memory, m.gpus)
        out.print(Text.assemble((f"{letter}  ", "bold"), f"{line} ({legible(file)})"))
    for difference in found.differences:
        out.print(f"warning: not the same everywhere: {difference}", style="yellow")
    for meeting in found.meetings:
        out.print()
        out.rule(Text(legible(meeting.name, 70), "bold"), align="left", characters="─", style="dim")
        for goal, winners in meeting.winners.items():
            line = "; ".join(f"{a} {legible(w or '-')}" for a, w in zip(found.letters, winners, strict=True))
            out.print(Text.assemble((f"{legible(goal)}: ", "bold green"), line))
        for board in meeting.boards:
            table(out, board.metric.title, *cells(found.letters, board))


def cells(letters: Sequence[str], board: Board, sign: str = "x") -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a board's table: a column per machine, and from the second on its ratio."""
    columns = ["candidate", letters[0]]
    for letter in letters[1:]:
        columns += [letter, sign]
    shown = []
    for row in board.rows:
        line = [legible(row.name, 60), board.metric.written(row.values[0])]
        for value, ratio in zip(row.values[1:], row.ratios[1:], strict=True):
            line += [board.metric.written(value), times(ratio, sign)]
        shown.append(line)
    return columns, shown


def _meeting(name: str, comparisons: Sequence[Comparison]) -> Meeting:
    sources = [next((s for s in found.sources if s.name == name), None) for found in comparisons]
    names = dict.fromkeys(candidate.name for source in sources if source for candidate in source.candidates)
    on = [{c.name: c for c in source.candidates} if source else {} for source in sources]
    boards = []
    for metric in _metrics([candidate for by_name in on for candidate in by_name.values()]):
        rows = []
        for candidate in names:
            values = [metric.figure(by_name[candidate]) if candidate in by_name else None for by_name in on]
            if any(values):
                rows.append(Row(candidate, values, _ratios(values, metric.smaller_wins)))
        if rows:
            best = min if metric.smaller_wins else max
            rows.sort(key=lambda row: best(v for v in row.values if v), reverse=not metric.smaller_wins)
            boards.append(Board(metric, rows))
    goals = dict.fromkeys(r.goal for source in sources if source for r in source.recommendations)
    winners = {
        goal: [
            next((r.winner for r in source.recommendations if r.goal == goal), None) if source else None
            for source in sources
        ]
        for goal in goals
    }
    return Meeting(name, boards, winners)


def _metrics(candidates: Sequence[Candidate]) -> list[Metric]:
    """The metrics; latency at the smallest batch size that all candidates with figures have in common."""
    sizes = [{batch.size for batch in figures.batches(candidate)} for candidate in candidates]
    common = sorted(set.intersection(*filter(None, sizes))) if any(sizes) else []
    metrics = []
    if common:
        size = common[0]
        metrics.append(
            Metric("latency", f"Latency, ms at batch {size}", lambda c: figures.latency_at(c, size), True)
        )
    return [
        *metrics,
        Metric("throughput", "Throughput, samples/s at the best batch", figures.throughput),
        Metric("memory", "Memory while serving, MiB", figures.memory, True, True),
        Metric("training", "Training, steps/s", figures.training_rate),
        Metric("training_memory", "Memory while training, MiB", figures.training_memory, True, True),
    ]


def _ratios(values: Sequence[float | None], smaller_wins: bool) -> list[float | None]:
    """Each value against the first machine's that has one."""
    first = next(value for value in values if value)
    return [None if not value else first / value if smaller_wins else value / first for value in values]


def _differences(letters: Sequence[str], settings: Sequence[Settings]) -> list[str]:
    """Settings in which the comparisons differ: figures then differ by these, not by the machine alone."""
    found = []
    for name, first in vars(settings[0]).items():
        if any(getattr(other, name) != first for other in settings[1:]):
            values = (f"{a} {legible(getattr(s, name), 60)}" for a, s in zip(letters, settings, strict=True))
            found.append(f"{name.replace('_', ' ')}: {', '.join(values)}")
    return found
