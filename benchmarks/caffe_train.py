"""LeNet and CIFAR-10 quick by their own solvers: onnxaccel beside a real Caffe (make caffe builds it).

    python benchmarks/caffe_train.py [--iterations 1000] [--rounds 3] [--nets lenet,...] [--json FILE]

Both start from the same weights and take the same batches from the same LMDB. First the loss curves of 50
iterations are compared; beside the difference stands that of two Caffe runs whose batches hold the same
samples in another order, which is what rounding alone does. Then each trains for so many iterations, in
turns, each in a process of its own, Caffe with one BLAS thread, its fastest setting; reading the data is
included.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnxaccel.caffe import read_solver, save_caffemodel  # noqa: E402
from onnxaccel.converters import convert  # noqa: E402
from onnxaccel.runtime.solving import solve  # noqa: E402
from tests import caffe_recipes  # noqa: E402
from tests.converters.real_caffe import Job, caffe_train  # noqa: E402

CURVE = 50
"""Iterations whose loss curves are compared."""
GAP = 2.0
"""Seconds of quiet before each run."""


def curves(made: caffe_recipes.Recipe, folder: Path, model: Any, start: Path) -> dict[str, float]:
    """How far the loss curves are apart: onnxaccel and Caffe, and Caffe and itself on reordered batches."""
    theirs, other = caffe_train(
        Job(made.solver, start, CURVE), Job(caffe_recipes.reordered(made, folder), start, CURVE)
    )
    means: list[float] = []
    solve(
        model,
        replace(read_solver(made.solver), max_iter=CURVE),
        str(made.train),
        on_tick=lambda tick: means.append(tick.loss),
    )
    losses = np.diff(np.array(means) * np.arange(1, CURVE + 1), prepend=0.0)
    gap, noise = np.abs(losses - theirs["losses"]), np.abs(other["losses"] - theirs["losses"])
    return {
        "first_10": float(gap[:10].max()),
        "all_50": float(gap.max()),
        "caffe_to_itself_first_10": float(noise[:10].max()),
        "caffe_to_itself_all_50": float(noise.max()),
    }


def ours(onnx: Path, made: caffe_recipes.Recipe, iterations: int, folder: Path) -> dict[str, float]:
    """One training by the command line."""
    text = made.solver.read_text()
    for setting in ("max_iter", "test_interval", "snapshot"):
        text = re.sub(rf"^{setting}:.*$", f"{setting}: {iterations}", text, flags=re.MULTILINE)
    solver = folder / "bench_solver.prototxt"
    solver.write_text(text + "\ntest_initialization: false\n")
    command = ["train", onnx, "--solver", solver, "--data", made.train, "--val", made.test]
    done = subprocess.run(
        [sys.executable, "-m", "onnxaccel", *map(str, command), "-o", str(folder / "trained.onnx"), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    found = json.loads(done.stdout)
    return {"accuracy": found["tests"][-1]["accuracy"], "rate": found["iterations_per_second"]}


def theirs(made: caffe_recipes.Recipe, start: Path, iterations: int) -> dict[str, float]:
    """One training by the real Caffe."""
    (found,) = caffe_train(Job(made.solver, start, iterations, made.test_batches))
    return {"accuracy": float(found["accuracy"]), "rate": iterations / float(found["seconds"])}


def measure(name: str, iterations: int, rounds: int) -> dict[str, Any]:
    """All figures of one network."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = getattr(caffe_recipes, name)(folder, ROOT.parent / "shared")
        model = convert(made.net, solver=made.solver)
        onnx, start = model.save(folder / "net.onnx"), folder / "start.caffemodel"
        save_caffemodel(model, made.net, start)
        found: dict[str, Any] = {"net": name, "curves": curves(made, folder, model, start)}
        runs: dict[str, list[dict[str, float]]] = {"caffe": [], "onnxaccel": []}
        for _ in range(rounds):
            time.sleep(GAP)
            runs["caffe"].append(theirs(made, start, iterations))
            time.sleep(GAP)
            runs["onnxaccel"].append(ours(onnx, made, iterations, folder))
        for side, results in runs.items():
            rates = [result["rate"] for result in results]
            found[side] = {
                "accuracy": statistics.median(result["accuracy"] for result in results),
                "iterations_per_second": statistics.median(rates),
                "least": min(rates),
                "most": max(rates),
            }
        found["ratio"] = found["onnxaccel"]["iterations_per_second"] / found["caffe"]["iterations_per_second"]
        return found


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", default="lenet,cifar10_quick")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(name, options.iterations, options.rounds) for name in options.nets.split(",")]
    print("| net | loss difference, 10 iterations | 50 | Caffe to itself, 10 | 50 |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['net']} | " + " | ".join(f"{value:.1e}" for value in row["curves"].values()) + " |")
    print(f"\n{options.iterations} iterations, {options.rounds} rounds, {os.cpu_count()} cores\n")
    print("| net | | accuracy | iterations/s (median) | min to max | ratio |\n|---|---|---|---|---|---|")
    for row in rows:
        for side, ratio in (("caffe", 1.0), ("onnxaccel", row["ratio"])):
            one = row[side]
            spread = f"{one['least']:.1f} to {one['most']:.1f}"
            print(
                f"| {row['net']} | {side} | {one['accuracy']:.4f} | {one['iterations_per_second']:.1f} "
                f"| {spread} | {ratio:.2f} |"
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
