"""Training speed on CPU against what one would take instead, as ratios in one run.

    python benchmarks/train_cpu.py [--models mlp,resnet18] [--rounds 7] [--seconds 2] [--json FILE]

The candidates: torch eager, torch.compile, Keras (its compiled training step), onnxruntime's own training
packages where the environment variable ONNXACCEL_ORT_TRAINING names a Python that has them (made by
scripts/ort_training_environment.sh), and onnxaccel. Each has a process of its own, the same architecture,
batch, optimizer (SGD) and number of threads; torch and onnxruntime also start from the same weights. They
take turns, see `onnxaccel.runtime.measure`; a turn during which something else kept the machine busy is
repeated, and counted if it stays so. Memory is what a process added at its peak, its framework included.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from train_cpu_nets import BATCH, batch_of, in_keras, in_torch

from onnxaccel.runtime.measure import Job, Limits, Result, measure, once

LEARNING_RATE = 0.01
GAP = 0.5
"""Seconds of quiet before a turn, for the threads of the one before to go to sleep."""
HERE = Path(__file__).resolve()

Step = Callable[[], float]


def torch_step(setup: dict[str, Any], compiled: bool) -> Step:
    """A training step of the torch module."""
    import torch

    torch.set_num_threads(setup["threads"])
    module = in_torch(setup["model"]).train()
    x, y = (torch.from_numpy(a) for a in batch_of(setup["model"]))
    optimizer = torch.optim.SGD(module.parameters(), LEARNING_RATE)
    forward = torch.compile(module) if compiled else module

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def keras_step(setup: dict[str, Any]) -> Step:
    """The training step that Keras's fit runs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(setup["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = in_keras(setup["model"])
    logits = getattr(model.layers[-1], "activation", None) is not keras.activations.softmax
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    )
    x, y = batch_of(setup["model"])
    batch = tf.data.Dataset.from_tensors((x.transpose(0, 2, 3, 1) if x.ndim == 4 else x, y)).repeat()
    model.make_train_function()
    batches = iter(batch)
    return lambda: float(np.ravel(model.train_function(batches)["loss"])[0])


def onnx_step(setup: dict[str, Any], engine: str) -> Step:
    """The same step in onnxaccel, on the graph that `export` wrote."""
    import onnxaccel as oa

    x, y = batch_of(setup["model"])
    trainer = oa.Trainer(
        setup["path"],
        optimizer=oa.optimizers.SGD(LEARNING_RATE),
        ep="cpu",
        threads=setup["threads"],
        metrics=False,
        engine=engine,
    )
    return lambda: trainer.step(x, y)


CANDIDATES: dict[str, Callable[[dict[str, Any]], Step]] = {
    "torch eager": lambda setup: torch_step(setup, False),
    "torch.compile": lambda setup: torch_step(setup, True),
    "keras": keras_step,
    "ort-training": lambda setup: onnx_step(setup, "ort-training"),
    "onnxaccel": lambda setup: onnx_step(setup, "graph"),
}


def candidate(setup: dict[str, Any]) -> tuple[Step, dict[str, Any]]:
    """A candidate's process, see `onnxaccel.runtime.measure.worker`."""
    step = CANDIDATES[setup["candidate"]](setup)
    first = step()
    for _ in range(3 if setup["model"] == "resnet18" else 20):
        step()
    return step, {"first_loss": first}


def export(setup: dict[str, Any]) -> tuple[None, dict[str, Any]]:
    """Write the torch module as a trainable graph."""
    import torch

    import onnxaccel as oa

    x = torch.from_numpy(batch_of(setup["model"])[0])
    oa.convert(in_torch(setup["model"]), x, trainable=True).save(setup["path"])
    return None, {}


def compare(name: str, rounds: int, seconds: float, threads: int) -> list[dict[str, Any]]:
    """Measure all candidates on one model."""
    other = os.environ.get("ONNXACCEL_ORT_TRAINING")
    environment = {"PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE.parent}"}
    with tempfile.TemporaryDirectory() as folder:
        setup = {"model": name, "threads": threads, "path": str(Path(folder) / "net.onnx")}
        once(Job(f"{HERE}:export", setup, environment=environment), Limits(600))
        jobs = {
            name: Job(f"{HERE}:candidate", {**setup, "candidate": name}, environment=environment)
            for name in CANDIDATES
        }
        if other:
            jobs["ort-training"] = replace(jobs["ort-training"], python=other)
        else:
            del jobs["ort-training"]
        results = measure(jobs, rounds=rounds, seconds=seconds, limits=Limits(600), gap=GAP)
    return [row(name, c, result, results["torch eager"]) for c, result in results.items()]


def row(name: str, candidate: str, result: Result, eager: Result) -> dict[str, Any]:
    """One candidate's figures."""
    head = {"model": name, "batch": BATCH[name], "candidate": candidate}
    if result.failure is not None:
        return head | {"failure": result.failure}
    return head | {
        "steps_per_second": result.rate,
        "min": min(result.rates),
        "max": max(result.rates),
        "ratio_to_torch_eager": result.rate / eager.rate,
        "memory_mib": result.memory / 2**20,
        "memory_ratio": result.memory / eager.memory,
        "first_loss": result.facts["first_loss"],
        "disturbed_rounds": result.disturbed,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| model | batch | candidate | steps/s (median) | min to max | ratio | memory, MiB | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "failure" in r:
            figures = f"not run: {r['failure']} | | | |"
        else:
            spread = f"{r['min']:.1f} to {r['max']:.1f}"
            memory = f"{r['memory_mib']:.0f} | {r['memory_ratio']:.2f}"
            figures = f"{r['steps_per_second']:.1f} | {spread} | {r['ratio_to_torch_eager']:.2f} | {memory} |"
        lines.append(f"| {r['model']} | {r['batch']} | {r['candidate']} | {figures}")
    disturbed = sum(r.get("disturbed_rounds", 0) for r in rows)
    return "\n".join([*lines, "", f"Disturbed rounds: {disturbed}.", ""])


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
    print(f"{options.threads} threads, SGD; median of {options.rounds} rounds of {options.seconds} s\n")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
