"""Results as terminal tables (rich), printed to standard output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from onnxaccel.graph.inspect import Inspection, Tensor
from onnxaccel.runtime.environment import Environment
from onnxaccel.runtime.history import Epoch, Tick
from onnxaccel.runtime.optimize import Optimization


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print one table; None prints as a dash, floats with four digits."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    Console(markup=False).print(table)


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def show_epochs(epochs: Sequence[Epoch]) -> None:
    """Print one row per epoch."""
    rows = [
        (n, e.loss, e.accuracy, e.val_loss, e.val_accuracy, f"{e.seconds:.1f}")
        for n, e in enumerate(epochs, start=1)
    ]
    show("Training", ("epoch", "loss", "accuracy", "val loss", "val accuracy", "seconds"), rows)


def show_inspection(name: str, found: Inspection) -> None:
    """Print what a model holds."""
    interface = [("input", *_row(t)) for t in found.inputs] + [("output", *_row(t)) for t in found.outputs]
    show(name, ("", "name", "type", "shape"), interface)
    show("Trainable parameters", ("name", "type", "shape"), [_row(t) for t in found.parameters])
    source = found.metadata
    facts: list[tuple[str, object]] = [
        ("trainable elements", f"{found.parameter_count:,}"),
        ("bytes of weights", f"{found.weight_bytes:,}"),
        ("FLOPs per sample", f"{found.flops:,}" if found.flops is not None else "unknown (dynamic sizes)"),
        ("opset", found.opset),
        ("operators", ", ".join(f"{op} {count}" for op, count in found.operators.items())),
        (
            "source",
            " ".join(p for p in (source.framework, source.format) if p) or "an ONNX file from elsewhere",
        ),
        ("relative error to source", source.max_relative_error),
        (
            "no gradient rule",
            "; ".join(f"{op}: {', '.join(n[:3])}" for op, n in found.untrainable.items()) or "none",
        ),
    ]
    show("Facts", ("", ""), facts)


def _row(tensor: Tensor) -> tuple[str, str, str]:
    return tensor.name, tensor.dtype, str(tensor.shape).replace("'", "")


def show_environment(found: Environment) -> None:
    """Print what this machine offers."""
    show(
        f"onnxaccel {found.onnxaccel}, Python {found.python}, {found.system}, {found.cores} cores",
        ("execution provider", "usable", "missing"),
        [(p.name, "yes" if p.usable else "no", p.missing) for p in found.providers],
    )
    packages = [("onnxruntime", found.onnxruntime, None)] + [
        (p.name, p.version, p.install) for p in found.packages
    ]
    show("Packages", ("package", "version", "to install"), packages)
    for problem in found.problems:
        Console(stderr=True, markup=False).print(f"problem: {problem}")


def show_optimization(found: Optimization) -> None:
    """Print what `optimize` measured."""
    megabyte = 2**20
    speeds = [
        (
            row.name,
            row.p50,
            row.p90,
            row.p99,
            None if row.throughput is None else f"{row.throughput:,.0f}",
            None if row.speedup is None else f"{row.speedup:.2f}x",
        )
        for row in found.rows
    ]
    costs = [
        (
            row.name,
            None if row.memory is None else f"{row.memory / megabyte:.0f}",
            None if row.size is None else f"{row.size / megabyte:.2f}",
            row.relative_error,
            row.accuracy,
            row.verdict,
        )
        for row in found.rows
    ]
    columns = ("candidate", "p50 ms", "p90", "p99", "samples/s", "speed-up")
    show(f"Speed in batches of {found.batch_size}", columns, speeds)
    show("What it costs", ("candidate", "MiB", "file MiB", "error", "accuracy", "verdict"), costs)
    if found.throughput_by_batch:
        sizes = [
            (size, f"{rate:,.0f}", found.speedup_by_batch.get(size))
            for size, rate in found.throughput_by_batch.items()
        ]
        show(f"Throughput of {found.winner}", ("batch", "samples/s", "times the original's"), sizes)
    if found.profile is not None:
        times = [(t.operator, t.provider, t.nodes, t.milliseconds, f"{t.share:.1%}") for t in found.profile]
        show("Time by operator", ("operator", "provider", "nodes", "ms per run", "share"), times)
    Console(markup=False).print(
        f"{found.winner}: {found.speedup:.2f}x the original, error {found.error:.3g} ({found.metric})"
        + (f"; written to {found.output}" if found.output else "")
    )


class EpochDisplay:
    """One line on standard error: epoch, batches, mean loss, samples/s, and the time left of the training.

    It shows nothing where standard error is no terminal.

    Args:
        epochs: Epochs in all.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("batch {task.fields[batch]}/{task.fields[batches]}"),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[speed]:,.0f} samples/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> EpochDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tick(self, tick: Tick) -> None:
        """Show the state after a batch."""
        done = tick.epoch * tick.batches + tick.batch
        shown: dict[str, Any] = {
            "epoch": tick.epoch + 1,
            "epochs": self._epochs,
            "batch": tick.batch,
            "batches": tick.batches,
            "loss": tick.loss,
            "speed": tick.samples_per_second,
        }
        if self._task is None:  # a resumed training does not start at 0
            total = self._epochs * tick.batches
            self._task = self._progress.add_task("", total=total, completed=done, **shown)
        else:
            self._progress.update(self._task, completed=done, **shown)
