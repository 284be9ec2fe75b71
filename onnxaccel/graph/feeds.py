"""Random inputs for a model, and how far two results are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.graph.builder import dims_of
from onnxaccel.graph.model import Model, name_of

Arrays = dict[str, npt.NDArray[Any]]

BATCH = "batch"
"""Name of the dynamic batch dimension."""


def random_feed(
    model: Model,
    batch: int,
    rng: np.random.Generator,
    ranges: Mapping[str, tuple[int, int]],
    scale: float = 1.0,
    example: Arrays | None = None,
    growth: float = 1.0,
) -> Arrays:
    """Random inputs for ``model``: normal for floats, uniform over ``ranges`` (default [0, 2)) for integers.

    Args:
        model: The model to feed.
        batch: Size of the batch: of each first dimension that is dynamic, and of those that are called so.
        rng: The source of randomness.
        ranges: Half-open ranges of integer inputs by name.
        scale: Standard deviation of the floats.
        example: Inputs whose sizes, times ``growth``, other dynamic dimensions get; without it small ones.
        growth: See ``example``.
    """
    feed: Arrays = {}
    sizes: dict[str, int] = {}
    for value in model.inputs:
        known = (example or {}).get(value.name or "")
        dims = list(value.shape) if value.shape is not None else []
        shape = []
        for axis, dim in enumerate(dims):
            if isinstance(dim, int):
                shape.append(dim)
            else:
                symbol = str(dim.value) if dim.value is not None else f"{value.name}.{axis}"
                if axis == 0 or symbol == BATCH:
                    size = batch
                elif known is not None:
                    size = max(1, round(known.shape[axis] * growth))
                else:
                    least = 96 if len(dims) == 4 else 16  # images are halved many times over
                    size = least + 4 * len(sizes)
                shape.append(sizes.setdefault(symbol, size))
        assert value.name is not None and value.dtype is not None
        dtype = value.dtype.numpy()
        if np.issubdtype(dtype, np.bool_):
            feed[value.name] = np.asarray(rng.integers(0, 2, shape), np.bool_)
        elif np.issubdtype(dtype, np.integer):
            low, high = ranges.get(value.name, (0, 2))
            feed[value.name] = np.asarray(rng.integers(low, high, shape), dtype)
        else:
            feed[value.name] = np.asarray(rng.standard_normal(shape) * scale, dtype)
    return feed


def index_ranges(model: Model) -> dict[str, tuple[int, int]]:
    """The range [0, rows) of each integer input that picks rows of a constant table (an embedding)."""
    ranges = {}
    for value in model.inputs:
        rows = []
        for node, position in value.uses():
            table = node.inputs[0]
            if node.op_type == "Gather" and position == 1 and table is not None:
                rows += [n for n in (dims_of(table) or [])[:1] if isinstance(n, int)]
        if rows:
            ranges[name_of(value)] = (0, min(rows))
    return ranges


def relative_error(actual: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> float:
    """``max|actual - expected| / max|expected|``; infinite where shapes or the places of NaN differ."""
    if actual.shape != expected.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(b)
    difference = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
    scale = float(np.max(np.abs(b[finite]), initial=0.0))
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))
