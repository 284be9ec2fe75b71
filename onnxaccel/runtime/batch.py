"""A batch as users give it, brought into the form that a training step takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.errors import TrainingError
from onnxaccel.graph.losses import LABELS, SEQUENCES, VALUES, Loss

Array = npt.NDArray[Any]

Inputs = Array | Sequence[Array] | Mapping[str, Array]
"""A batch of inputs: one array, one per input in order, or by name."""


def by_name(x: Inputs, names: Sequence[str]) -> dict[str, Array]:
    """The inputs by the model's ``names`` for them; `TrainingError` where there are not as many."""
    if isinstance(x, Mapping):
        return dict(x)
    arrays = [x] if isinstance(x, np.ndarray) else list(x)
    if len(arrays) != len(names):
        raise TrainingError(
            f"the model has {len(names)} inputs ({', '.join(names)}), the batch {len(arrays)}"
        )
    return dict(zip(names, arrays, strict=True))


def checked(target: Array, loss: Loss, classes: int | None) -> Array:
    """The target in the type that the loss takes.

    Raises:
        TrainingError: A label is not below the number of classes: ONNX would take it for no class at all.
    """
    if loss.kind == VALUES and target.dtype == np.float64:
        return target.astype(np.float32)
    if loss.kind not in (LABELS, SEQUENCES):
        return target
    labels = target.astype(np.int64, copy=False)
    wrong = labels[loss.misfits(labels, classes)]
    if wrong.size:
        raise TrainingError(f"label {wrong[0]} is out of range: {loss.takes(classes)}")
    return labels
