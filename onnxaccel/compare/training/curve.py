"""A side's process: trains on the shared batches, keeps each step's loss, then trains on for the timing.

Only the standard library and numpy are used, so that Caffe's own Python can run this file, see
`onnxaccel.runtime.measure.worker`. What differs from framework to framework is a class `Side` in a file of
its own:

    Side(setup, x, y)     builds the model and its training, for batches like the first one
    axis                  the axis of the scores that runs over the classes
    notes                 what to keep in mind about this side
    ready(x, y)           a batch in the framework's own form
    step(batch)           one step on a batch that is ready; its loss before the update
    timed(batches)        what is timed: a function that makes one step on the next of these, again and again
    scores(x)             what the model gives in inference
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import time
from typing import Any

import numpy as np

HELD = 8
"""Batches that the timed steps take in turns; they are in memory, so that no reading is timed."""


class Stored:
    """A .npy file whose first axis is read entry by entry: a mapped file would count as memory of the side.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self._start = file.tell()

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        count = math.prod(self.shape[1:])
        offset = self._start + index * count * self.dtype.itemsize
        return np.fromfile(self._path, self.dtype, count, offset=offset).reshape(self.shape[1:])


def start(setup: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Train one side; gives a timed step, and what the training gave.

    Args:
        setup: "side" ("MODULE" or "FILE.py" of the class), "x" and "y" (files of the batches,
            [steps, N, ...]), "held_out" (files of the validation data, [N, ...], or None), "labels" (whether
            the targets are class labels), "done" (a file to make when the loss curve is there: a process that
            is started anew for another turn only takes its turn), and what the class takes.
    """
    x, y = Stored(setup["x"]), Stored(setup["y"])
    side = _module(setup["side"]).Side(setup, x[0], y[0])
    held = [side.ready(x[index], y[index]) for index in range(min(HELD, len(x)))]
    facts: dict[str, Any] = {}
    if not os.path.exists(setup["done"]):
        began = time.perf_counter()
        losses = [_finite(side.step(held[0]), 0)]
        first_step = time.perf_counter() - began
        for index in range(1, len(x)):
            losses.append(_finite(side.step(side.ready(x[index], y[index])), index))
        held_out = setup["held_out"]
        accuracy = _accuracy(side, held_out, int(x.shape[1])) if held_out else None
        facts = {"losses": losses, "first_step": first_step, "accuracy": accuracy, "notes": side.notes}
        facts["seconds"] = time.perf_counter() - began
        open(setup["done"], "w").close()
    return side.timed(held), facts


def in_turns(step: Any, batches: list[Any]) -> Any:
    """A function that makes one step on the next batch, again and again."""
    count = 0

    def one() -> Any:
        nonlocal count
        count += 1
        return step(batches[count % len(batches)])

    return one


def are_probabilities(scores: np.ndarray[Any, Any], axis: int) -> bool:
    """Whether scores are the result of a softmax over their classes."""
    sums = scores.sum(axis=axis)
    return bool(scores.min() >= 0 and np.allclose(sums, 1.0, atol=1e-4))


def _accuracy(side: Any, held_out: list[str], batch: int) -> float:
    """The share of right answers on the validation data."""
    x, y = (Stored(path) for path in held_out)
    right, total = 0, 0
    for begin in range(0, len(x), batch):
        indices = range(begin, min(begin + batch, len(x)))
        truth = np.stack([y[index] for index in indices])
        found = side.scores(np.stack([x[index] for index in indices])).argmax(side.axis)
        right += int((found.reshape(truth.shape) == truth).sum())
        total += truth.size
    return right / total


def _finite(loss: float, index: int) -> float:
    if not math.isfinite(loss):
        raise SystemExit(f"the loss became {loss} at step {index + 1}; lower the learning rate")
    return float(loss)


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location("side", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
