"""What `onnxaccel.runtime.optimize` tries and finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from onnxaccel.graph.model import SessionSettings
from onnxaccel.runtime.optimize.profile import OperatorTime


@dataclass(frozen=True)
class Candidate:
    """A variant of the graph, and how to run it."""

    name: str
    variant: str
    file: Path
    settings: SessionSettings


@dataclass
class Row:
    """What was found out about one candidate.

    Attributes:
        name: What it is.
        p50: Half of the runs took no longer, in milliseconds; p90 and p99 likewise.
        p90: See above.
        p99: See above.
        throughput: Samples per second, the median of the rounds.
        speedup: The original's p50 in the same rounds, divided by this one's.
        rounds_won: Rounds in which it did more steps per second than the original, of all.
        confirmed: The speed-up in fresh rounds against the original alone, for those in line to win: the best
            of many noisy figures is too good.
        memory: Bytes added at their peak by loading and running it.
        size: Bytes of the file.
        relative_error: Largest difference to the original's outputs, relative to their largest value.
        accuracy: Accuracy on the data, or None where there are no labels.
        error: What the budget is held against: the loss of accuracy where there are labels, else
            ``relative_error``.
        disturbed: Rounds in which other programs kept the machine busy.
        verdict: Why it won or lost.
    """

    name: str
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    throughput: float | None = None
    speedup: float | None = None
    rounds_won: float | None = None
    confirmed: float | None = None
    memory: int | None = None
    size: int | None = None
    relative_error: float | None = None
    accuracy: float | None = None
    error: float | None = None
    disturbed: int = 0
    verdict: str = ""


@dataclass
class Optimization:
    """The result of `optimize`.

    Attributes:
        winner: Name of the fastest candidate within the budget; "fp32": the model as it was.
        speedup: How many times as fast as the original it is, in rounds of their own; see `Row.confirmed`.
        error: Its error, see `Row.error`.
        metric: "accuracy" (the budget bounds its loss) or "relative_error".
        budget: The largest error allowed.
        batch_size: Samples per run at which latency was measured.
        settings: How the winner is run.
        rows: All candidates.
        throughput_by_batch: The winner's samples per second by batch size, where the model leaves it open.
        speedup_by_batch: The same, divided by the original's.
        warnings: What to keep in mind about these figures.
        output: Where the winner was written, or None.
        profile: Where the winner's time goes, where it was asked for.
    """

    winner: str
    speedup: float
    error: float
    metric: str
    budget: float
    batch_size: int
    settings: SessionSettings
    rows: list[Row]
    throughput_by_batch: dict[int, float] = field(default_factory=dict)
    speedup_by_batch: dict[int, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    output: str | None = None
    profile: list[OperatorTime] | None = None
