"""Data sets: one reader per format, batches prepared in the background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.data.augment import Augmentation
from onnxaccel.data.dataset import Arrays, Dataset, Named, names_in
from onnxaccel.data.loader import Batch, Loader
from onnxaccel.data.prepare import Preparation
from onnxaccel.data.spec import open_dataset, reader
from onnxaccel.data.targets import Targets
from onnxaccel.errors import DataError
from onnxaccel.graph.losses import Loss
from onnxaccel.graph.model import Model

Samples = npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]

Source = str | Dataset | tuple[Samples, npt.NDArray[Any]]
"""Data: a SPEC, a data set, or a pair (x, y) of arrays; x by name for a model with several inputs."""

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
    dataset = _given(*source) if isinstance(source, tuple) else source
    if not len(dataset):
        raise DataError(f"{dataset.source}: the data set is empty")
    return dataset


def _given(x: Samples, y: npt.NDArray[Any]) -> Dataset:
    if not isinstance(x, Mapping):
        return Arrays("the given arrays", x, y)
    if not x:
        raise DataError("the given arrays: there are no samples, x is empty")
    name, *others = x
    return Named("the given arrays", x[name], y, others={n: x[n] for n in others}, name=name)


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
    preparations = Preparation.all_of(model, targets.input if targets is not None else None)
    dataset = as_dataset(source)
    others = _by_array(preparations, dataset) if len(preparations) > 1 else {}
    if others and augmentation is not None:
        raise DataError("images are changed at random for models with one input; this one has several")
    return Loader(
        dataset,
        preparations[0],
        batch_size,
        seed,
        epoch,
        targets,
        shuffle,
        window,
        augmentation,
        share,
        others,
    )


def _by_array(preparations: Sequence[Preparation], dataset: Dataset) -> dict[str, Preparation]:
    """The inputs' preparations by the arrays that feed them: those of their names, else all in order."""
    wanted, there = [p.name for p in preparations], names_in(dataset)
    if set(wanted) <= set(there):
        return {p.name: p for p in preparations}
    if len(there) == len(wanted) and not set(wanted) & set(there):
        return dict(zip(there, preparations, strict=True))
    raise DataError(
        f"{dataset.source}: the model has {len(wanted)} inputs ({', '.join(wanted)}), the data "
        f"{', '.join(there) or 'one array of samples'}; give an npz file with an array for each, of its name"
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
