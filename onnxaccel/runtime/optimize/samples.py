"""The inputs that candidates are calibrated, judged and measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.data import Source, as_dataset, batches, label_kind
from onnxaccel.errors import DataError, ModelError
from onnxaccel.graph.builder import dims_of
from onnxaccel.graph.feeds import Arrays, index_ranges, random_feed
from onnxaccel.graph.model import Model, name_of

JUDGED_SAMPLES = 2000
CALIBRATION_SAMPLES = 256
SYNTHETIC_SAMPLES = 64
SAMPLE_BYTES = 2**29
"""Bytes of samples that are held, at most."""


@dataclass(frozen=True)
class Samples:
    """Files of inputs by name.

    Attributes:
        judged: A .npz to compare results on: inputs, "batch" (samples per run) and, for classes, "labels".
        calibration: A .npz for static quantization; other samples than those judged, where there are enough.
        has_labels: Whether accuracy can be measured.
        fixed_batch: The batch size that the model is fixed to, or None.
        synthetic: The inputs are drawn at random.
    """

    judged: Path
    calibration: Path
    has_labels: bool
    fixed_batch: int | None
    synthetic: bool


def collect(model: Model, data: Source | None, folder: Path, seed: int = 0) -> Samples:
    """Write samples into ``folder``: of ``data``, drawn in an order that the seed decides, else random ones.

    Raises:
        DataError: The data is unreadable or does not fit the model.
        ModelError: There is no data, and an input's rank is not known.
    """
    fixed = _fixed_batch(model)
    if data is None:
        everything, labels = _synthetic(model, seed, fixed or 1), None
        calibration = judged = slice(None)
    else:
        everything, labels = _real(model, data, seed)
        count = len(next(iter(everything.values())))
        apart = min(CALIBRATION_SAMPLES, count // 4) if count > 4 * (fixed or 1) else 0
        calibration, judged = slice(0, apart or None), slice(apart, None)
    batch = fixed or (1 if data is None else 32)
    paths = folder / "judged.npz", folder / "calibration.npz"
    parts = {name: array[judged] for name, array in everything.items()}
    while fixed is None and batch > len(next(iter(parts.values()))):
        batch = batch // 2
    write(paths[0], parts, batch, None if labels is None else labels[judged])
    write(paths[1], {name: array[calibration] for name, array in everything.items()}, fixed or 1)
    return Samples(*paths, labels is not None, fixed, data is None)


def write(path: Path, inputs: Arrays, batch: int, labels: npt.NDArray[Any] | None = None) -> None:
    """Store inputs by name, the number of samples per run, and labels."""
    arrays: dict[str, Any] = {f"input/{name}": array for name, array in inputs.items()}
    arrays["batch"] = np.asarray(batch)
    if labels is not None:
        arrays["labels"] = labels
    np.savez(path, **arrays)


def read(path: Path | str) -> tuple[Arrays, int, npt.NDArray[Any] | None]:
    """What `write` stored."""
    with np.load(path) as stored:
        inputs = {name.removeprefix("input/"): stored[name] for name in stored.files if "/" in name}
        return inputs, int(stored["batch"]), stored["labels"] if "labels" in stored.files else None


def feed_of(path: Path | str, size: int) -> Arrays:
    """One feed of ``size`` samples; where there are fewer, they repeat."""
    return {name: np.resize(array, (size, *array.shape[1:])) for name, array in read(path)[0].items()}


def _real(model: Model, data: Source, seed: int) -> tuple[Arrays, Any]:
    dataset = as_dataset(data)
    classes = label_kind(dataset) == "cross_entropy" and _scores_classes(model)
    most = JUDGED_SAMPLES + CALIBRATION_SAMPLES
    inputs: list[Arrays] = []
    targets: list[Any] = []
    seen = size = 0
    with batches(dataset, model, 64, seed=seed, loss="cross_entropy" if classes else None).starting_at(
        0
    ) as rest:
        for feed, target in rest:
            inputs.append(feed)
            targets.append(target)
            seen += len(target)
            size += sum(array.nbytes for array in feed.values())
            if seen >= most or size >= SAMPLE_BYTES:
                break
    stacked = {name: np.concatenate([feed[name] for feed in inputs]) for name in inputs[0]}
    fixed = _fixed_batch(model) or 1
    if seen < fixed:
        raise DataError(f"{dataset.source}: {seen} samples, the model takes {fixed} at a time")
    return stacked, np.concatenate(targets) if classes else None


def _synthetic(model: Model, seed: int, batch: int) -> Arrays:
    rng = np.random.default_rng(seed)
    ranges = index_ranges(model)
    feeds = [random_feed(model, batch, rng, ranges) for _ in range(math.ceil(SYNTHETIC_SAMPLES / batch))]
    for name, array in feeds[0].items():
        if not array.ndim or array.shape[0] != batch:
            raise ModelError(
                f"input {name!r} has no batch dimension to draw samples along; only such are optimized"
            )
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _fixed_batch(model: Model) -> int | None:
    """The size of the first dimension of the inputs where it is fixed, or None."""
    for value in model.inputs:
        dims = dims_of(value)
        if dims is None:
            raise ModelError(f"the shape of input {name_of(value)!r} is not known; convert with --shape")
        if dims and isinstance(dims[0], int):
            return dims[0]
    return None


def _scores_classes(model: Model) -> bool:
    dims = dims_of(model.outputs[0])
    return dims is not None and len(dims) == 2
