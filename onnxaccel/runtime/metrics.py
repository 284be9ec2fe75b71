"""Metrics over a data set beyond loss and accuracy, computed from the scores of each batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxaccel.errors import ModelError
from onnxaccel.registry import Registry

Array = npt.NDArray[Any]


class Metric(Protocol):
    """Gathers a metric batch by batch; one object for one pass over the data.

    Attributes:
        totals: What adds up, over batches and over processes; None before the first batch.
    """

    totals: Array | None

    def add(self, scores: Array, target: Array) -> None:
        """Take in a batch: class scores [N, C, ...] and labels [N, ...], or predictions and their targets."""

    def value(self) -> float | list[list[int]]:
        """The metric of `totals`."""


metric: Registry[type[Metric]] = Registry("metric")
"""Metrics by name: ``@metric("top5")``."""


@metric("top5")
class TopFive:
    """Share of samples whose class is among the five with the highest scores."""

    totals: Array | None = None

    def add(self, scores: Array, target: Array) -> None:
        """See `Metric.add`."""
        scores, labels = _by_class(scores, target, "top5")
        # counted as hit when fewer than five classes score higher: ties are for the sample
        own = np.take_along_axis(scores, labels[:, None], axis=1)
        hits = ((scores > own).sum(axis=1) < 5).sum()
        self.totals = _added(self.totals, np.array([hits, len(labels)]))

    def value(self) -> float:
        """See `Metric.value`."""
        return _ratio(self.totals)


@metric("mae")
class MeanAbsoluteError:
    """Mean of ``|prediction - target|`` over all elements."""

    totals: Array | None = None

    def add(self, scores: Array, target: Array) -> None:
        """See `Metric.add`."""
        if scores.shape != target.shape:
            raise ModelError("metric mae compares values; these targets are class labels")
        error = np.abs(scores.astype(np.float64) - target).sum()
        self.totals = _added(self.totals, np.array([error, scores.size]))

    def value(self) -> float:
        """See `Metric.value`."""
        return _ratio(self.totals)


@metric("confusion")
class Confusion:
    """How often samples of one class (row) are taken for another (column)."""

    totals: Array | None = None

    def add(self, scores: Array, target: Array) -> None:
        """See `Metric.add`."""
        scores, labels = _by_class(scores, target, "confusion")
        counts = np.zeros((scores.shape[1], scores.shape[1]), np.int64)
        np.add.at(counts, (labels, scores.argmax(axis=1)), 1)
        self.totals = _added(self.totals, counts)

    def value(self) -> list[list[int]]:
        """See `Metric.value`."""
        counts: list[list[int]] = [] if self.totals is None else self.totals.tolist()
        return counts


def made(names: Iterable[str]) -> dict[str, Metric]:
    """New metrics by name; an unknown name raises `ModelError`."""
    found = {}
    for name in names:
        kind = metric.get(name)
        if kind is None:
            raise ModelError(f"unknown metric {name!r}; choose one of {', '.join(metric)}")
        found[name] = kind()
    return found


def _added(totals: Array | None, more: Array) -> Array:
    return more if totals is None else totals + more


def _ratio(totals: Array | None) -> float:
    """The first total divided by the second."""
    return 0.0 if totals is None else float(totals[0] / max(totals[1], 1))


def _by_class(scores: Array, target: Array, name: str) -> tuple[Array, npt.NDArray[np.int64]]:
    """Scores as [N, C] and labels as [N], without the samples whose label is no class (ignored ones)."""
    if target.dtype.kind not in "iu" or scores.ndim < 2:
        raise ModelError(f"metric {name} needs class labels as targets")
    scores = np.moveaxis(scores, 1, -1).reshape(-1, scores.shape[1])
    labels = target.reshape(-1).astype(np.int64)
    counted = (labels >= 0) & (labels < scores.shape[1])
    return scores[counted], labels[counted]
