"""Training speed on CPU: onnxaccel against torch eager and torch.compile, as ratios in one run.

    python benchmarks/train_cpu.py [--models mlp,cifar_cnn] [--rounds 7] [--seconds 2] [--json FILE]

Each candidate lives in a process of its own with the same weights, batch, optimizer (SGD) and thread count.
All start, warm up, and then take turns: one measures while the others sleep, round after round, with an idle
gap before each turn. A turn during which something else kept the machine busy is repeated, and marked if it
stays busy. The table gives the median steps per second, its spread over the rounds (minimum to maximum), and
the ratio to torch eager.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onnxaccel.runtime.measure import Job, Limits, measure

CANDIDATES = ("torch eager", "torch.compile", "onnxaccel")
BATCH = {"mlp": 32, "cifar_cnn": 64}
LEARNING_RATE = 0.01
GAP = 0.5
"""Seconds of quiet before a turn, for the threads of the one before to go to sleep."""


def batch_of(name: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """One batch of uniform images and labels."""
    rng = np.random.default_rng(0)
    x = rng.random((BATCH[name], *shape), np.float32)
    return x, rng.integers(0, 10, BATCH[name])


def torch_step(name: str, compiled: bool, threads: int) -> Callable[[], float]:
    """A training step of the torch module ``name``."""
    import torch

    from onnxaccel import models

    torch.set_num_threads(threads)
    module = models.build(name, "pytorch").train()
    x, y = (torch.from_numpy(a) for a in batch_of(name, models.input_shape(name)))
    optimizer = torch.optim.SGD(module.parameters(), LEARNING_RATE)
    forward = torch.compile(module) if compiled else module

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def onnxaccel_step(name: str, threads: int) -> Callable[[], float]:
    """The same step in onnxaccel."""
    import torch

    import onnxaccel as oa
    from onnxaccel import models

    x, y = batch_of(name, models.input_shape(name))
    model = oa.convert(models.build(name, "pytorch"), torch.from_numpy(x), trainable=True)
    trainer = oa.Trainer(
        model, optimizer=oa.optimizers.SGD(LEARNING_RATE), ep="cpu", threads=threads, metrics=False
    )
    return lambda: trainer.step(x, y)


def candidate(setup: dict[str, Any]) -> tuple[Callable[[], float], dict[str, Any]]:
    """A candidate's process, see `onnxaccel.runtime.measure.worker`."""
    name, threads = setup["model"], setup["threads"]
    if setup["candidate"] == "onnxaccel":
        step = onnxaccel_step(name, threads)
    else:
        step = torch_step(name, setup["candidate"] == "torch.compile", threads)
    first = step()
    for _ in range(20):
        step()
    return step, {"first_loss": first}


def compare(name: str, rounds: int, seconds: float, threads: int) -> list[dict[str, Any]]:
    """Measure all candidates on one model."""
    jobs = {
        c: Job(f"{__file__}:candidate", {"candidate": c, "model": name, "threads": threads})
        for c in CANDIDATES
    }
    results = measure(jobs, rounds=rounds, seconds=seconds, limits=Limits(600), gap=GAP)
    failed = {c: r.failure for c, r in results.items() if r.failure is not None}
    if failed:
        raise SystemExit(f"{name}: {failed}")
    return [
        {
            "model": name,
            "batch": BATCH[name],
            "candidate": c,
            "steps_per_second": result.rate,
            "min": min(result.rates),
            "max": max(result.rates),
            "ratio_to_torch_eager": result.rate / results["torch eager"].rate,
            "first_loss": result.facts["first_loss"],
            "disturbed_rounds": result.disturbed,
        }
        for c, result in results.items()
    ]


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(BATCH))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.models.split(","):
        rows += compare(name, options.rounds, options.seconds, options.threads)
    print(f"{options.threads} threads, SGD; median of {options.rounds} rounds of {options.seconds} s")
    print(f"{'model':<12}{'candidate':<16}{'steps/s':>10}{'min':>10}{'max':>10}{'ratio':>8}  disturbed")
    for r in rows:
        print(
            f"{r['model']:<12}{r['candidate']:<16}{r['steps_per_second']:>10.1f}{r['min']:>10.1f}{r['max']:>10.1f}"
            f"{r['ratio_to_torch_eager']:>8.2f}  {r['disturbed_rounds'] or ''}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
