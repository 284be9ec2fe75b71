"""A comparison as terminal tables: the answers first, then what they rest on; readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxaccel.compare.results import Comparison, Settings, Source
from onnxaccel.report import figures
from onnxaccel.report.figures import legible, mebibytes, number, percent, times

ACROSS = 5
"""Batch sizes side by side; more of them go on in a second table."""


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print a comparison to standard output: per source the answers, what they rest on, what failed."""
    out = console or Console(markup=False, highlight=False)
    out.print(figures.machine_line(*_machine(comparison)), style="bold")
    out.print(settings_line(comparison.settings))
    for source in comparison.sources:
        out.print()
        out.rule(Text(legible(source.name, 70), "bold"), align="left", characters="─", style="dim")
        out.print(figures.facts_line(source), style="dim")
        _show_source(out, source)
    for warning in comparison.warnings:
        out.print(f"warning: {legible(warning)}", style="yellow")


def _show_source(out: Console, source: Source) -> None:
    if source.failure is not None:
        out.print(f"not compared: {legible(source.failure)}", style="red")
    for answer in source.recommendations:
        out.print(Text.assemble((f"{legible(answer.goal)}: ", "bold green"), legible(answer.sentence)))
        if answer.command is not None:
            out.print(Text(f"    {legible(answer.command)}", "cyan"), soft_wrap=True)  # copied in one piece
    inference = [candidate for candidate in source.candidates if figures.batches(candidate)]
    if inference:
        faster = figures.ratios(source, figures.latency, smaller_wins=True)
        more = figures.ratios(source, figures.throughput)
        sizes = sorted({batch.size for candidate in inference for batch in figures.batches(candidate)})
        first = {c.name: next(b for b in figures.batches(c)) for c in inference}
        table(
            out,
            f"Inference (ms at batch {sizes[0]}, samples/s at the best; x: best native = 1)",
            ("candidate", "p50 ms", "p90", "p99", "x", "samples/s", "x"),
            (
                (
                    c.name,
                    *(number(v) for v in (figures.latency(c), first[c.name].p90, first[c.name].p99)),
                    times(faster.get(c.name)),
                    number(figures.throughput(c)),
                    times(more.get(c.name)),
                )
                for c in sorted(inference, key=lambda c: figures.latency(c) or float("inf"))
            ),
        )
        rest = iter(sizes if len(sizes) > 1 else ())
        while part := list(islice(rest, ACROSS)):
            table(
                out,
                "Samples/s by batch size",
                ("candidate", *map(str, part)),
                (
                    (c.name, *(number(rates.get(size)) for size in part))
                    for c in inference
                    for rates in [{batch.size: batch.throughput for batch in figures.batches(c)}]
                ),
            )
        table(
            out,
            "What it costs, and whether it is right",
            ("candidate", "MiB", "GPU MiB", "file MiB", "start s", "first run s", "error", "accuracy"),
            (
                (
                    c.name,
                    *map(mebibytes, (found.memory, found.gpu_memory, found.size)),
                    *map(number, (found.startup, found.first_run)),
                    number(found.relative_error, 2),
                    percent(found.accuracy),
                )
                for c in inference
                for found in [c.inference]
                if found is not None
            ),
        )
    _show_training(out, source)
    table(out, "Without figures", ("candidate", "part", "reason"), figures.failures(source), numbers=False)


def _show_training(out: Console, source: Source) -> None:
    faster = figures.ratios(source, figures.training_rate)
    sides = [c for c in source.candidates if c.training is not None and c.training.failure is None]
    goal = "" if source.target_loss is None else f" (to loss: until a loss of {number(source.target_loss)})"
    sides.sort(key=lambda c: figures.training_rate(c) or 0, reverse=True)
    table(
        out,
        f"Training{goal}",
        ("candidate", "steps/s", "x", "to loss s", "last loss", "difference", "accuracy"),
        (
            (
                c.name,
                number(found.steps_per_second),
                times(faster.get(c.name)),
                number(found.seconds_to_loss),
                number(found.losses[-1] if found.losses else None),
                number(found.difference, 2),
                percent(found.accuracy),
            )
            for c in sides
            for found in [c.training]
            if found is not None
        ),
    )
    table(
        out,
        "What training costs",
        ("candidate", "MiB", "GPU MiB", "start s", "first step s"),
        (
            (
                c.name,
                *map(mebibytes, (found.memory, found.gpu_memory)),
                *map(number, (found.startup, found.first_step)),
            )
            for c in sides
            for found in [c.training]
            if found is not None
        ),
    )


def table(
    out: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True
) -> None:
    """Print one table, its first column text and the others numbers; columns without any figure are left out.

    Nothing is printed where there are no rows.
    """
    cells = [tuple(row) for row in rows]
    if not cells:
        return
    kept = [n for n in range(len(columns)) if n == 0 or any(row[n] != figures.MISSING for row in cells)]
    shown = Table(
        title=Text(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for n in kept:
        figure = numbers and n > 0
        shown.add_column(
            columns[n],
            justify="right" if figure else "left",
            no_wrap=figure,
            overflow="fold",
            min_width=8 if not figure else None,
        )
    for row in cells:
        shown.add_row(*(Text(legible(row[n])) for n in kept))
    out.print()
    out.print(shown)


def settings_line(settings: Settings) -> str:
    """What was the same for all, in one line."""
    parts = [f"{settings.threads} thread{'s' * (settings.threads != 1)}", legible(settings.precision)]
    parts.append(f"batches of {', '.join(map(str, settings.batch_sizes))}" if settings.batch_sizes else "")
    parts.append(f"data {legible(settings.data)}" if settings.data else "random inputs")
    parts.append(f"{settings.rounds} rounds of {number(settings.seconds)} s")
    parts.append(f"seed {settings.seed}")
    if settings.training:
        trained = ", ".join(f"{legible(k)} {legible(v)}" for k, v in settings.training.items())
        parts.append(f"training: {trained}")
    return "; ".join(part for part in parts if part)


def _machine(comparison: Comparison) -> tuple[str, int, int, list[str]]:
    machine = comparison.machine
    return machine.name, machine.cores, machine.memory, machine.gpus
