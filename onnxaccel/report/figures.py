"""What the reports show of a comparison: figures drawn from its results, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from onnxaccel.compare.recommend import natives
from onnxaccel.compare.results import Batch, Candidate, Source

MISSING = "-"
"""What stands in for a figure that there is none of."""


def legible(text: object, limit: int = 400) -> str:
    """Text of unknown origin on one line, without what moves a cursor or turns the writing direction."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits or more, thousands apart: 0.0213, 1.20, 4,821; tiny ones as 2.1e-07."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e12:
        return f"{value:.1e}"
    magnitude = math.floor(math.log10(size))
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def mebibytes(value: float | None) -> str:
    """Bytes as MiB, without the unit."""
    return (
        MISSING
        if value is None
        else number(value / 2**20)
        if value < 100 * 2**20
        else f"{value / 2**20:,.0f}"
    )


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal, two where it is above 99 %."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:.2f} %" if 0.99 < value < 1 else f"{100 * value:.1f} %"


def times(ratio: float | None, sign: str = "x") -> str:
    """A ratio: 2.10x."""
    if ratio is None or not math.isfinite(ratio):
        return MISSING
    if ratio < 0.1:
        return number(ratio, 2) + sign
    return (f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.1f}" if ratio < 100 else f"{ratio:,.0f}") + sign


Figure = Callable[[Candidate], float | None]
"""Reads one figure of a candidate; None where it has none."""


def batches(candidate: Candidate) -> list[Batch]:
    """The batch sizes at which the candidate has figures."""
    if candidate.inference is None or candidate.inference.failure is not None:
        return []
    return [batch for batch in candidate.inference.batches if batch.failure is None]


def latency(candidate: Candidate) -> float | None:
    """Milliseconds at the smallest batch size that was asked for, the median."""
    if candidate.inference is None or not candidate.inference.batches:
        return None
    smallest = min(candidate.inference.batches, key=lambda batch: batch.size)
    return smallest.p50 if smallest.failure is None else None


def latency_at(candidate: Candidate, size: int) -> float | None:
    """Milliseconds at a batch size, the median."""
    return next((batch.p50 for batch in batches(candidate) if batch.size == size), None)


def throughput(candidate: Candidate) -> float | None:
    """Samples per second at the best batch size."""
    return max((b.throughput for b in batches(candidate) if b.throughput is not None), default=None)


def memory(candidate: Candidate) -> float | None:
    """Bytes that inference takes."""
    return candidate.inference.memory if candidate.inference and not candidate.inference.failure else None


def training_rate(candidate: Candidate) -> float | None:
    """Training steps per second."""
    return (
        candidate.training.steps_per_second if candidate.training and not candidate.training.failure else None
    )


def training_memory(candidate: Candidate) -> float | None:
    """Bytes that training takes."""
    return candidate.training.memory if candidate.training and not candidate.training.failure else None


def ratios(source: Source, figure: Figure, *, smaller_wins: bool = False) -> dict[str, float]:
    """How many times as good as the best of `natives` each candidate is, by its name; empty without one."""
    best = (min if smaller_wins else max)(_known(map(figure, natives(source))), default=None)
    if best is None:
        return {}
    found = {candidate.name: figure(candidate) for candidate in source.candidates}
    return {name: best / value if smaller_wins else value / best for name, value in found.items() if value}


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value]


def failures(source: Source) -> list[tuple[str, str, str]]:
    """What has no figures: candidate, part ("inference", "batch 8", "training") and reason."""
    found = []
    for candidate in source.candidates:
        if candidate.inference is not None:
            if candidate.inference.failure is not None:
                found.append((candidate.name, "inference", candidate.inference.failure))
            found += [
                (candidate.name, f"batch {batch.size}", batch.failure)
                for batch in candidate.inference.batches
                if batch.failure is not None
            ]
        if candidate.training is not None and candidate.training.failure is not None:
            found.append((candidate.name, "training", candidate.training.failure))
    return [(legible(name), part, legible(reason)) for name, part, reason in found]


def disturbed(candidate: Candidate) -> int:
    """Rounds in which other programs kept the machine busy."""
    training = candidate.training.disturbed if candidate.training else 0
    return training + sum(batch.disturbed for batch in batches(candidate))


def spread(rounds: list[float]) -> float | None:
    """Half of the distance of the fastest from the slowest round, as a share of their middle."""
    if len(rounds) < 2 or min(rounds) + max(rounds) <= 0:
        return None
    return (max(rounds) - min(rounds)) / (max(rounds) + min(rounds))


def machine_line(name: str, cores: int, memory: int, gpus: list[str]) -> str:
    """A machine in one line."""
    parts = [legible(name), f"{cores} core{'s' * (cores != 1)}", f"{number(memory / 2**30)} GiB"]
    return ", ".join([*parts, *(legible(gpu) for gpu in gpus)])


def facts_line(source: Source) -> str:
    """A source in one line: whose it is, how large, what it takes."""
    reference = source.name.startswith("models:")
    unowned = "a reference model in every framework" if reference else "of no known framework"
    parts = [legible(source.framework) if source.framework else unowned]
    if source.parameters is not None:
        parts.append(f"{source.parameters:,} parameters")
    if source.input_shape:
        parts.append("samples of " + " × ".join(str(size) for size in source.input_shape))
    return ", ".join(parts)
