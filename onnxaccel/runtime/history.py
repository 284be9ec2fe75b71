"""What a training reports: ticks, epochs, the history, and which epoch was the best one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxaccel.errors import TrainingError


@dataclass(frozen=True)
class Tick:
    """Progress within an epoch, for a display.

    Attributes:
        epoch: The epoch, from 0.
        batch: Its batches done.
        batches: Its batches in all.
        loss: Mean training loss of the epoch so far.
        step: Steps since the start.
        lr: The learning rate of the step.
        samples_per_second: Throughput of the epoch so far, reading the data included.
    """

    epoch: int
    batch: int
    batches: int
    loss: float
    step: int
    lr: float
    samples_per_second: float


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        loss: Mean training loss per sample.
        accuracy: Share of right predictions while training, or None where there are no classes.
        val_loss: Mean loss over the validation set, or None without one.
        val_accuracy: Accuracy over the validation set, or None.
        seconds: Wall time of the epoch, validation left out.
        metrics: The other metrics asked for, over the validation set.
    """

    loss: float
    accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass
class History:
    """What a training gave.

    Attributes:
        epochs: One entry per epoch.
        steps: Steps taken since the start.
        samples_per_second: Throughput of training, reading the data included.
        provider: The execution provider.
        engine: The training engine.
    """

    epochs: list[Epoch] = field(default_factory=list)
    steps: int = 0
    samples_per_second: float = 0.0
    provider: str = "cpu"
    engine: str = "graph"


@dataclass(frozen=True)
class Monitor:
    """Which epoch counts as the best one, and when to stop for want of a better.

    Attributes:
        quantity: "val_loss", "val_accuracy", "loss", "accuracy" or the name of a metric; losses and errors
            should fall, all else should rise. None: "val_loss" with validation data, else "loss".
        patience: Stop after so many epochs without a better one; None: train for all epochs.
        min_delta: By how much a result must be better than the best so far.
    """

    quantity: str | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def best(self, epochs: Sequence[Epoch]) -> int | None:
        """The number of the best epoch, from 0; None without any."""
        found, record = None, -math.inf
        for number, epoch in enumerate(epochs):
            score = self._score(epoch)
            if score > record + self.min_delta:
                found, record = number, score
        return found

    def is_over(self, epochs: Sequence[Epoch]) -> bool:
        """Whether patience has run out."""
        best = self.best(epochs)
        return self.patience is not None and best is not None and len(epochs) - 1 - best >= self.patience

    def _score(self, epoch: Epoch) -> float:
        """The epoch's result, negative where it should fall."""
        quantity = self.quantity or ("loss" if epoch.val_loss is None else "val_loss")
        known = {"loss", "accuracy", "val_loss", "val_accuracy"}
        value = getattr(epoch, quantity) if quantity in known else epoch.metrics.get(quantity)
        if value is None:
            has = [n for n in sorted(known) if getattr(epoch, n) is not None] + sorted(epoch.metrics)
            raise TrainingError(f"nothing measures {quantity!r} to choose by; there is {', '.join(has)}")
        return -float(value) if "loss" in quantity or quantity == "mae" else float(value)
