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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CANDIDATES = ("torch eager", "torch.compile", "onnxaccel")
BATCH = {"mlp": 32, "cifar_cnn": 64}
LEARNING_RATE = 0.01
GAP = 0.5
"""Seconds of quiet before a turn, for the threads of the one before to go to sleep."""
BUSY = 0.15
"""Share of the machine's time that other processes may take during a turn."""


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


def work(candidate: str, name: str, threads: int) -> None:
    """A candidate's process: warm up, then measure for as long as each line of standard input says."""
    if candidate == "onnxaccel":
        step = onnxaccel_step(name, threads)
    else:
        step = torch_step(name, candidate == "torch.compile", threads)
    first = step()
    for _ in range(20):
        step()
    print(json.dumps({"first_loss": first}), flush=True)
    for line in sys.stdin:
        seconds, count, started = float(line), 0, time.perf_counter()
        cpu = time.process_time()
        while time.perf_counter() - started < seconds:
            step()
            count += 1
        elapsed = time.perf_counter() - started
        print(json.dumps({"rate": count / elapsed, "cpu": time.process_time() - cpu}), flush=True)


def machine_seconds() -> float:
    """Processor seconds that all processes together have used since the machine started."""
    fields = [int(f) for f in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def turn(process: subprocess.Popen[str], seconds: float) -> tuple[float, bool]:
    """One candidate's steps per second, and whether the machine was otherwise busy meanwhile."""
    assert process.stdin is not None and process.stdout is not None
    for _ in range(4):
        time.sleep(GAP)
        before = machine_seconds()
        print(seconds, file=process.stdin, flush=True)
        result = json.loads(process.stdout.readline())
        others = machine_seconds() - before - result["cpu"]
        busy = others > BUSY * seconds * (os.cpu_count() or 1)
        if not busy:
            break
    return result["rate"], busy


def compare(name: str, rounds: int, seconds: float, threads: int) -> list[dict[str, Any]]:
    """Measure all candidates on one model."""
    processes = {}
    for candidate in CANDIDATES:
        processes[candidate] = subprocess.Popen(
            [sys.executable, __file__, "--work", candidate, "--models", name, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    try:
        losses = {c: json.loads(p.stdout.readline())["first_loss"] for c, p in processes.items() if p.stdout}
        rates: dict[str, list[float]] = {c: [] for c in CANDIDATES}
        disturbed = dict.fromkeys(CANDIDATES, 0)
        for _ in range(rounds):
            for candidate, process in processes.items():
                rate, busy = turn(process, seconds)
                rates[candidate].append(rate)
                disturbed[candidate] += busy
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    eager = statistics.median(rates["torch eager"])
    return [
        {
            "model": name,
            "batch": BATCH[name],
            "candidate": candidate,
            "steps_per_second": statistics.median(rates[candidate]),
            "min": min(rates[candidate]),
            "max": max(rates[candidate]),
            "ratio_to_torch_eager": statistics.median(rates[candidate]) / eager,
            "first_loss": losses[candidate],
            "disturbed_rounds": disturbed[candidate],
        }
        for candidate in CANDIDATES
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
    parser.add_argument("--work", choices=CANDIDATES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.models, options.threads)
        return
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
