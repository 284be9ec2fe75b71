"""Data sets: samples that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxaccel.data.stored import StoredRows
from onnxaccel.errors import DataError

Array = npt.NDArray[Any]

Size = tuple[int, int]
"""Height and width."""


class Dataset(Protocol):
    """Samples and their targets.

    Attributes:
        source: Where it comes from, for messages.
        classes: Names of the classes, where the targets are class labels and have names; else None.
    """

    @property
    def source(self) -> str:
        """See above."""

    @property
    def classes(self) -> list[str] | None:
        """See above."""

    def __len__(self) -> int:
        """Number of samples."""

    def take(self, indices: npt.NDArray[np.int64], size: Size | None = None) -> tuple[Array, Array]:
        """The samples at ``indices``, stacked along axis 0 (images as [N, H, W, C]), and their targets.

        Args:
            indices: Which samples.
            size: What encoded images are resized to when they are decoded; arrays are never resized.

        Returns:
            The samples, and int64 [N] class labels or float32 [N, ...] targets.
        """


@dataclass
class Arrays:
    """A data set held in arrays, or in files that are indexed like arrays.

    Args:
        source: Where it comes from.
        x: The samples, [N, ...].
        y: The targets, [N, ...]: integers are class labels, floats are values to predict.
        classes: Names of the classes.

    Raises:
        DataError: They are no numbers, or there are not as many targets as samples.
    """

    source: str
    x: Array | StoredRows
    y: Array
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        check(self.source, self.x, self.y)

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: npt.NDArray[np.int64], size: Size | None = None) -> tuple[Array, Array]:
        """See `Dataset.take`."""
        return self.x[indices], as_targets(self.y[indices])


@dataclass
class Named(Arrays):
    """A data set for a model with several inputs, held in arrays.

    Args:
        others: Arrays beside ``x``, by name, [N, ...].
        name: The name of ``x``.
    """

    others: Mapping[str, Array] = field(default_factory=dict)
    name: str = "x"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, array in self.others.items():
            check(f"{self.source}: {name}", array, self.y)

    @property
    def names(self) -> list[str]:
        """The names of the arrays."""
        return [self.name, *self.others]

    def inputs(self, indices: npt.NDArray[np.int64]) -> dict[str, Array]:
        """The samples at ``indices``, by the names of the arrays."""
        arrays = {self.name: self.x, **self.others}
        return {name: array[indices] for name, array in arrays.items()}


def names_in(data: Dataset) -> list[str]:
    """The names of a data set's arrays, where it has several; else none."""
    if isinstance(data, Part):
        return names_in(data.whole)
    return data.names if isinstance(data, Named) else []


def inputs_of(data: Dataset, indices: npt.NDArray[np.int64]) -> dict[str, Array]:
    """The samples at ``indices`` of a data set with `names_in`, by these names."""
    if isinstance(data, Part):
        return inputs_of(data.whole, indices + data.start)
    assert isinstance(data, Named)
    return data.inputs(indices)


@dataclass
class Part:
    """A range of another data set's samples."""

    whole: Dataset
    start: int
    stop: int

    @property
    def source(self) -> str:
        """The whole's source, with the range."""
        return f"{self.whole.source}#{self.start}:{self.stop}"

    @property
    def classes(self) -> list[str] | None:
        """The whole's classes."""
        return self.whole.classes

    def __len__(self) -> int:
        return self.stop - self.start

    def take(self, indices: npt.NDArray[np.int64], size: Size | None = None) -> tuple[Array, Array]:
        """See `Dataset.take`."""
        return self.whole.take(indices + self.start, size)


@dataclass
class Joined:
    """Several data sets, one after the other.

    Attributes:
        source: Where they come from.
        parts: The data sets.
    """

    source: str
    parts: Sequence[Dataset]

    @property
    def classes(self) -> list[str] | None:
        """The first one's classes."""
        return self.parts[0].classes

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def take(self, indices: npt.NDArray[np.int64], size: Size | None = None) -> tuple[Array, Array]:
        """See `Dataset.take`."""
        starts = np.cumsum([0, *map(len, self.parts)])
        which = np.searchsorted(starts, indices, side="right") - 1
        pieces = {w: self.parts[w].take(indices[which == w] - starts[w], size) for w in np.unique(which)}
        place = np.argsort(np.argsort(which, kind="stable"), kind="stable")
        x, y = (np.concatenate(arrays)[place] for arrays in zip(*pieces.values(), strict=True))
        return x, y


def check(source: str, x: Any, y: Any) -> None:
    """Refuse, with a `DataError`, samples and targets that are no numbers, or not equally many."""
    for what, array in (("samples", x), ("targets", y)):
        if array.dtype.kind not in "biuf" or not array.ndim:
            raise DataError(
                f"{source}: the {what} are {array.dtype}, shape {list(array.shape)}; give one array of "
                "numbers, the samples along its first axis"
            )
    if len(x) != len(y):
        raise DataError(f"{source}: {len(x)} samples but {len(y)} targets")


def as_targets(y: Array) -> Array:
    """Integers as int64 class labels, [N] also where they came as a column [N, 1]; all else as float32."""
    if y.dtype.kind not in "iub":
        return y.astype(np.float32)
    return y.astype(np.int64).reshape(len(y)) if y.shape[1:] == (1,) else y.astype(np.int64)
