"""Batches on a device, in buffers that stay where they are, and written while the step before still runs.

A CUDA graph replays what was done with certain addresses, so that batches of one shape must lie at the same
ones. There are two places for each shape: while a step reads from one, a thread writes the next batch to the
other, through page-locked memory and on a stream of its own where torch is there to give them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxaccel.graph.losses import TARGET

Arrays = Mapping[str, npt.NDArray[Any]]
Batch = tuple[Arrays, npt.NDArray[Any]]

PLACES = 2
"""Places for batches of one shape."""


class _Buffer(Protocol):
    """A tensor on the device that arrays are written to."""

    @property
    def value(self) -> ort.OrtValue:
        """The tensor."""

    def write(self, array: npt.NDArray[Any]) -> None:
        """Write an array of its shape and type; it is there when this returns."""


@dataclass(frozen=True)
class Place:
    """Where one batch lies.

    Attributes:
        key: Which place it is: equal keys, equal addresses.
        buffers: The tensors, by the names of the graph's inputs.
    """

    key: tuple[object, ...]
    buffers: dict[str, _Buffer]

    @property
    def values(self) -> dict[str, ort.OrtValue]:
        """The tensors as onnxruntime takes them."""
        return {name: buffer.value for name, buffer in self.buffers.items()}


class Placed(dict[str, npt.NDArray[Any]]):
    """The inputs of a batch that also lies on the device."""

    def __init__(self, feed: Arrays, place: Place) -> None:
        super().__init__(feed)
        self.place = place


class Uploads:
    """Writes batches to a device.

    Args:
        device: "cpu" or "cuda".
        device_id: The number of the device.

    Attributes:
        lock: Held while a batch is written. Whoever captures a CUDA graph holds it too: meanwhile no other
            thread may call CUDA.
    """

    def __init__(self, device: str, device_id: int) -> None:
        self.lock = threading.Lock()
        self._device, self._device_id = device, device_id
        self._places: dict[tuple[object, ...], Place] = {}
        self._next = 0  # in step with what a training swaps, from one epoch to the next

    def write(self, arrays: Arrays, turn: int = 0) -> Place:
        """Write a batch to place number ``turn`` of its shape."""
        shapes = tuple((name, array.shape, array.dtype.str) for name, array in arrays.items())
        key = (turn, shapes)
        with self.lock:
            if key not in self._places:
                self._places[key] = Place(key, {name: self._buffer(a) for name, a in arrays.items()})
            for name, array in arrays.items():
                self._places[key].buffers[name].write(array)
        return self._places[key]

    def ahead(
        self, batches: Iterable[Batch], check: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    ) -> Iterator[Batch]:
        """The batches, each written while the one before is used.

        Args:
            batches: Inputs and target of each.
            check: Brings a target into the type that the graph takes.
        """

        def placed(feed: Arrays, target: npt.NDArray[Any], turn: int) -> Batch:
            if not len(target):  # this process's share of a last batch of few samples
                return feed, target
            return Placed(feed, self.write({**feed, TARGET: check(target)}, turn)), target

        with ThreadPoolExecutor(1) as thread:
            coming: Future[Batch] | None = None
            for feed, target in batches:
                following = thread.submit(placed, feed, target, self._next)
                self._next = (self._next + 1) % PLACES
                if coming is not None:
                    yield coming.result()
                coming = following
            if coming is not None:
                yield coming.result()

    def _buffer(self, like: npt.NDArray[Any]) -> _Buffer:
        if self._device == "cuda" and like.dtype != np.bool_ and _torch_has_cuda():
            return _Pinned(like, self._device_id)
        return _Copied(like, self._device, self._device_id)


class _Copied:
    """A tensor that onnxruntime itself writes."""

    def __init__(self, like: npt.NDArray[Any], device: str, device_id: int) -> None:
        self.value = ort.OrtValue.ortvalue_from_numpy(np.array(like, order="C"), device, device_id)

    def write(self, array: npt.NDArray[Any]) -> None:
        """See `_Buffer.write`."""
        self.value.update_inplace(np.ascontiguousarray(array))


class _Pinned:
    """A tensor of torch's, written through page-locked memory on a stream of its own."""

    def __init__(self, like: npt.NDArray[Any], device_id: int) -> None:
        import torch

        dtype = torch.from_numpy(np.empty(0, like.dtype)).dtype
        self._staged = torch.empty(like.shape, dtype=dtype, pin_memory=True)
        self._tensor = torch.empty(like.shape, dtype=dtype, device=torch.device("cuda", device_id))
        self._stream = torch.cuda.Stream(device_id)  # type: ignore[no-untyped-call]
        self.value = ort.OrtValue.from_dlpack(self._tensor)

    def write(self, array: npt.NDArray[Any]) -> None:
        """See `_Buffer.write`."""
        import torch

        self._staged.numpy()[...] = array
        with torch.cuda.stream(self._stream):
            self._tensor.copy_(self._staged, non_blocking=True)
        self._stream.synchronize()


def _torch_has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
