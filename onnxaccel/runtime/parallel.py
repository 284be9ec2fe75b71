"""A stepper for several processes: each takes its part of a batch, and all end with the same weights.

The sums of gradients of a process, and what they count, lie in one flat tensor in which onnxruntime writes
them; behind them lie the next running statistics. The processes sum it all at once, the statistics weighted
by the samples that they come from. So a step equals that of one process with the whole batch; but for
BatchNormalization, which each process computes on its own part, as torch's DistributedDataParallel does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxaccel.graph.training import TrainingStep
from onnxaccel.graph.update import GRADIENT, WEIGHT
from onnxaccel.runtime.distributed import Group
from onnxaccel.runtime.providers import Provider
from onnxaccel.runtime.stepper import Stepper

_ALIGNMENT = 16
"""Elements that each tensor of the flat one is aligned to."""


class ParallelStepper(Stepper):
    """A `Stepper` that shares each batch with the other processes of a group.

    Args:
        step: The training step, split.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves it to onnxruntime.
        group: The processes.
    """

    def __init__(self, step: TrainingStep, provider: Provider, threads: int, group: Group) -> None:
        self._group = group
        self._flat: list[Any] = []  # for each set of buffers
        self._samples = self._given = 0
        self._sums = 0  # elements before the statistics
        super().__init__(step, provider, threads)

    def run(
        self,
        feed: Mapping[str, npt.NDArray[Any]],
        target: npt.NDArray[Any],
        lr: float,
        first: bool = True,
        last: bool = True,
    ) -> tuple[float, float]:
        """Advance by one batch, of which this process gets its part, which may be empty.

        Returns:
            The whole batch's mean loss and number of right predictions, the same on all processes.

        Raises:
            TrainingError: The batch does not fit the model.
            PeerLost: Another process is gone.
        """
        self._given = len(next(iter(feed.values())))
        if not self._given:  # its gradients will not count, but counters go on
            feed = {name: np.zeros((1, *array.shape[1:]), array.dtype) for name, array in feed.items()}
            target = np.zeros((1, *target.shape[1:]), target.dtype)
        self._samples = int(self._group.sums(self._given)[0])
        loss, right = super().run(feed, target, lr, first, last)
        if not self._given:
            loss, right = 0.0, right * 0.0
        loss, right = self._group.sums(loss * self._given, right)
        return loss / self._samples, right

    def counted(self, samples: int) -> int:
        """How many samples the last step saw in all processes, of which this one gave ``samples``."""
        return self._samples

    def _after_gradients(self, first: bool, last: bool) -> None:
        current = self._current[0]
        flat = self._flat[current]
        if not self._given:
            if first:
                flat[: self._sums].zero_()
            else:
                flat[: self._sums].copy_(self._flat[1 - current][: self._sums])
        if last:
            flat[self._sums :].mul_(self._given / self._samples)
            self._group.sum(flat)

    def _allocate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, ort.OrtValue]:
        """Buffers for everything carried; those of what the first graph writes lie in one flat tensor."""
        import torch

        written = set(self.step.model.output_names())
        ours = [name for name in arrays if self.step.carried[name] in written]
        sums = [name for name in ours if name == WEIGHT or name.endswith(GRADIENT)]
        statistics = [n for n in ours if n not in sums and arrays[n].ndim and arrays[n].dtype == np.float32]
        starts, end = {}, 0
        for name in [*sums, *statistics]:
            starts[name] = end
            end += -(-math.prod(arrays[name].shape) // _ALIGNMENT) * _ALIGNMENT
        self._sums = min([starts[name] for name in statistics], default=end)
        place = torch.device(self._device, self._device_id) if self._device == "cuda" else self._device
        flat = torch.zeros(end, dtype=torch.float32, device=place)
        self._flat.append(flat)
        buffers = super()._allocate({n: array for n, array in arrays.items() if n not in starts})
        for name, start in starts.items():
            view = flat[start : start + math.prod(arrays[name].shape)].view(arrays[name].shape)
            view.copy_(torch.from_numpy(np.array(arrays[name])))
            buffers[name] = ort.OrtValue.from_dlpack(view)
        return buffers
