"""A model and what trains it: one batch at a time, evaluated and put together again at any time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.data import Dataset, batches
from onnxaccel.errors import CheckpointError, ModelError, TrainingError
from onnxaccel.graph.losses import TARGET, Loss
from onnxaccel.graph.model import Model
from onnxaccel.graph.optimizers import Optimizer
from onnxaccel.graph.recipe import Recipe
from onnxaccel.graph.training import evaluation_step
from onnxaccel.graph.training_form import running_factor
from onnxaccel.graph.update import AVERAGE
from onnxaccel.runtime.anomaly import first_wrong, unsound
from onnxaccel.runtime.batch import checked
from onnxaccel.runtime.checkpoint import Checkpoints, Progress
from onnxaccel.runtime.distributed import Group
from onnxaccel.runtime.engines import Engine
from onnxaccel.runtime.evaluator import Evaluation, Evaluator
from onnxaccel.runtime.interrupt import Interruption
from onnxaccel.runtime.providers import Provider
from onnxaccel.runtime.upload import Batch

State = dict[str, npt.NDArray[Any]]


@dataclass
class Learner:
    """What a training holds.

    Attributes:
        model: The model in inference form, with the weights it started from.
        engine: What advances it.
        loss: The loss.
        optimizer: The optimizer, for its learning rate.
        recipe: How many batches an update has.
        provider: Where it runs.
        threads: Threads within an operator; 0 leaves it to onnxruntime.
        group: The processes that share each batch.
        seed: Seed of the data's order.
        detect_anomaly: Look through all parameters after each step.
        progress: Where the training stands.
        best: What `kept` names, after the best epoch so far.
        pending: Batches since the last update.
    """

    model: Model
    engine: Engine
    loss: Loss
    optimizer: Optimizer
    recipe: Recipe
    provider: Provider
    threads: int
    group: Group
    seed: int
    detect_anomaly: bool
    progress: Progress = field(default_factory=Progress)
    best: State | None = None
    pending: int = 0
    _evaluators: dict[tuple[str, ...], Evaluator] = field(default_factory=dict)

    def ahead(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The batches, each uploaded while the one before is trained on, where the device is not the CPU."""
        return self.engine.ahead(batches, lambda y: checked(y, self.loss, self.engine.step.classes))

    def advance(
        self,
        feed: Mapping[str, npt.NDArray[Any]],
        target: npt.NDArray[Any],
        lr: float | None = None,
        last: bool = False,
    ) -> tuple[float, float]:
        """Train on one batch; ``last`` ends an update however many batches it has.

        Returns:
            The batch's mean loss before the update, and the number of right predictions.

        Raises:
            TrainingError: The batch does not fit the model, or the loss is no longer finite.
        """
        step = self.engine.step
        target = checked(target, self.loss, step.classes)
        first = not self.pending
        self.pending = 0 if last else (self.pending + 1) % self.recipe.accumulate
        rate = self.optimizer.lr if lr is None else lr
        value, right = self.engine.run(feed, target, rate, first, last=not self.pending)
        wrong = None if np.isfinite(value) else f"the loss became {value}"
        if wrong is None and self.detect_anomaly:
            wrong = unsound(self.engine.state())
        if wrong is not None:
            inputs = {**feed, TARGET: target, **self.engine.previous()}
            culprit = first_wrong(step.model, inputs, self.provider) or "not reproducible"
            raise TrainingError(
                f"{wrong} at step {self.progress.steps + 1}; lower the learning rate, or check the data for "
                f"NaN and unscaled values. First not finite: {culprit}"
            )
        return value, right

    def evaluate(
        self, data: Dataset, batch_size: int, metrics: Sequence[str], interruption: Interruption
    ) -> Evaluation:
        """Loss, accuracy and other metrics of the weights as they are now; the processes share the data."""
        key = tuple(metrics)
        if key not in self._evaluators:
            graph = evaluation_step(self.model, self.loss, self._fed(), scores=bool(metrics))
            self._evaluators[key] = Evaluator(graph, self.provider, self.threads, metrics)
        loader = batches(data, self.model, batch_size, loss=self.loss, share=self.group.share)
        buffers = self.engine.buffers()
        averages = {name: buffers.get(name + AVERAGE, buffers[name]) for name in self._fed()}
        return self._evaluators[key].run(interruption.between(loader), averages, self.group)

    def trained(self) -> Model:
        """The model in inference form, with weights (or their averages) and statistics as they are now."""
        trained, state = self.model.copy(), self.engine.state()
        trained.set_weights({name: state.get(name + AVERAGE, state[name]) for name in self._fed()})
        factors = trained.metadata.running_factors
        factors |= {name: float(state[key]) for name in factors if (key := running_factor(name)) in state}
        return trained

    def keep_best(self) -> None:
        """Note parameters, running statistics and averages as those of the best epoch."""
        state = self.engine.state()
        self.best = {name: state[name] for name in self._kept()}

    def go_back(self) -> None:
        """Take the best epoch's parameters, running statistics and averages, where there is one."""
        if self.best is not None:
            self.engine.load(self.engine.state() | self.best)

    def resume(self, store: Checkpoints | None) -> None:
        """Take over the newest checkpoint, which the process that has the store reads for all.

        Raises:
            CheckpointError: It is another training's.
        """
        found = None
        if store is not None:
            state, progress = store.latest()
            progress.must_fit(self.progress.settings, store.folder)
            found = state, progress, store.best()
        state, self.progress, best = self.group.from_first(found)
        self.pending = self.progress.batch % self.recipe.accumulate
        try:
            self.engine.load(state)
        except ModelError as error:
            raise CheckpointError(f"the checkpoint is of another model: {error}") from None
        self.best = {name: best[name] for name in self._kept()} if best is not None else None

    def _fed(self) -> list[str]:
        """What is carried and also an initializer of the model: parameters and running statistics."""
        return [name for name in self.engine.step.carried if name in self.model.graph.initializers]

    def _kept(self) -> list[str]:
        """What of the best epoch is kept: parameters, running statistics, averages."""
        return self._fed() + [name for name in self.engine.step.carried if name.endswith(AVERAGE)]
