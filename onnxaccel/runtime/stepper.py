"""Runs a training step again and again, with everything that outlives a step kept on the device.

Two sets of buffers are swapped through IOBinding: one step reads the parameters and the optimizer's state
from the first and writes them to the second, the next step goes the other way. Only the batch and the loss
cross the host.
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
        self._session = Session(step.model, provider, threads, SETTINGS)
        self._device = provider.device
        self._buffers = [self._allocate(step.initial), self._allocate(step.initial)]
        self._rate = self._value(np.zeros((), np.float32))
        self._results = {
            name: self._value(np.zeros((), np.float32))
            for name in (LOSS, CORRECT)
            if name in self._session.output_names
        }
        self._bindings = [self._bind(0, 1), self._bind(1, 0)]
        self._current = 0
        self._last_rate: float | None = None

    def run(
        self, feed: Mapping[str, npt.NDArray[Any]], target: npt.NDArray[Any], lr: float
    ) -> tuple[float, float]:
        """Advance by one batch.

        Args:
            feed: The model's inputs by name.
            target: The target.
            lr: The learning rate.

        Returns:
            The batch's mean loss and the number of right predictions (NaN unless the step counts them).

        Raises:
            TrainingError: The batch does not fit the model.
        """
        binding = self._bindings[self._current]
        if lr != self._last_rate:
            self._rate.update_inplace(np.asarray(lr, np.float32))
            self._last_rate = lr
        try:
            for name, array in feed.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            if TARGET in self._session.input_names:
                binding.bind_cpu_input(TARGET, np.ascontiguousarray(target))
            self._session.raw.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise TrainingError(f"the training step does not run on this batch: {short(error)}") from None
        self._current = 1 - self._current
        counted = self._results.get(CORRECT)
        return float(self._results[LOSS].numpy()), float("nan") if counted is None else float(counted.numpy())

    def buffers(self) -> dict[str, ort.OrtValue]:
        """Everything that is carried as it lies on the device now; valid until the next step."""
        return self._buffers[self._current]

    def previous(self) -> Arrays:
        """What was carried before the last step, and the rate of that step, by the names of the inputs."""
        before = {name: value.numpy() for name, value in self._buffers[1 - self._current].items()}
        return before | {LEARNING_RATE: self._rate.numpy()}

    def state(self) -> Arrays:
        """A copy of everything that is carried, by name."""
        return {name: value.numpy().copy() for name, value in self._buffers[self._current].items()}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Set everything that is carried.

        Raises:
            ModelError: A tensor is missing or too many, or has another shape or type.
        """
        for name in state:
            if name not in self.step.initial:
                raise ModelError(f"the state also has {name!r}, which this training does not change")
        for name, start in self.step.initial.items():
            array = state.get(name)
            if array is None:
                raise ModelError(f"the state lacks {name!r}")
            if array.shape != start.shape or array.dtype != start.dtype:
                raise ModelError(
                    f"{name!r} is {array.dtype}{list(array.shape)} in the state, "
                    f"{start.dtype}{list(start.shape)} in the model"
                )
            self._buffers[self._current][name].update_inplace(np.array(array, order="C"))

    def _value(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), self._device, 0)

    def _allocate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, ort.OrtValue]:
        return {name: self._value(array) for name, array in arrays.items()}

    def _bind(self, read: int, write: int) -> ort.IOBinding:
        binding = self._session.raw.io_binding()
        for name, following in self.step.carried.items():
            binding.bind_ortvalue_input(name, self._buffers[read][name])
            binding.bind_ortvalue_output(following, self._buffers[write][name])
        binding.bind_ortvalue_input(LEARNING_RATE, self._rate)
        for name, value in self._results.items():
            binding.bind_ortvalue_output(name, value)
        return binding
