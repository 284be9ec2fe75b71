"""What all candidates share: their inputs, their steps, and the outputs that they are judged by.

The setup has: "inputs", paths of a .npy with samples for each input, in the ONNX model's order; "names" and
"outputs", the names of the ONNX model's inputs and outputs; "sizes", batch sizes; "judged", batch size of the
judgement; "results", the .npz to write; "threads"; and what the framework's file needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = Any  # np.ndarray; also read by Pythons whose numpy has no types
Run = Callable[[Sequence[Array]], Sequence[Array]]
"""From inputs to outputs, each in the ONNX model's order."""

JUDGE = "judge"
"""The step that writes the outputs for all samples."""

RESULT_BYTES = 2**28
"""Bytes of outputs that are kept, at most."""

JUDGE_SECONDS = 20.0
"""Seconds that a judgement may take; all candidates are then held to the samples that each of them ran."""


def steps(setup: Mapping[str, Any], run: Run) -> dict[str, Callable[[], object]]:
    """The steps of a candidate: one per batch size, and `JUDGE`."""
    made = {str(size): _at(setup, run, size) for size in setup["sizes"]}
    return {**made, JUDGE: lambda: judge(setup, run)}


def _at(setup: Mapping[str, Any], run: Run, size: int) -> Callable[[], object]:
    stored = [np.load(path, mmap_mode="r") for path in setup["inputs"]]
    feed = [np.array(np.resize(array[:size], (size, *array.shape[1:]))) for array in stored]
    return lambda: run(feed)


def judge(setup: Mapping[str, Any], run: Run) -> None:
    """Run the samples batch by batch; writes each output, [runs, ...], of as many as there is time for."""
    inputs = [np.load(path, mmap_mode="r") for path in setup["inputs"]]
    batch, size, end = setup["judged"], 0, time.monotonic() + JUDGE_SECONDS
    kept: list[list[Array]] = []
    for start in range(0, len(inputs[0]) - batch + 1, batch):
        results = run([np.array(array[start : start + batch]) for array in inputs])
        kept.append([np.array(result) for result in results])
        size += sum(result.nbytes for result in kept[-1])
        if size >= RESULT_BYTES or time.monotonic() > end:
            break
    same = [row for row in kept if [a.shape for a in row] == [a.shape for a in kept[0]]]
    outputs: dict[str, Array] = {str(i): np.stack(column) for i, column in enumerate(zip(*same))}  # noqa: B905
    np.savez(setup["results"], **outputs)


def by_name(names: Sequence[str], own: Sequence[str], feed: Sequence[Array]) -> list[Array]:
    """The arrays in the order of a framework's own names; in their own order where those differ."""
    if set(own) != set(names):
        return list(feed)
    return [feed[list(names).index(name)] for name in own]
