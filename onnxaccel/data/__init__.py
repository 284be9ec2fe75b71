"""Data sets: one reader per format, batches prepared in the background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.data.augment import Augmentation
from onnxaccel.data.dataset import Arrays, Dataset
from onnxaccel.data.loader import Batch, Loader
from onnxaccel.data.prepare import Preparation
from onnxaccel.data.spec import open_dataset, reader
from onnxaccel.data.targets import Targets
from onnxaccel.errors import DataError
from onnxaccel.graph.losses import Loss
from onnxaccel.graph.model import Model

Source = str | Dataset | tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Data: a SPEC, a data set, or a pair of arrays (x, y)."""

__all__ = [
    "Augmentation",
    "Batch",
    "Dataset",
    "Loader",
    "Source",
    "as_dataset",
    "batches",
    "label_kind",
    "open_dataset",
    "reader",
]


def as_dataset(source: Source) -> Dataset:
    """The data set behind a `Source`.

    Raises:
        DataError: It is unreadable or empty.
    """
    if isinstance(source, str):
        return open_dataset(source)
    dataset = Arrays("the given arrays", *source) if isinstance(source, tuple) else source
    if not len(dataset):
        raise DataError(f"{dataset.source}: the data set is empty")
    return dataset


def batches(
    source: Source,
    model: Model,
    batch_size: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    loss: str | Loss | None = None,
    shuffle: bool = True,
    window: tuple[int, int] | None = None,
    augmentation: Augmentation | None = None,
    share: tuple[int, int] = (0, 1),
) -> Loader:
    """One pass over ``source`` in batches that fit ``model`` and, where given, ``loss``; see `Loader`."""
    targets = Targets.of(model, loss) if loss is not None else None
    preparation = Preparation.of(model, targets.input if targets is not None else None)
    return Loader(
        as_dataset(source),
        preparation,
        batch_size,
        seed,
        epoch,
        targets,
        shuffle,
        window,
        augmentation,
        share,
    )


def label_kind(source: Source) -> str:
    """The loss that fits the targets: "cross_entropy" for class labels, "mse" for values."""
    _, y = as_dataset(source).take(np.zeros(1, np.int64))
    return "cross_entropy" if y.dtype == np.int64 and y.ndim == 1 else "mse"


def samples(source: str, model: Model, most: int = 16) -> dict[str, npt.NDArray[Any]]:
    """The inputs for a prediction.

    They come from an image, a .npy array, a .npz of inputs by name, or the start of a data SPEC.

    Raises:
        DataError: It is unreadable or does not fit the model.
    """
    from onnxaccel.data.readers.folder import IMAGE_SUFFIXES, read_image
    from onnxaccel.data.readers.npz import load_arrays

    path = Path(source)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        preparation = Preparation.of(model)
        return {preparation.name: preparation(read_image(path, preparation.size)[None], source)}
    if path.is_file() and path.suffix in (".npy", ".npz"):
        wanted = model.input_names()
        arrays = load_arrays(path, lambda names: set(wanted).intersection(names) or {""}.intersection(names))
        arrays = {wanted[0]: arrays[""]} if "" in arrays else arrays
        if set(wanted) <= set(arrays):
            return {name: arrays[name] for name in wanted}
    with batches(source, model, most).starting_at(0) as rest:
        return next(iter(rest))[0]
