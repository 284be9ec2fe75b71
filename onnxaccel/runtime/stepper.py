"""Runs a training step again and again, with everything that outlives a step kept on the device.

Two sets of buffers are swapped through IOBinding: one step reads the parameters and the optimizer's state
from the first and writes them to the second, the next step goes the other way. Only the batch and the loss
cross the host. Where the step is split in two graphs, each swaps what it writes.

On a GPU the batch too has buffers that stay where they are (see `onnxaccel.runtime.upload`), and on CUDA a
step is captured as a CUDA graph, one for each set of buffers that it runs with, and is then launched as one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxaccel.errors import ModelError, TrainingError
from onnxaccel.graph.losses import TARGET
from onnxaccel.graph.model import Model, SessionSettings
from onnxaccel.graph.training import CORRECT, LEARNING_RATE, LOSS, TrainingStep
from onnxaccel.graph.update import FIRST
from onnxaccel.runtime.distributed import PeerLost
from onnxaccel.runtime.providers import Provider
from onnxaccel.runtime.session import Session, short
from onnxaccel.runtime.upload import Batch, Place, Placed, Uploads

Arrays = dict[str, npt.NDArray[Any]]

SETTINGS = SessionSettings(graph_optimization="extended")
"""How training steps run. Above "extended", onnxruntime blocks channels for its convolutions; it cannot do so
for weights that change, and only reorders data around poolings."""


GRAPHS = 16
"""CUDA graphs per training; with more sets of buffers (batches of many shapes) steps run as they come."""

_DRAWN = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators that a CUDA graph would let give the same numbers in each step."""

_log = logging.getLogger(__name__)


class Stepper:
    """Holds the state of a training run and advances it by one batch at a time.

    Args:
        step: The training step.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves it to onnxruntime.
        uploads: Keep batches in buffers of their own on the device; None: unless it is the CPU.
    """

    def __init__(
        self, step: TrainingStep, provider: Provider, threads: int = 0, uploads: bool | None = None
    ) -> None:
        self.step = step
        graphs = [step.model] if step.update is None else [step.model, step.update]
        self._device, self._device_id = provider.device, provider.device_id
        keeps = self._device != "cpu" if uploads is None else uploads
        self._uploads = Uploads(self._device, self._device_id) if keeps else None
        opened = [_open(graph, provider, threads, keeps) for graph in graphs]
        self._sessions = [session for session, _ in opened]
        self._captures = [captures for _, captures in opened]
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
        self._bindings: dict[tuple[object, ...], _Bound] = {}
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
        self._before = list(self._current)
        if (lr, first) != self._last:
            self._rate.update_inplace(np.asarray(lr, np.float32))
            self._first.update_inplace(np.asarray(first))
            self._last = (lr, first)
        try:
            place = feed.place if isinstance(feed, Placed) else None
            if place is None and self._uploads is not None:
                place = self._uploads.write({**feed, TARGET: target})
            bound = self._bound(0, place)
            if place is None:
                for name, array in {**feed, TARGET: target}.items():
                    if name in self._sessions[0].input_names:
                        bound.binding.bind_cpu_input(name, np.ascontiguousarray(array))
            self._run(0, bound)
            self._after_gradients(first, last)
            if last and len(self._sessions) > 1:
                self._run(1, self._bound(1))
        except PeerLost:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise TrainingError(f"the training step does not run on this batch: {short(error)}") from None
        counted = self._results.get(CORRECT)
        return float(self._results[LOSS].numpy()), float("nan") if counted is None else float(counted.numpy())

    def ahead(
        self, batches: Iterable[Batch], check: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    ) -> Iterable[Batch]:
        """The batches, each uploaded while the one before is trained on; see `Uploads.ahead`."""
        return batches if self._uploads is None else self._uploads.ahead(batches, check)

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

    def _run(self, index: int, bound: _Bound) -> None:
        if bound.captured or self._uploads is None:
            self._sessions[index].raw.run_with_iobinding(bound.binding, bound.options)
        else:
            with self._uploads.lock:
                self._sessions[index].raw.run_with_iobinding(bound.binding, bound.options)
            bound.captured = True
        self._current[index] = 1 - self._current[index]

    def _bound(self, index: int, place: Place | None = None) -> _Bound:
        """Where graph number ``index`` reads and writes now; made once for each set of buffers."""
        key = (index, *self._current, place and place.key)
        if key not in self._bindings:
            session, results = self._sessions[index], self._results
            binding = session.raw.io_binding()
            given = self.buffers() | {LEARNING_RATE: self._rate, FIRST: self._first}
            given |= place.values if place is not None else {}
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
            options = None
            if self._captures[index]:
                number = len(self._bindings) + 1
                options = ort.RunOptions()
                options.add_run_config_entry("gpu_graph_id", str(number if number <= GRAPHS else -1))
            self._bindings[key] = _Bound(binding, options)
        return self._bindings[key]


@dataclass
class _Bound:
    """Buffers that a graph runs with.

    Attributes:
        binding: The buffers.
        options: Which CUDA graph they belong to; None where there are none.
        captured: Whether a run is behind them: the first one captures.
    """

    binding: ort.IOBinding
    options: ort.RunOptions | None
    captured: bool = False


def _open(graph: Model, provider: Provider, threads: int, keeps: bool) -> tuple[Session, bool]:
    """A session, and whether it captures CUDA graphs: not where onnxruntime refuses, or numbers are drawn."""
    if keeps and provider.captures and not any(node.op_type in _DRAWN for node in graph.graph.all_nodes()):
        try:
            return Session(graph, provider, threads, SETTINGS, capture=True), True
        except ModelError as error:  # a node that runs on the CPU, a loop
            _log.warning("the step is not captured as a CUDA graph: %s", error)
    return Session(graph, provider, threads, SETTINGS), False
