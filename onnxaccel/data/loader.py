"""Batches in an order that a seed decides, prepared on a background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxaccel.data.augment import Augmentation
from onnxaccel.data.dataset import Array, Dataset, inputs_of
from onnxaccel.data.prepare import Preparation
from onnxaccel.data.targets import Targets

Batch = tuple[dict[str, Array], Array]
"""The model's inputs by name, and the target."""

_AHEAD = 4
"""Batches that are prepared ahead of their use."""


@dataclass(frozen=True)
class Loader:
    """One pass over a data set.

    Attributes:
        dataset: The samples.
        preparation: Turns raw samples into the model's input.
        batch_size: Samples per batch; the last batch may be smaller.
        seed: In training, the seed of the order and of the preparation's random crops; None in evaluation,
            which keeps the data set's order.
        epoch: The number of the pass; each one has its own order, a pure function of seed and epoch.
        targets: Turns targets into what the loss takes; None: they are given as they are.
        shuffle: Whether training takes the samples in a random order.
        window: Instead of one pass: the samples from number ``start`` to ``stop`` of the data set in its own
            order, again and again.
        augmentation: Random changes to images in training.
        share: Which part of each batch this process takes: number and how many there are.
        others: For a model with several inputs, their preparations by the names of the data's arrays.
    """

    dataset: Dataset
    preparation: Preparation
    batch_size: int
    seed: int | None = None
    epoch: int = 0
    targets: Targets | None = None
    shuffle: bool = True
    window: tuple[int, int] | None = None
    augmentation: Augmentation | None = None
    share: tuple[int, int] = (0, 1)
    others: Mapping[str, Preparation] = field(default_factory=dict)

    def __len__(self) -> int:
        start, stop = self.window or (0, len(self.dataset))
        return -(-(stop - start) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        with self.starting_at(0) as rest:
            yield from rest

    def order(self) -> npt.NDArray[np.int64]:
        """The order of the samples in this pass."""
        count = len(self.dataset)
        if self.window is not None:
            return np.arange(*self.window) % count
        if self.seed is None or not self.shuffle:
            return np.arange(count)
        return np.random.Generator(np.random.PCG64([self.seed, self.epoch])).permutation(count)

    @contextmanager
    def starting_at(self, batch: int) -> Generator[Iterator[Batch], None, None]:
        """The batches from number ``batch`` on; leaving the block ends the background thread."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_AHEAD)
        stop = threading.Event()
        thread = threading.Thread(target=self._prepare, args=(batch, ready, stop), daemon=True)
        thread.start()
        try:
            yield _drain(ready)
        finally:
            stop.set()
            while thread.is_alive():  # free the producer where it waits for room
                try:
                    ready.get(timeout=0.05)
                except queue.Empty:
                    continue
            thread.join()

    def _prepare(
        self, first: int, ready: queue.Queue[Batch | BaseException | None], stop: threading.Event
    ) -> None:
        try:
            order, (number, shares) = self.order(), self.share
            for start in range(first * self.batch_size, len(order), self.batch_size):
                if stop.is_set():
                    return
                indices = order[start : start + self.batch_size][number::shares]
                count = len(indices)
                if not count:  # fewer samples than shares: this one is empty, and shaped like the others
                    indices = order[start : start + 1]
                x, y = self.dataset.take(indices, self.preparation.size)
                if self.augmentation is not None and self.seed is not None:
                    planar = self.preparation.is_planar(x)
                    images = x.transpose(0, 2, 3, 1) if planar else x
                    images = self.augmentation(images, indices, self.seed, self.epoch, self.dataset.source)
                    x = images.transpose(0, 3, 1, 2) if planar else images
                if self.targets is not None:
                    y = self.targets(y, indices, self.dataset.source)
                draw = None if self.seed is None else [self.seed, self.epoch, start + number]
                rng = None if draw is None else np.random.default_rng(draw)
                feed = (
                    self._inputs(indices)
                    if self.others
                    else {self.preparation.name: self.preparation(x, self.dataset.source, rng)}
                )
                feed = {name: array[:count] for name, array in feed.items()}
                y = y[:count]
                if self.targets is not None and self.targets.input is not None:
                    feed[self.targets.input] = y
                ready.put((feed, y))
            ready.put(None)
        except BaseException as error:  # handed to the consumer, who raises it
            ready.put(error)

    def _inputs(self, indices: npt.NDArray[np.int64]) -> dict[str, Array]:
        """The model's inputs, from arrays of their own."""
        source, arrays = self.dataset.source, inputs_of(self.dataset, indices)
        return {p.name: p(arrays[name], f"{source}: {name}") for name, p in self.others.items()}


def _drain(ready: queue.Queue[Batch | BaseException | None]) -> Iterator[Batch]:
    while (entry := ready.get()) is not None:
        if isinstance(entry, BaseException):
            raise entry
        yield entry
