"""What runs in a candidate's processes: one judges its results, one measures its speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxaccel.graph.model import SessionSettings
from onnxaccel.runtime.optimize.samples import feed_of, read
from onnxaccel.runtime.providers import resolve
from onnxaccel.runtime.session import Session

JUDGED_BYTES = 2**28
"""Bytes of outputs that are kept for comparison, at most."""


def judge(setup: Mapping[str, Any]) -> tuple[None, dict[str, Any]]:
    """Run all samples; gives the accuracy where there are labels, and writes the outputs to compare."""
    session = _open(setup)
    arrays, batch, labels = read(setup["samples"])
    count = len(next(iter(arrays.values())))
    kept: dict[str, list[Any]] = {}
    right = size = 0
    for start in range(0, count - batch + 1, batch):
        results = session.run({name: array[start : start + batch] for name, array in arrays.items()})
        if labels is not None:
            scores = next(iter(results.values()))
            right += int(np.sum(scores.reshape(batch, -1).argmax(1) == labels[start : start + batch]))
        if size < JUDGED_BYTES:
            size += sum(value.nbytes for value in results.values())
            for name, value in results.items():
                kept.setdefault(name, []).append(value)
    stacked: dict[str, Any] = {name: np.stack(values) for name, values in kept.items()}
    np.savez(setup["outputs"], **stacked)
    seen = count - count % batch
    return None, {"accuracy": None if labels is None else right / seen, "samples": seen}


def run(setup: Mapping[str, Any]) -> tuple[Callable[[], object], dict[str, Any]]:
    """Run one batch again and again."""
    session = _open(setup)
    feed = feed_of(setup["samples"], setup["batch_size"])
    raw, outputs = session.raw, session.output_names
    facts = {"elsewhere": {operator: len(names) for operator, names in session.elsewhere.items()}}
    return lambda: raw.run(outputs, feed), facts


def _open(setup: Mapping[str, Any]) -> Session:
    settings = SessionSettings(**setup["settings"])
    provider = resolve(settings.provider or "cpu", settings.options)
    return Session(Path(setup["model"]), provider, settings=settings, secret=setup["secret"])
