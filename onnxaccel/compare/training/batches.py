"""The batches that all sides train on, written once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.compare.training.plan import Plan
from onnxaccel.data import Batch, Loader, Source, as_dataset, batches
from onnxaccel.data.dataset import Part
from onnxaccel.graph import losses
from onnxaccel.graph.builder import dims_of
from onnxaccel.graph.model import Model

MOST_BYTES = 4 * 2**30
"""Bytes of batches that are written at most; larger ones are fewer."""

HELD_OUT = 10_000
"""Samples of the validation data that are looked at, at most."""


@dataclass(frozen=True)
class Shared:
    """Batches on disk.

    Attributes:
        x: The file of the inputs, [steps, N, ...], in the order of the training.
        y: The file of the targets.
        shapes: Shape of one batch, and of its targets.
        per_epoch: Steps of an epoch.
            held_out: The files of the validation data's inputs and targets, [samples, ...], or None.
        notes: What was left out.
    """

    x: Path
    y: Path
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    per_epoch: int
    held_out: tuple[Path, Path] | None
    notes: list[str]


def write(
    model: Model, plan: Plan, data: Source, validation: Source | None, seed: int, folder: Path
) -> Shared:
    """Write the batches of all epochs, prepared for ``model``, in the order that ``seed`` decides.

    Raises:
        DataError: The data is unreadable, or does not fit the model or the loss.
    """
    dataset = as_dataset(data)
    loss = losses.create(plan.loss, class_axis(model, plan))
    size = min(plan.batch_size, len(dataset))

    def epoch(number: int) -> Loader:
        return batches(dataset, model, size, seed=seed, epoch=number, loss=loss)

    first = _arrays(next(iter(epoch(0))))
    wanted = max(1, min(len(dataset) // size, plan.max_steps // plan.epochs))
    room = MOST_BYTES // sum(array.nbytes for array in first) // plan.epochs
    per_epoch = max(1, min(wanted, room))
    notes = [f"epochs are cut to {per_epoch} steps: more take too much disk"] if per_epoch < wanted else []
    x = _file(folder / "x.npy", per_epoch * plan.epochs, first[0])
    y = _file(folder / "y.npy", per_epoch * plan.epochs, first[1])
    for number in range(plan.epochs):
        with epoch(number).starting_at(0) as rest:
            for step, batch in enumerate(itertools.islice(rest, per_epoch), number * per_epoch):
                x[step], y[step] = _arrays(batch)
    held_out = _held_out(model, loss, validation, folder) if validation is not None and plan.labels else None
    return Shared(
        folder / "x.npy", folder / "y.npy", (first[0].shape, first[1].shape), per_epoch, held_out, notes
    )


def class_axis(model: Model, plan: Plan) -> dict[str, int]:
    """The loss's axis of the classes where it is not torch's: TensorFlow has those of positions last."""
    dims = dims_of(model.outputs[0]) or []
    last = plan.labels and len(dims) > 2 and model.metadata.framework == "tensorflow"
    return {"axis": -1} if last else {}


def _arrays(batch: Batch) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The only input, and the target."""
    feed, target = batch
    return next(iter(feed.values())), target


def _file(path: Path, count: int, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A file of so many arrays like this one."""
    return np.lib.format.open_memmap(path, "w+", like.dtype, (count, *like.shape))


def _held_out(model: Model, loss: losses.Loss, data: Source, folder: Path) -> tuple[Path, Path]:
    """Write the validation data, sample by sample."""
    dataset = as_dataset(data)
    count = min(len(dataset), HELD_OUT)
    paths = folder / "held_out_x.npy", folder / "held_out_y.npy"
    loader = batches(Part(dataset, 0, count), model, 256, loss=loss)
    files: list[npt.NDArray[Any]] = []
    for index, batch in enumerate(loader):
        arrays = _arrays(batch)
        files = files or [_file(path, count, part[0]) for path, part in zip(paths, arrays, strict=True)]
        for file, part in zip(files, arrays, strict=True):
            file[index * 256 : index * 256 + len(part)] = part
    return paths
