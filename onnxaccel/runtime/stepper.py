"""Runs a training step again and again, with everything that outlives a step kept on the device.

Two sets of buffers are swapped through IOBinding: one step reads the parameters and the optimizer's state
from the first and writes them to the second, the next step goes the other way. Only the batch and the loss
cross the host. Where the step is split in two graphs, each swaps what it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxaccel.errors import ModelError, TrainingError
from onnxaccel.graph.losses import TARGET
from onnxaccel.graph.model import SessionSettings
from onnxaccel.graph.training import CORRECT, LEARNING_RATE, LOSS, TrainingStep
from onnxaccel.graph.update import FIRST
from onnxaccel.runtime.distributed import PeerLost
from onnxaccel.runtime.providers import Provider
from onnxaccel.runtime.session import Session, short

Arrays = dict[str, npt.NDArray[Any]]

SETTINGS = SessionSettings(graph_optimization="extended")
"""How training steps run. Above "extended", onnxruntime blocks channels for its convolutions; it cannot do so
for weights that change, and only reorders data around poolings."""


class Stepper:
    """Holds the state of a training run and advances it by one batch at a time.

    Args:
        step: The training step.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves it to onnxruntime.
    """

    def __init__(self, step: TrainingStep, provider: Provider, threads: int = 0) -> None:
        self.step = step
        graphs = [step.model] if step.update is None else [step.model, step.update]
        self._sessions = [Session(graph, provider, threads, SETTINGS) for graph in graphs]
        self._device, self._device_id = provider.device, provider.device_id
        self._buffers = [self._allocate(step.initial), self._allocate(step.initial)]
        self._rate = self._value(np.zeros((), np.float32))
        self._first = self._value(np.ones((), np.bool_))
        self._results = {
            name: self._value(np.zeros((), np.float32))
            for name in (LOSS, CORRECT)
            if name in self._sessions[0].output_names
        }
        self._writer = {
            name: index
            for index, session in enumerate(self._sessions)
            for name, following in step.carried.items()
            if following in session.output_names
        }
        self._current = [
            0 for _ in self._sessions
        ]  # for each graph, the buffers that hold what it wrote last
        self._before = list(self._current)
        self._bindings: dict[tuple[int, ...], ort.IOBinding] = {}
        self._last: tuple[float, bool] | None = None

    def run(
        self,
        feed: Mapping[str, npt.NDArray[Any]],
        target: npt.NDArray[Any],
        lr: float,
        first: bool = True,
        last: bool = True,
    ) -> tuple[float, float]:
        """Advance by one batch.

        Args:
            feed: The model's inputs by name.
            target: The target.
            lr: The learning rate.
            first: Whether this is the first batch of an update, where gradients are accumulated.
            last: Whether it is the last one, after which the parameters are updated.

        Returns:
            The batch's mean loss and the number of right predictions (NaN unless the step counts them).

        Raises:
            TrainingError: The batch does not fit the model.
        """
        binding = self._binding(0)
        self._before = list(self._current)
        if (lr, first) != self._last:
            self._rate.update_inplace(np.asarray(lr, np.float32))
            self._first.update_inplace(np.asarray(first))
            self._last = (lr, first)
        try:
            for name, array in feed.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            if TARGET in self._sessions[0].input_names:
                binding.bind_cpu_input(TARGET, np.ascontiguousarray(target))
            self._run(0)
            self._after_gradients(first, last)
            if last and len(self._sessions) > 1:
                self._run(1)
        except PeerLost:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise TrainingError(f"the training step does not run on this batch: {short(error)}") from None
        counted = self._results.get(CORRECT)
        return float(self._results[LOSS].numpy()), float("nan") if counted is None else float(counted.numpy())

    def counted(self, samples: int) -> int:
        """How many samples the last step saw, of which this process gave ``samples``."""
        return samples

    def buffers(self) -> dict[str, ort.OrtValue]:
        """Everything that is carried as it lies on the device now; valid until the next step."""
        return {name: self._buffers[self._current[writer]][name] for name, writer in self._writer.items()}

    def previous(self) -> Arrays:
        """What was carried before the last step, and that step's settings, by the names of the inputs."""
        before = {n: self._buffers[self._before[writer]][n].numpy() for n, writer in self._writer.items()}
        return before | {LEARNING_RATE: self._rate.numpy(), FIRST: self._first.numpy()}

    def state(self) -> Arrays:
        """A copy of everything that is carried, by name."""
        return {name: value.numpy().copy() for name, value in self.buffers().items()}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Set everything that is carried.

        Raises:
            ModelError: A tensor is missing or too many, or has another shape or type.
        """
        for name in state:
            if name not in self.step.initial:
                raise ModelError(f"the state also has {name!r}, which this training does not change")
        buffers = self.buffers()
        for name, start in self.step.initial.items():
            array = state.get(name)
            if array is None:
                raise ModelError(f"the state lacks {name!r}")
            if array.shape != start.shape or array.dtype != start.dtype:
                raise ModelError(
                    f"{name!r} is {array.dtype}{list(array.shape)} in the state, "
                    f"{start.dtype}{list(start.shape)} in the model"
                )
            buffers[name].update_inplace(np.array(array, order="C"))

    def _value(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), self._device, self._device_id)

    def _allocate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, ort.OrtValue]:
        return {name: self._value(array) for name, array in arrays.items()}

    def _after_gradients(self, first: bool, last: bool) -> None:
        """What is done with the gradients of a batch before the update; here nothing."""

    def _run(self, index: int) -> None:
        self._sessions[index].raw.run_with_iobinding(self._binding(index))
        self._current[index] = 1 - self._current[index]

    def _binding(self, index: int) -> ort.IOBinding:
        """Where graph number ``index`` reads and writes now; made once for each state of the buffers."""
        key = (index, *self._current)
        if key not in self._bindings:
            session, results = self._sessions[index], self._results
            binding = self._bindings[key] = session.raw.io_binding()
            given = self.buffers() | {LEARNING_RATE: self._rate, FIRST: self._first}
            for name in session.input_names:
                if name in given:
                    binding.bind_ortvalue_input(name, given[name])
            for name, following in self.step.carried.items():
                if self._writer[name] == index:
                    free = self._buffers[1 - self._current[index]]
                    binding.bind_ortvalue_output(following, free[name])
            for name in session.output_names:
                if name in results:
                    binding.bind_ortvalue_output(name, results[name])
        return self._bindings[key]
