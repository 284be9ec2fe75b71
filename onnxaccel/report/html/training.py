"""The charts of training: the losses by step, by time and against each other, speed, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from onnxaccel.compare.results import Source, Training
from onnxaccel.report import figures
from onnxaccel.report.figures import number, percent, times
from onnxaccel.report.html.charts import Line, Row, bar, figure, legend, plot, rows, stretch
from onnxaccel.report.html.elements import Element
from onnxaccel.report.html.inference import NATIVE, memory_bars
from onnxaccel.report.html.scale import Scale, logarithmic, scale
from onnxaccel.report.html.sides import Side

Trained = tuple[Side, Training]
SAMPLED = 10
"""Steps of a loss curve's table."""


def training_figures(source: Source, sides: Sequence[Side]) -> list[Element]:
    """The figures of a source's training, those left out that have nothing to show."""
    trained: list[Trained] = [
        (side, found)
        for side in sides
        for found in [side.candidate.training]
        if found is not None and found.failure is None
    ]
    curves = [(side, found) for side, found in trained if any(map(math.isfinite, found.losses))]
    # the reference side, to which the differences refer, lies at the bottom, broad and pale
    curves.sort(key=lambda entry: entry[1].difference != 0)
    found = [
        by_step(curves),
        by_time(source, curves),
        speed(source, trained),
        memory_bars("Memory while training", [(s, f.memory, f.gpu_memory, None) for s, f in trained]),
        apart(curves),
    ]
    return [element for element in found if element is not None]


def by_step(curves: Sequence[Trained]) -> Element | None:
    """The losses of all sides over the steps: they should be one line."""
    if not curves:
        return None
    lines = [
        Line(
            side.name,
            side.look,
            [float(n) for n in range(1, len(found.losses) + 1)],
            found.losses,
            pale=not n,
        )
        for n, (side, found) in enumerate(curves)
    ]
    steps = max(len(found.losses) for _, found in curves)
    differences = [found.difference for _, found in curves if found.difference is not None]
    agreement = f" They differ by at most {number(max(differences))}." if len(differences) > 1 else ""
    picked = sorted({round(n * (steps - 1) / (SAMPLED - 1)) for n in range(SAMPLED)})
    cells = [
        (side.name, *(number(found.losses[n]) if n < len(found.losses) else "" for n in picked))
        for side, found in curves
    ]
    up = _losses(curves)
    chart = plot(
        lines,
        scale([1.0, float(max(steps, 2))], even=True),
        up,
        f"Loss of each of {steps} steps for {len(curves)} sides; the figures are in the table below",
        ("step", up.unit("loss")),
    )
    return figure(
        "The same losses",
        f"Same weights, same batches: the curves of all sides should lie on one another.{agreement}",
        [chart, _legend(curves)],
        ("loss at step", *(str(n + 1) for n in picked)),
        cells,
    )


def by_time(source: Source, curves: Sequence[Trained]) -> Element | None:
    """The losses over the time that the steps take: who is there first."""
    timed = [(side, found, found.steps_per_second) for side, found in curves if found.steps_per_second]
    if not timed:
        return None
    lines = [
        Line(side.name, side.look, [(n + 1) / rate for n in range(len(found.losses))], found.losses)
        for side, found, rate in timed
        if rate
    ]
    # Steps are alike on every side: on a logarithmic axis a faster side is the same curve, moved left.
    # The first three steps would take half of that axis.
    begin = min(line.x[min(3, len(line.x) - 1)] for line in lines)
    for line in lines:
        skipped = sum(x < begin for x in line.x)
        line.x, line.y = line.x[skipped:], line.y[skipped:]
    across = logarithmic(begin, max(line.x[-1] for line in lines))
    up = _losses(curves)
    level = None
    if source.target_loss is not None:
        level = (source.target_loss, f"loss of {number(source.target_loss)}")
    chart = plot(
        lines,
        across,
        up,
        "Loss over seconds of training; the figures are in the table below",
        (across.unit("seconds of training"), up.unit("loss")),
        level,
    )
    cells = [
        (
            side.name,
            number(found.seconds_to_loss),
            number(found.startup),
            number(found.first_step),
            percent(found.accuracy),
        )
        for side, found in sorted(
            ((side, found) for side, found, _ in timed), key=lambda e: e[1].seconds_to_loss or math.inf
        )
    ]
    return figure(
        "The same losses over time",
        "The curves over the time that the steps take, start-up left out. Farther left is better.",
        [chart, _legend(curves)],
        ("candidate", "to the loss s", "start s", "first step s", "accuracy"),
        cells,
    )


def apart(curves: Sequence[Trained]) -> Element | None:
    """How far each side's losses are from the reference side's."""
    if len(curves) < 2 or curves[0][1].difference != 0:
        return None
    reference = curves[0][1].losses
    lines = []
    for side, found in curves[1:]:
        gaps = accumulate((abs(a - b) for a, b in zip(found.losses, reference, strict=False)), _larger)
        # nothing apart has no place on a logarithmic axis
        known = [(float(n + 1), gap) for n, gap in enumerate(gaps) if math.isfinite(gap) and gap > 0]
        if known:
            lines.append(Line(side.name, side.look, [x for x, _ in known], [gap for _, gap in known]))
    if not lines:
        return None
    values = [value for line in lines for value in line.y]
    steps = max(line.x[-1] for line in lines)
    chart = plot(
        lines,
        scale([1.0, max(steps, 2.0)], even=True),
        logarithmic(min(values), max(values)),
        "Largest difference so far of each side's loss to the reference side's, by step; see the table below",
        ("step", "difference, logarithmic"),
    )
    name = curves[0][0].name
    return figure(
        "How far apart",
        f"The largest difference so far of a side's loss to that of {name}. Rounding grows with every step.",
        [chart, _legend(curves[1:])],
        ("candidate", "largest difference"),
        [(side.name, number(found.difference)) for side, found in curves],
    )


def speed(source: Source, trained: Sequence[Trained]) -> Element | None:
    """Bars of steps per second, with the spread of the rounds."""
    known = [(side, found, found.steps_per_second) for side, found in trained if found.steps_per_second]
    if not known:
        return None
    known.sort(key=lambda entry: -(entry[2] or 0))
    axis = scale([max([rate or 0, *found.rounds]) for _, found, rate in known], zero=True)
    ratios = figures.ratios(source, figures.training_rate)
    lines, cells = [], []
    for side, found, rate in known:
        marks = [bar(0, axis.at(rate or 0), f"{side.name}: {number(rate)} steps/s")]
        if len(found.rounds) > 1:
            marks.append(stretch(axis.at(min(found.rounds)), axis.at(max(found.rounds)), "spread"))
        ratio = times(ratios.get(side.candidate.name), "×") if ratios else ""
        lines.append(Row(side.name, number(rate), ratio, side.look, marks))
        spread = figures.spread(found.rounds)
        cells.append((side.name, number(rate), "" if spread is None else f"±{percent(spread)}", ratio))
    return figure(
        "Training speed",
        "Steps per second, the line from the slowest to the fastest round. "
        f"{NATIVE if ratios else ''}Longer is better.",
        [rows(lines, axis, "steps/s")],
        ("candidate", "steps/s", "spread", "ratio"),
        cells,
    )


def _larger(so_far: float, gap: float) -> float:
    return gap if gap > so_far or math.isnan(so_far) else so_far


def _losses(curves: Sequence[Trained]) -> Scale:
    return scale([loss for _, found in curves for loss in found.losses])


def _legend(curves: Sequence[Trained]) -> Element:
    return legend((side.name, side.look) for side, _ in curves)
