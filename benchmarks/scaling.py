"""Strong and weak scaling of training over processes on this machine.

    python benchmarks/scaling.py [--workers 1,2] [--steps 60] [--json FILE]
    python benchmarks/scaling.py --overlap     could the exchange hide behind the backward pass?
    python benchmarks/scaling.py --project     the arithmetic for many GPUs

Strong: one batch of 128, shared. Weak: 64 samples for each process. One thread per process, so that one
process leaves the other cores alone. The rate is the median over the steps of the first process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SHAPES = {"mlp": (784,), "cifar_cnn": (3, 32, 32)}


def work(path: Path, batch: int, steps: int) -> None:
    """One process: train, and let the first print the median seconds of a step."""
    import onnxaccel as oa
    from onnxaccel.runtime import distributed

    rank, size = int(os.environ.get("RANK", 0)), distributed.size_of_group()
    trainer = oa.Trainer(path, optimizer=oa.optimizers.SGD(0.01), ep="cpu", threads=1, metrics=False)
    rng = np.random.default_rng(0)
    x, y = rng.random((batch, *SHAPES[path.stem]), np.float32), rng.integers(0, 10, batch)
    x, y = x[rank::size], y[rank::size]
    times = []
    for _ in range(steps + 5):
        started = time.perf_counter()
        trainer.step(x, y)
        times.append(time.perf_counter() - started)
    if rank == 0:
        size_of = sum(w.nbytes for w in trainer.model().weights(trainer.parameters).values())
        print(json.dumps({"seconds": statistics.median(times[5:]), "bytes": size_of}))


def overlap(path: Path, batch: int, steps: int) -> None:
    """One of two processes: a step without exchange, the exchange, and both in turn and at once.

    At once, a thread exchanges as many bytes as the gradients have while the step computes: all that
    an exchange in buckets could hide, and more, since it would have to wait for the first of them.
    """
    import torch

    import onnxaccel as oa
    from onnxaccel.graph.model import Model
    from onnxaccel.graph.training import training_step
    from onnxaccel.runtime import distributed
    from onnxaccel.runtime.providers import resolve
    from onnxaccel.runtime.stepper import Stepper

    group = distributed.join("cpu")
    step = training_step(Model.load(path), "cross_entropy", oa.optimizers.SGD(0.01), split=True)
    stepper = Stepper(step, resolve("cpu"), 1)
    rng = np.random.default_rng(group.rank)
    feed = {step.inputs[0]: rng.random((batch, *SHAPES[path.stem]), np.float32)}
    target = rng.integers(0, 10, batch)
    flat = torch.zeros(sum(step.initial[name].size for name in step.parameters))

    def compute() -> object:
        return stepper.run(feed, target, 0.01)

    def exchange() -> None:
        group.sum(flat)

    with ThreadPoolExecutor(1) as thread:

        def at_once() -> None:
            coming = thread.submit(exchange)
            compute()
            coming.result()

        ways = {
            "compute": compute,
            "exchange": exchange,
            "in turn": lambda: (compute(), exchange()),
            "at once": at_once,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(steps + 5):
            for name, way in ways.items():
                group.sums(0.0)  # both begin together
                started = time.perf_counter()
                way()
                if number >= 5:
                    times[name].append(time.perf_counter() - started)
    if group.leads:
        print(json.dumps({name: statistics.median(found) for name, found in times.items()}))


def measured(path: Path, workers: int, batch: int, steps: int, *flags: str) -> dict[str, float]:
    """What the first of ``workers`` processes says."""
    from onnxaccel.runtime.launch import _free_port

    port = str(_free_port())
    command = [sys.executable, __file__, "--work", str(path), "--batch", str(batch), "--steps", str(steps)]
    processes = []
    for rank in range(workers):
        group = {
            "RANK": str(rank),
            "WORLD_SIZE": str(workers),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = os.environ | (group if workers > 1 else {})
        processes.append(
            subprocess.Popen([*command, *flags], env=environment, stdout=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate()[0] for process in processes]
    found: dict[str, float] = json.loads(outputs[0].splitlines()[-1])
    return found


def projected(
    seconds: float, size: float, workers: int, bandwidth: float, latency: float, hidden: float = 0.0
) -> float:
    """Efficiency of weak scaling with a ring: each sends 2 (n - 1) / n of the bytes, in 2 (n - 1) hops.

    Args:
        seconds: Time of a step without exchange.
        size: Bytes of all gradients.
        workers: Processes.
        bandwidth: Bytes per second that each process sends and receives.
        latency: Seconds of one hop.
        hidden: Share of the step that the exchange can run beside; 0: it begins when the gradients are there.
    """
    exchange = 2 * (workers - 1) * (size / workers / bandwidth + latency)
    return seconds / (seconds + max(0.0, exchange - hidden * seconds))


CASES = {"25.6 M parameters in float32, 0.1 s a step": (0.1, 25.6e6 * 4), "7 B in 16 bits, 4 s": (4.0, 14e9)}
LINKS = {
    "450 GB/s, 3 us": (450e9, 3e-6),
    "400 Gbit/s, 5 us": (50e9, 5e-6),
    "10 Gbit/s, 20 us": (1.25e9, 20e-6),
}
BACKWARD = 2 / 3
"""Share of a step that is the backward pass, which an exchange in buckets can run beside."""


def project() -> None:
    """Print the arithmetic: efficiency as it is, and with the exchange beside the backward pass."""
    print("| | link | 8 | 64 | 256 | 1,000 |\n|---|---|---|---|---|---|")
    for case, (seconds, size) in CASES.items():
        for link, values in LINKS.items():
            pairs = [
                [projected(seconds, size, n, *values, hidden) for hidden in (0.0, BACKWARD)]
                for n in (8, 64, 256, 1000)
            ]
            print(f"| {case} | {link} | " + " | ".join(f"{a:.0%} ({b:.0%})" for a, b in pairs) + " |")


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--project", action="store_true")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        (overlap if options.overlap else work)(options.work, options.batch, options.steps)
        return
    if options.project:
        project()
        return
    import torch

    import onnxaccel as oa
    from onnxaccel import models

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            path = Path(folder, f"{name}.onnx")
            oa.convert(models.build(name, "pytorch"), torch.zeros(2, *shape), trainable=True).save(path)
            if options.overlap:
                found = measured(path, 2, 64, options.steps, "--overlap")
                rows.append({"model": name, **found})
                print(f"{name}: " + ", ".join(f"{way} {1e3 * found[way]:.2f} ms" for way in found))
                continue
            for kind in ("strong", "weak"):
                for workers in map(int, options.workers.split(",")):
                    batch = 128 if kind == "strong" else 64 * workers
                    found = measured(path, workers, batch, options.steps)
                    rate = batch / found["seconds"]
                    rows.append(
                        {
                            "model": name,
                            "kind": kind,
                            "workers": workers,
                            "batch": batch,
                            "rate": rate,
                            **found,
                        }
                    )
    if options.overlap:
        return
    print(
        f"{'model':<12}{'scaling':<9}{'workers':>8}{'batch':>7}{'ms/step':>9}{'samples/s':>11}{'MB/step':>9}"
    )
    for r in rows:
        print(
            f"{r['model']:<12}{r['kind']:<9}{r['workers']:>8}{r['batch']:>7}{1e3 * r['seconds']:>9.2f}"
            f"{r['rate']:>11,.0f}{r['bytes'] / 1e6:>9.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
