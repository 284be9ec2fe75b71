"""From raw targets to what a loss takes; every misfit is said in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxaccel.data.dataset import Array
from onnxaccel.errors import DataError
from onnxaccel.graph.builder import Dim, dims_of
from onnxaccel.graph.losses import LABELS, NOTHING, SEQUENCES, Loss, as_loss
from onnxaccel.graph.model import Model, name_of


@dataclass(frozen=True)
class Targets:
    """What a loss takes as its target.

    Attributes:
        loss: The loss.
        classes: The number that class labels stay below, where it is known.
        dims: Dimensions of the target, the batch first.
        dtype: Its type.
        input: The model's input that takes it, where the model computes the loss itself.
    """

    loss: Loss
    classes: int | None
    dims: list[Dim]
    dtype: np.dtype[np.generic]
    input: str | None = None

    @classmethod
    def of(cls, model: Model, loss: str | Loss) -> Targets:
        """The targets that ``loss`` takes at a model's output."""
        loss = as_loss(loss)
        prediction = loss.prediction(model)
        target, own = loss.target(prediction), None
        if loss.kind == NOTHING and len(model.inputs) == 2:
            target = model.inputs[1]
            own = name_of(target)
        if target is None or target.dtype is None:
            return cls(loss, None, [], np.dtype(np.float32))
        return cls(loss, loss.classes(prediction), dims_of(target) or [], target.dtype.numpy(), own)

    def __call__(self, y: Array, indices: npt.NDArray[np.int64], source: str) -> Array:
        """Prepare the targets of a batch.

        Args:
            y: Targets, int64 or float32, [N, ...].
            indices: Numbers of the samples, for messages.
            source: Where they come from, for messages.

        Returns:
            int64 class labels, [N] or one per position; or float32 targets in the output's shape; or, for a
            loss without a target, what the model's second input takes.

        Raises:
            DataError: They are no such targets.
        """
        if self.loss.kind in (LABELS, SEQUENCES):
            return self._labels(y, indices, source)
        if self.loss.kind == NOTHING and self.input is None:
            return y
        return self._shaped(y, source).astype(self.dtype, copy=False)

    def _shaped(self, y: Array, source: str) -> Array:
        inner = self.dims[1:]
        fixed = [d for d in inner if isinstance(d, int)]
        if len(fixed) < len(inner):
            return y
        if math.prod(fixed) != math.prod(y.shape[1:]):
            raise DataError(
                f"{source}: a target has shape {list(y.shape[1:])}, the model's output {inner}, "
                f"and loss {self.loss.called} compares them element by element"
            )
        return y.reshape(len(y), *fixed)

    def _labels(self, y: Array, indices: npt.NDArray[np.int64], source: str) -> Array:
        inner = self.dims[1:]
        whole = np.array_equal(y, np.round(y))
        if self.loss.kind == SEQUENCES:
            fits = y.ndim == 2
        elif all(isinstance(d, int) for d in inner):
            fits = math.prod(d for d in inner if isinstance(d, int)) == math.prod(y.shape[1:])
            y = y.reshape(len(y), *[d for d in inner if isinstance(d, int)]) if fits else y
        else:
            y = y.reshape(len(y), *[d for d in y.shape[1:] if d != 1]) if y.ndim > len(self.dims) else y
            fits = y.ndim == len(self.dims)
        if not fits or not whole:
            wanted = f"{inner} whole numbers" if inner else "one whole number"
            raise DataError(
                f"{source}: targets of type {y.dtype} and shape {list(y.shape[1:])} are no class labels; "
                f"loss {self.loss.called} takes {wanted} per sample"
            )
        labels = y.astype(np.int64)
        wrong = np.argwhere(self.loss.misfits(labels, self.classes))
        if wrong.size:
            first = tuple(wrong[0])
            raise DataError(
                f"{source}: sample {indices[first[0]]} has label {labels[first]}, "
                f"{self.loss.takes(self.classes)}"
            )
        return labels
