"""Recommendations: by hand in a table, and as properties over made-up figures."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxaccel.compare.recommend import ACCURACY, ERROR, TIE, excluded, natives, recommend
from onnxaccel.compare.results import GOALS, Batch, Candidate, Inference, Settings, Source, Training

SETTINGS = Settings(2, "fp32", [1, 32], "data.npz", 5, 1.0, 0)


def batch(size: int, p50: float, spread: float = 0.0) -> Batch:
    rate = 1e3 * size / p50
    rounds = [rate * (1 - spread), rate, rate * (1 + spread)]
    return Batch(size, p50, 2 * p50, 3 * p50, rate, rounds)


def serving(
    name: str,
    framework: str,
    p50: float,
    at32: float,
    *,
    mib: int = 100,
    error: float | None = 0.0,
    accuracy: float | None = None,
    spread: float = 0.0,
    **more: Any,
) -> Candidate:
    batches = [batch(1, p50, spread), batch(32, at32, spread)]
    inference = Inference(batches, mib * 2**20, relative_error=error, accuracy=accuracy)
    return Candidate(name, framework, name, inference=inference, **more)


def training(
    name: str, framework: str, rate: float, accuracy: float = 0.9, seconds: float | None = None, **more: Any
) -> Candidate:
    given = Training([2.0, 1.0], 1e-6, rate, [rate], 0, seconds or 100 / rate, accuracy, **more)
    return Candidate(name, framework, name, training=given)


KERAS = serving("TensorFlow function", "tensorflow", 2.0, 10.0, accuracy=0.9)
XLA = serving("TensorFlow XLA", "tensorflow", 1.0, 12.0, accuracy=0.9, mib=150)
OURS = serving("onnxaccel cpu", "onnxaccel", 0.5, 11.9, error=2e-6, accuracy=0.9, mib=50, command="convert")
INT8 = serving("onnxaccel cpu, int8", "onnxaccel", 0.25, 4.0, error=2e-2, accuracy=0.898, mib=120)
POOR = serving("onnxaccel cpu, int4", "onnxaccel", 0.05, 1.0, error=0.5, accuracy=0.7, mib=10)
DEAD = Candidate("Caffe", "caffe", "caffe", inference=Inference(failure="crashed"))


@dataclass
class Case:
    """Candidates, and the answer for one goal: winner, ratio, and words of the sentence."""

    goal: str
    candidates: list[Candidate]
    winner: str | None
    ratio: float | None = None
    words: list[str] = field(default_factory=list)
    framework: str | None = "tensorflow"
    command: str | None = None


def without_accuracy(candidate: Candidate) -> Candidate:
    other = copy.deepcopy(candidate)
    assert other.inference is not None
    other.inference.accuracy = None
    return other


CASES = {
    "faster": Case(
        "latency",
        [KERAS, XLA, OURS, DEAD],
        "onnxaccel cpu",
        2.0,
        ["0.5 ms", "2.0x TensorFlow XLA", "2e-06"],
        command="convert",
    ),
    "at a price": Case(
        "latency", [KERAS, XLA, OURS, INT8], "onnxaccel cpu, int8", 4.0, ["4.0x", "accuracy -0.2%"]
    ),
    "too bad to be chosen": Case(
        "latency",
        [XLA, OURS, POOR],
        "onnxaccel cpu",
        2.0,
        ["int4 would be 10.0x", "accuracy is 20.0% lower"],
        command="convert",
    ),
    "error decides where there is no accuracy": Case(
        "latency",
        [without_accuracy(c) for c in (XLA, OURS, INT8)],
        "onnxaccel cpu",
        2.0,
        ["error is 2.0e-02"],
        command="convert",
    ),
    "stay": Case(
        "latency",
        [serving("TensorFlow XLA", "tensorflow", 0.2, 9.0), OURS],
        "TensorFlow XLA",
        1.0,
        ["Stay with", "0.40x"],
    ),
    "the least of a lead is none": Case(
        "latency",
        [serving("TensorFlow XLA", "tensorflow", 0.52, 9.0), OURS],
        "TensorFlow XLA",
        1.0,
        ["Stay with", "within the noise", "1.04x"],
    ),
    "rounds that overlap": Case(
        "latency",
        [
            serving("TensorFlow XLA", "tensorflow", 0.6, 9.0, spread=0.25),
            serving("onnxaccel cpu", "onnxaccel", 0.5, 9.0, spread=0.25),
        ],
        "TensorFlow XLA",
        1.0,
        ["within the noise"],
    ),
    "one slow round": Case(
        "latency",
        [
            serving("TensorFlow XLA", "tensorflow", 0.6, 9.0, spread=0.01),
            serving("onnxaccel cpu", "onnxaccel", 0.3, 9.0, spread=0.6),
        ],
        "onnxaccel cpu",
        2.0,
    ),
    "untrained weights are right by luck": Case(
        "latency", [XLA, OURS, INT8], "onnxaccel cpu", 2.0, ["2.0e-02"], None, "convert"
    ),
    "rounds that do not": Case(
        "latency",
        [serving("TensorFlow XLA", "tensorflow", 0.6, 9.0, spread=0.05), OURS],
        "onnxaccel cpu",
        1.2,
        command="convert",
    ),
    "the best batch size": Case(
        "throughput",
        [KERAS, XLA, INT8],
        "onnxaccel cpu, int8",
        2.5,
        ["8,000 samples/s at batch 32", "1.2x its memory"],
    ),
    "memory": Case("memory", [KERAS, XLA, OURS], "onnxaccel cpu", 2.0, ["50 MiB"], command="convert"),
    "nothing of its own ran": Case("latency", [DEAD, OURS], "onnxaccel cpu", None, command="convert"),
    "nothing ran": Case("latency", [DEAD], None),
    "of all frameworks": Case(
        "latency",
        [KERAS, serving("PyTorch eager", "pytorch", 0.1, 9.0, command="export"), OURS],
        "PyTorch eager",
        1.0,
        ["Serve with PyTorch eager"],
        None,
        "export",
    ),
    "training": Case(
        "training",
        [
            training("TensorFlow function", "tensorflow", 50.0),
            training("onnxaccel cpu", "onnxaccel", 105.0, 0.901, command="train"),
        ],
        "onnxaccel cpu",
        2.1,
        ["Train with", "2.1x TensorFlow function", "same loss curve within 1e-06", "+0.1%"],
        command="train",
    ),
    "training that learns less": Case(
        "training",
        [
            training("TensorFlow function", "tensorflow", 50.0),
            training("onnxaccel cpu", "onnxaccel", 105.0, 0.88),
        ],
        "TensorFlow function",
        1.0,
        ["Stay with", "2.1x as good, but its accuracy is 2.0% lower"],
    ),
    "time to the loss, not steps": Case(
        "training",
        [
            training("TensorFlow function", "tensorflow", 50.0, seconds=4.0),
            training("onnxaccel cpu", "onnxaccel", 105.0, seconds=8.0),
        ],
        "TensorFlow function",
        1.0,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_answer(case: Case) -> None:
    source = Source("models:mlp", case.framework, candidates=case.candidates, target_loss=0.5)
    before = copy.deepcopy(source)
    answers = {answer.goal: answer for answer in recommend(source, SETTINGS)}
    assert source == before
    if case.winner is None:
        assert case.goal not in answers
        return
    found = answers[case.goal]
    assert found.winner == case.winner
    assert found.ratio == (None if case.ratio is None else pytest.approx(case.ratio))
    for words in case.words:
        assert words in found.sentence
    assert found.command == case.command
    assert found.sentence.endswith(".") and "\n" not in found.sentence


positive = st.floats(1e-3, 1e4)


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    framework = draw(st.sampled_from(["tensorflow", "pytorch", "caffe", "opencv", "onnxaccel"]))
    inference = Inference(
        [
            Batch(size, value, value, value, rate, [rate * low, rate, rate * high])
            for size in draw(st.lists(st.sampled_from([1, 8, 32]), unique=True))
            for value, rate in [(draw(positive), draw(positive))]
            for low, high in [(draw(st.floats(0.5, 1.0)), draw(st.floats(1.0, 2.0)))]
        ],
        draw(st.none() | st.integers(1, 2**40)),
        relative_error=draw(st.none() | st.floats(0, 1e-2)),
        accuracy=draw(st.none() | st.floats(0.5, 1.0)),
        failure=draw(st.none() | st.just("crashed")),
    )
    trained = Training(
        difference=draw(st.none() | st.floats(0, 1)),
        steps_per_second=draw(positive),
        seconds_to_loss=draw(st.none() | positive),
        accuracy=draw(st.none() | st.floats(0.5, 1.0)),
        failure=draw(st.none() | st.just("crashed")),
    )
    return Candidate("", framework, "", inference=draw(st.none() | st.just(inference)), training=trained)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    found = draw(st.lists(candidates(), max_size=6))
    for number, candidate in enumerate(found):
        candidate.name = f"candidate {number}"
    return Source(
        "m", draw(st.sampled_from([None, "tensorflow", "pytorch", "caffe", "onnx"])), candidates=found
    )


def value(candidate: Candidate, goal: str, sizes: list[int], timed: bool) -> float | None:
    """How good a candidate is, written down once more and otherwise than in the module."""
    part = candidate.training if goal == "training" else candidate.inference
    if part is None or part.failure is not None:
        return None
    if isinstance(part, Training):
        if not timed:
            return part.steps_per_second
        return None if part.seconds_to_loss is None else 1 / part.seconds_to_loss
    if goal == "memory":
        return None if part.memory is None else 1 / part.memory
    if goal == "latency":
        return next((1 / b.p50 for b in part.batches if b.size == min(sizes) and b.p50), None)
    return max((b.throughput for b in part.batches if b.throughput), default=None)


@given(sources())
def test_the_winner_is_the_best_that_may_be_chosen(source: Source) -> None:
    answers = {answer.goal: answer for answer in recommend(source, SETTINGS)}
    ran = [c for c in source.candidates if c.inference and c.inference.failure is None]
    sizes = [b.size for c in ran for b in c.inference.batches] if ran else []  # type: ignore[union-attr]
    timed = any(
        c.training and not c.training.failure and c.training.seconds_to_loss for c in source.candidates
    )
    own = natives(source)
    for goal in GOALS:
        scores = {c.name: value(c, goal, sizes, timed) for c in source.candidates}
        good = {
            c.name: score
            for c in source.candidates
            if (score := scores[c.name]) is not None and excluded(source, c, goal) is None
        }
        if not good:
            assert goal not in answers
            continue
        answer = answers[goal]
        best, winner = max(good.values()), good[answer.winner]
        held = [good[c.name] for c in own if c.name in good]
        if winner < best:  # only a tie lets the best go, and only the best of the source's own gains by it
            assert winner == max(held)
            assert best < winner * 2 / 0.5 * (1 + 1e-9)  # no rounds are further apart
        if held and best not in held and best < max(held) * (1 + TIE):
            assert winner == max(held)
        assert answer.ratio == (pytest.approx(winner / max(held)) if held else None)


@given(candidates(), candidates())
def test_budgets(native: Candidate, other: Candidate) -> None:
    native.framework, other.framework = "pytorch", "onnxaccel"
    source = Source("m", "pytorch", candidates=[native, other])
    assert excluded(source, native, "latency") is None
    mine, theirs = (c.inference if c.inference and not c.inference.failure else None for c in (other, native))
    why = excluded(source, other, "latency")
    if mine and theirs and mine.accuracy is not None and theirs.accuracy is not None:
        assert (why is not None) == (theirs.accuracy - mine.accuracy > ACCURACY + 1e-9)
    elif other.inference is not None and other.inference.relative_error is not None:
        assert (why is not None) == (other.inference.relative_error > ERROR)
    else:
        assert why is None
