"""A comparison's scalars for TensorBoard: a run for each candidate of each source."""

from __future__ import annotations

import os
import re
from pathlib import Path

from onnxaccel.compare.results import Candidate, Comparison
from onnxaccel.report.figures import batches
from onnxaccel.runtime.tensorboard import Scalars

_COSTS = ("accuracy", "memory", "gpu_memory", "startup")
_OF_INFERENCE = (*_COSTS, "first_run", "size", "relative_error")
_OF_TRAINING = (*_COSTS, "first_step", "steps_per_second", "seconds_to_loss", "difference")


def write(comparison: Comparison, folder: str | os.PathLike[str]) -> list[Path]:
    """Write each candidate's figures into a folder of its own, ``SOURCE/CANDIDATE``.

    Losses stand over the step, what depends on the batch size over the batch size, all else at step 0.

    Raises:
        MissingDependency: tensorboard is not installed.
        OutputError: The folder cannot be written.
    """
    runs: dict[Path, Candidate] = {}
    for source in comparison.sources:
        for candidate in source.candidates:
            run = Path(folder, _name(source.name), _name(candidate.name))
            while run in runs:  # two names that differ only in what no folder can be called
                run = run.with_name(f"{run.name}_")
            runs[run] = candidate
    for run, candidate in runs.items():
        with Scalars(run) as scalars:
            _write(scalars, candidate)
    return list(runs)


def _write(scalars: Scalars, candidate: Candidate) -> None:
    if (inference := candidate.inference) is not None:
        for batch in batches(candidate):
            values = {f"inference/latency_{name}_ms": getattr(batch, name) for name in ("p50", "p90", "p99")}
            scalars.add(batch.size, values | {"inference/samples_per_second": batch.throughput})
        scalars.add(0, {f"inference/{name}": getattr(inference, name) for name in _OF_INFERENCE})
    if (training := candidate.training) is not None:
        for step, loss in enumerate(training.losses, start=1):
            scalars.add(step, {"training/loss": loss})
        scalars.add(0, {f"training/{name}": getattr(training, name) for name in _OF_TRAINING})


def _name(text: str) -> str:
    """A folder's name that keeps what it can of the text."""
    return re.sub(r"[^\w+,=-]+", "_", text)[:80].strip("_") or "unnamed"
