"""Comparisons made by hand: the odd cases that a report must show."""

from __future__ import annotations

import math

from onnxaccel.compare.results import (
    Batch,
    Candidate,
    Comparison,
    Inference,
    Machine,
    Recommendation,
    Settings,
    Source,
    Training,
)

HOSTILE = '</title><script src="http://evil.example/x.js">alert(1)</script>&"\'\x1b[2J\x00\u202e\ud800\n'
"""A name that means harm: to HTML, to a terminal, to the direction of writing, to UTF-8."""


def inference(
    milliseconds: float, sizes: tuple[int, ...] = (1, 8, 32), accuracy: float | None = 0.97
) -> Inference:
    """An inference whose samples cost ever less with the batch's size."""
    batches = []
    for size in sizes:
        p50 = milliseconds * size**0.7
        rate = 1000 * size / p50
        batches.append(Batch(size, p50, p50 * 1.2, p50 * 2, rate, [rate * 0.98, rate, rate * 1.02]))
    return Inference(batches, 40 * 2**20, None, 0.5, 0.01, 2**20, 1e-7, accuracy)


def training(steps_per_second: float, difference: float = 0.0) -> Training:
    """A training whose loss falls as that of all others, but for ``difference``."""
    losses = [0.1 + 2.2 * math.exp(-step / 20) + (step == 30) * difference for step in range(60)]
    rounds = [steps_per_second * 0.97, steps_per_second, steps_per_second * 1.01]
    return Training(
        losses,
        difference,
        steps_per_second,
        rounds,
        0,
        40 / steps_per_second,
        0.95,
        80 * 2**20,
        None,
        1.0,
        0.1,
    )


def source(name: str = "models:mlp", framework: str | None = None, factor: float = 1.0) -> Source:
    """Two native candidates, one of onnxaccel's, and one that failed; ``factor`` times as slow."""
    return Source(
        name,
        framework,
        101_770,
        [1, 28, 28],
        [
            Candidate(
                "TensorFlow Keras",
                "tensorflow",
                "predict",
                "fp32",
                None,
                inference(0.8 * factor),
                training(200),
            ),
            Candidate(
                "PyTorch eager",
                "pytorch",
                "eager",
                "fp32",
                None,
                inference(0.1 * factor),
                training(400 / factor),
            ),
            Candidate(
                "onnxaccel cpu",
                "onnxaccel",
                "cpu",
                "fp32",
                "onnxaccel predict mlp.onnx",
                inference(0.04 * factor, accuracy=0.96),
                training(900 / factor, 2e-6),
            ),
            Candidate(
                "onnxaccel cuda",
                "onnxaccel",
                "cuda",
                inference=Inference(failure="execution provider 'cuda' is not usable here"),
                training=Training(failure="execution provider 'cuda' is not usable here"),
            ),
        ],
        0.2,
        [
            Recommendation(
                "latency",
                "onnxaccel cpu",
                "Serve with onnxaccel on CPU: 2.5x PyTorch eager.",
                2.5,
                "onnxaccel predict mlp.onnx",
            ),
            Recommendation("training", "PyTorch eager", "Stay with PyTorch eager."),
        ],
    )


def comparison(*sources: Source, name: str = "AMD EPYC") -> Comparison:
    """A comparison of the sources on a machine of that name; of one ordinary source where none is given."""
    return Comparison(
        "2026-11-25T00:12:09+00:00",
        Machine(name, 2, 24 * 2**30, [], "Linux 6.1 x86_64", {"Python": "3.11.9", "torch": "2.13.0"}),
        Settings(
            2,
            "fp32",
            [1, 8, 32],
            "mnist#test",
            3,
            1.0,
            0,
            {"optimizer": "sgd", "lr": 0.05, "nesterov": False},
        ),
        list(sources) or [source()],
        ["Each framework draws its own Dropout masks."],
    )


def odd() -> Comparison:
    """What a comparison can hold at worst: hostile names, long ones, no figures, one batch, many."""
    hostile = source(HOSTILE, "tensorflow")
    hostile.candidates[0].name = hostile.candidates[0].framework = HOSTILE
    hostile.candidates[1].command = hostile.recommendations[0].command = HOSTILE
    hostile.recommendations[0].sentence = hostile.recommendations[0].goal = HOSTILE
    failed = hostile.candidates[3].inference
    assert failed is not None
    failed.failure = HOSTILE
    long = source("x" * 300)
    long.candidates[0].name = "a very long name of a candidate " * 6
    many = Source("many sizes", "pytorch")
    many.candidates = [
        Candidate("eager", "pytorch", "eager", inference=inference(1.0, tuple(2**n for n in range(11)), None))
    ]
    single = Source(
        "one size", "caffe", candidates=[Candidate("Caffe", "caffe", "cpu", inference=inference(2.0, (4,)))]
    )
    diverged = source("diverged", "pytorch")
    for candidate in diverged.candidates[:2]:
        assert candidate.training is not None
        candidate.training.losses[30:] = [math.nan] * 30
    partly = source("partly", "pytorch")
    parts = partly.candidates[1].inference
    assert parts is not None
    parts.batches[2] = Batch(32, failure="took more than 8,192 MiB of memory")
    nothing = Source("nothing", "caffe", failure=f"cannot be opened: {HOSTILE}")
    empty = Source("no figures", "pytorch")
    empty.candidates = [Candidate("eager", "pytorch", "eager", inference=Inference(), training=Training())]
    zero = Source("zeros", "pytorch")
    zeros = Inference([Batch(1, 0.0, 0.0, 0.0, 0.0, [0.0])], 0, 0, 0.0, 0.0, 0, 0.0, 0.0)
    zero.candidates = [
        Candidate("eager", "pytorch", "eager", inference=zeros, training=Training([0.0], 0.0, 0.0))
    ]
    found = comparison(hostile, long, many, single, diverged, partly, nothing, empty, zero, Source("bare"))
    found.machine.name = HOSTILE
    found.machine.versions[HOSTILE] = HOSTILE
    found.warnings.append(HOSTILE)
    found.settings.data = HOSTILE
    return found
