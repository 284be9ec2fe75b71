"""Which candidate to choose, by the user's goal: from the figures of a comparison to one sentence each.

Of the candidates that keep within the budgets of error and accuracy the best by the numbers wins. What the
untrained weights of a reference model get right says nothing: there the error counts. A lead within the noise
is a tie, which the source's own framework wins: a change must pay for itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxaccel.compare.results import GOALS, Batch, Candidate, Recommendation, Settings, Source

ERROR = 1e-3
"""Largest relative error of a candidate where no accuracy says more."""
ACCURACY = 0.01
"""Share of right answers that a candidate may lose."""
TIE = 0.05
"""Lead that is taken for noise, whatever the spread of the rounds."""

SAME_CURVE = 1e-3
"""Largest difference of two loss curves that are called the same."""

FRAMEWORKS = ("tensorflow", "pytorch", "caffe")


@dataclass(frozen=True)
class Figure:
    """What a goal asks of a candidate.

    Attributes:
        better: The larger the better: the figure itself, or its reciprocal.
        text: The figure, for people.
        low: What it would be by the worst of the rounds, relative to ``better``.
        high: The same by the best of the rounds.
    """

    better: float
    text: str
    low: float = 1.0
    high: float = 1.0


Entry = tuple[Candidate, Figure]


def recommend(source: Source, settings: Settings) -> list[Recommendation]:
    """The answer for each goal that the figures answer, in the order of `GOALS`.

    Args:
        source: The source and its candidates; nothing of it is changed.
        settings: What was the same for all: the figures hold for these threads.
    """
    answers = []
    for goal in GOALS:
        found = _figures(source, goal)
        choices = [entry for entry in found if excluded(source, entry[0], goal) is None]
        if choices:
            answers.append(_answer(source, goal, found, choices, settings.threads))
    return answers


def natives(source: Source) -> list[Candidate]:
    """The candidates of the source's own framework; of a reference model those of all frameworks."""
    own = FRAMEWORKS if source.framework is None else (source.framework,)
    return [candidate for candidate in source.candidates if candidate.framework in own]


def excluded(source: Source, candidate: Candidate, goal: str) -> str | None:
    """Why a candidate is no choice for a goal: it loses more than the budgets allow. None: it is one."""
    own = natives(source)
    if candidate in own:
        return None
    accuracy, held = _accuracy(source, candidate, goal), [_accuracy(source, one, goal) for one in own]
    known = [value for value in held if value is not None]
    if accuracy is not None and known:  # says more than an error; of several natives the least is good enough
        lost = min(known) - accuracy
        return f"its accuracy is {lost:.1%} lower" if lost > ACCURACY + 1e-9 else None
    error = candidate.inference.relative_error if goal != "training" and candidate.inference else None
    return f"its relative error is {error:.1e}" if error is not None and not error <= ERROR else None


def _figures(source: Source, goal: str) -> list[Entry]:
    """The candidates that have a figure for the goal."""
    found = []
    for candidate in source.candidates:
        figure = _FIGURES[goal](source, candidate)
        if figure is not None:
            found.append((candidate, figure))
    return found


def _latency(source: Source, candidate: Candidate) -> Figure | None:
    """p50 at the smallest batch size that any candidate ran."""
    sizes = [b.size for c in source.candidates for b in _batches(c) if b.p50 is not None]
    batch = next((b for b in _batches(candidate) if b.size == min(sizes, default=0)), None)
    if batch is None or not batch.p50:
        return None
    return Figure(1 / batch.p50, f"{batch.p50:.3g} ms at batch {batch.size}", *_spread(batch.rounds))


def _throughput(source: Source, candidate: Candidate) -> Figure | None:
    """Samples per second at the batch size where that is highest."""
    batches = [b for b in _batches(candidate) if b.throughput]
    if not batches:
        return None
    best = max(batches, key=lambda b: b.throughput or 0.0)
    text = f"{best.throughput:,.0f} samples/s at batch {best.size}"
    return Figure(best.throughput or 0.0, text, *_spread(best.rounds))


def _memory(source: Source, candidate: Candidate) -> Figure | None:
    """Peak memory of inference."""
    inference = candidate.inference
    if inference is None or inference.failure is not None or not inference.memory:
        return None
    return Figure(1 / inference.memory, f"{inference.memory / 2**20:,.0f} MiB")


def _training(source: Source, candidate: Candidate) -> Figure | None:
    """Seconds to the target loss, where any candidate has reached one; else steps per second."""
    training = candidate.training
    if training is None or training.failure is not None or not training.steps_per_second:
        return None
    rate, spread = f"{training.steps_per_second:,.1f} steps/s", _spread(training.rounds)
    rivals = [c.training for c in source.candidates if c.training is not None and not c.training.failure]
    if not any(rival.seconds_to_loss for rival in rivals):
        return Figure(training.steps_per_second, rate, *spread)
    if not training.seconds_to_loss:
        return None
    loss = "the target loss" if source.target_loss is None else f"a loss of {source.target_loss:.3g}"
    return Figure(
        1 / training.seconds_to_loss, f"{training.seconds_to_loss:.3g} s to {loss}, {rate}", *spread
    )


def _batches(candidate: Candidate) -> list[Batch]:
    inference = candidate.inference
    if inference is None or inference.failure is not None:
        return []
    return [batch for batch in inference.batches if batch.failure is None]


def _spread(rounds: Sequence[float]) -> tuple[float, float]:
    """Worst and best of the rounds, relative to their median."""
    if not rounds:
        return 1.0, 1.0
    middle = statistics.median(rounds)
    return min(rounds) / middle, max(rounds) / middle


_FIGURES: dict[str, Callable[[Source, Candidate], Figure | None]] = {
    "latency": _latency,
    "throughput": _throughput,
    "memory": _memory,
    "training": _training,
}


def _answer(
    source: Source, goal: str, found: Sequence[Entry], choices: Sequence[Entry], threads: int
) -> Recommendation:
    """The winner among those that may be chosen, and what to say of it.

    Args:
        source: The source.
        goal: The goal.
        found: All candidates that have a figure.
        choices: Those within the budgets.
        threads: Threads of each candidate.
    """
    own = natives(source)
    best = max(choices, key=_better)
    base = max((entry for entry in found if entry[0] in own), key=_better, default=None)
    others = [entry for entry in choices if entry[0] not in own]
    rival = max(others, key=_better, default=None)
    winner = base if base is not None and (best[0] in own or _tied(best[1], base[1])) else best
    if winner is base:
        words = _stay(source, goal, winner, rival)
    else:
        words = _change(source, goal, winner, base)
    tempting = max((entry for entry in found if entry not in choices), key=_better, default=None)
    if tempting is not None and tempting[1].better > winner[1].better:
        gain = tempting[1].better / winner[1].better
        words += (
            f"; {tempting[0].name} would be {gain:.1f}x as good, but {excluded(source, tempting[0], goal)}"
        )
    if goal != "memory":
        words += f" ({threads} threads)" if threads != 1 else " (1 thread)"
    ratio = winner[1].better / base[1].better if base is not None else None
    return Recommendation(goal, winner[0].name, f"{words}.", ratio, _command(goal, winner[0]))


def _better(entry: Entry) -> float:
    return entry[1].better


def _tied(best: Figure, base: Figure) -> bool:
    """Whether the lead of ``best`` is noise: small, or each one's median lies within the other's rounds."""
    within = best.better * best.low <= base.better and best.better <= base.better * base.high
    return best.better < base.better * (1 + TIE) or within


def _stay(source: Source, goal: str, winner: Entry, rival: Entry | None) -> str:
    """That nothing that may be chosen beats the source's own framework beyond the noise."""
    candidate, figure = winner
    verb = "Stay with" if source.framework is not None else f"{_verb(goal)} with"
    words = f"{verb} {candidate.name}: {figure.text}"
    if rival is None:
        return words
    ratio = rival[1].better / figure.better
    beside = f"{rival[0].name}: {rival[1].text}, {ratio:.2f}x"
    return f"{words}; beside it {beside}" + (", which is within the noise" if _tied(figure, rival[1]) else "")


def _change(source: Source, goal: str, winner: Entry, base: Entry | None) -> str:
    """That another candidate wins, by how much, and at what price."""
    candidate, figure = winner
    words = f"{_verb(goal)} with {candidate.name}: {figure.text}"
    if base is None:
        return words
    price = _price(source, goal, candidate, base[0])
    return ", ".join([f"{words}; {figure.better / base[1].better:.1f}x {base[0].name}", *price])


def _verb(goal: str) -> str:
    return "Train" if goal == "training" else "Serve"


def _price(source: Source, goal: str, candidate: Candidate, base: Candidate) -> list[str]:
    """What a candidate costs beside the best of the source's own framework."""
    price = []
    mine, theirs = _accuracy(source, candidate, goal), _accuracy(source, base, goal)
    if goal == "training":
        apart = candidate.training.difference if candidate.training else None
        if apart is not None:
            same = "same loss curve within" if apart <= SAME_CURVE else "losses apart by up to"
            price.append(f"{same} {apart:.0e}")
    elif candidate.inference is not None and candidate.inference.relative_error is not None:
        price.append(f"relative error {candidate.inference.relative_error:.0e}")
    if mine is not None and theirs is not None:
        price.append(f"accuracy {mine - theirs:+.1%}")
    if goal in ("latency", "throughput") and candidate.inference and base.inference:
        more = (candidate.inference.memory or 0) / (base.inference.memory or math.inf)
        price += [f"{more:.1f}x its memory"] if more > 1 + TIE else []
    return price


def _accuracy(source: Source, candidate: Candidate, goal: str) -> float | None:
    """None as well for the inference of a reference model: what untrained weights get right is luck."""
    if source.framework is None and goal != "training":
        return None
    part = candidate.training if goal == "training" else candidate.inference
    return part.accuracy if part is not None and part.failure is None else None


def _command(goal: str, winner: Candidate) -> str | None:
    """What to run next; None: nothing, the winner is what the user has."""
    if goal == "training" and winner.framework == "onnxaccel":
        return winner.training.command if winner.training else None
    return winner.command
