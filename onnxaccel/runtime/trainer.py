"""The trainer: one readable loop over batches, around a step that is one graph."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxaccel.data import Dataset, Source, as_dataset, batches
from onnxaccel.errors import CheckpointError, ModelError, ProviderError, TrainingError
from onnxaccel.graph.autodiff import as_model
from onnxaccel.graph.losses import CLASS_LABELS
from onnxaccel.graph.model import Model
from onnxaccel.graph.normalize import normalize
from onnxaccel.graph.optimizers import AdamW, Optimizer
from onnxaccel.graph.training import CORRECT, evaluation_step, training_step
from onnxaccel.runtime import checkpoint
from onnxaccel.runtime.evaluator import Evaluation, Evaluator
from onnxaccel.runtime.providers import Provider, resolve
from onnxaccel.runtime.stepper import Stepper

Inputs = npt.NDArray[Any] | Sequence[npt.NDArray[Any]] | Mapping[str, npt.NDArray[Any]]
"""A batch of inputs: one array, one per input in order, or by name."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        loss: Mean training loss per sample.
        accuracy: Share of right predictions while training, or None where there are no classes.
        val_loss: Mean loss over the validation set, or None without one.
        val_accuracy: Accuracy over the validation set, or None.
        seconds: Wall time of the epoch, validation left out.
    """

    loss: float
    accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    seconds: float


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
class Tick:
    """Progress within an epoch, for a display: 0-based epoch, batches done and in all, running mean loss."""

    epoch: int
    batch: int
    batches: int
    loss: float


class Trainer:
    """Trains a model.

    Args:
        model: A model in inference form, or its path; it is not changed.
        loss: "cross_entropy" (int64 class labels), "mse" or "bce_with_logits".
        optimizer: The optimizer; AdamW with its defaults when None.
        ep: A name of `onnxaccel.runtime.providers.NAMES`, or a resolved provider.
        seed: Seed of the data's order and of Dropout.
        threads: Threads within an operator; 0 leaves it to onnxruntime.
        metrics: Count right predictions while training.

    Raises:
        UnsupportedOperator: An operator between the loss and a parameter has no gradient rule.
        ModelError: The model has nothing to train, or its output does not fit the loss.
        ProviderError: The provider is not usable here.
    """

    def __init__(
        self,
        model: Model | onnx.ModelProto | str | os.PathLike[str],
        loss: str = "cross_entropy",
        optimizer: Optimizer | None = None,
        ep: str | Provider = "auto",
        seed: int = 0,
        threads: int = 0,
        metrics: bool = True,
    ) -> None:
        self.optimizer = optimizer or AdamW()
        self.loss = loss
        self.seed = seed
        self.provider = resolve(ep)
        if not self.provider.trains:
            raise ProviderError(f"{self.provider.name} is for inference; train with --ep cpu or --ep cuda")
        self._threads = threads
        self._model = as_model(model).copy()
        normalize(self._model)
        step = training_step(self._model, loss, self.optimizer, metrics=metrics, seed=seed)
        self._stepper = Stepper(step, self.provider, threads)
        self._step = step
        self._evaluator: Evaluator | None = None
        self._progress = checkpoint.Progress(0, 0, 0, seed, 0, repr(self.optimizer), loss, [], {})

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters that are trained."""
        return list(self._step.parameters)

    def step(self, x: Inputs, y: npt.NDArray[Any], lr: float | None = None) -> float:
        """Train on one batch.

        Args:
            x: The inputs, in the model's own layout and type.
            y: The target: int64 [N] class labels, or a float array shaped like the output.
            lr: The learning rate of this step; the optimizer's when None.

        Returns:
            The batch's mean loss, before the update.

        Raises:
            TrainingError: The batch does not fit the model, or a label is out of range.
        """
        return self._advance(self._by_name(x), np.asarray(y), lr)[0]

    def fit(
        self,
        train: Source,
        validation: Source | None = None,
        *,
        epochs: int = 5,
        batch_size: int = 64,
        checkpoint_folder: str | os.PathLike[str] | None = None,
        resume: bool = False,
        on_tick: Callable[[Tick], None] = lambda tick: None,
        on_epoch: Callable[[int, Epoch], None] = lambda number, epoch: None,
    ) -> History:
        """Train for a number of epochs.

        Args:
            train: A data SPEC, a data set or a pair of arrays.
            validation: The same, evaluated after each epoch.
            epochs: Epochs in all, those before a resume included.
            batch_size: Samples per batch; the last batch of an epoch may be smaller.
            checkpoint_folder: Where the state is saved after each epoch, and when the training is
                interrupted.
            resume: Go on from the checkpoint in that folder.
            on_tick: Called after each batch.
            on_epoch: Called after each epoch.

        Raises:
            DataError: The data is unreadable, empty or does not fit the model.
            CheckpointError: There is no checkpoint to resume from, or it is another model's.
            TrainingError: The loss is no longer finite.
            KeyboardInterrupt: Interrupted; the state was saved if there is a checkpoint folder.
        """
        data, held_out = as_dataset(train), as_dataset(validation) if validation is not None else None
        folder = Path(checkpoint_folder) if checkpoint_folder is not None else None
        self._progress.batch_size = batch_size
        if resume:
            if folder is None:
                raise CheckpointError("resuming needs the checkpoint folder")
            self._resume(folder, batch_size)
        progress = self._progress
        samples, started = 0, time.perf_counter()
        try:
            while progress.epoch < epochs:
                samples += self._train_epoch(data, on_tick)
                result = self._finish_epoch(held_out)
                on_epoch(progress.epoch - 1, result)
                if folder is not None:
                    checkpoint.save(folder, self._stepper.state(), progress)
        except KeyboardInterrupt:
            if folder is not None:
                checkpoint.save(folder, self._stepper.state(), progress)
            raise
        seconds = time.perf_counter() - started
        return History(
            [Epoch(**entry) for entry in progress.history],
            progress.steps,
            samples / seconds if seconds else 0.0,
            self.provider.name,
        )

    def evaluate(self, data: Source, batch_size: int = 256) -> Evaluation:
        """Loss and accuracy of the weights as they are now."""
        if self._evaluator is None:
            graph = evaluation_step(self._model, self.loss, list(self._fed()))
            self._evaluator = Evaluator(graph, self.provider, self._threads)
        weights = self._stepper.buffers()
        return self._evaluator.run(batches(data, self._model, batch_size, loss=self.loss), weights)

    def model(self) -> Model:
        """The model in inference form, with the weights and running statistics as they are now."""
        trained = self._model.copy()
        state = self._stepper.state()
        trained.set_weights({name: state[name] for name in self._fed()})
        return trained

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write `model` to a file, atomically."""
        return self.model().save(path)

    # -- one epoch ----------------------------------------------------------------------------------

    def _train_epoch(self, train: Dataset, on_tick: Callable[[Tick], None]) -> int:
        """Train on what is left of the epoch; gives the number of samples seen."""
        progress = self._progress
        loader = batches(
            train,
            self._model,
            progress.batch_size,
            seed=self.seed,
            epoch=progress.epoch,
            loss=self.loss,
        )
        sums = progress.partial or {"loss": 0.0, "correct": 0.0, "samples": 0.0, "seconds": 0.0}
        progress.partial = sums
        seen = 0
        before = time.perf_counter()
        with loader.starting_at(progress.batch) as remaining:
            for feed, target in remaining:
                value, right = self._advance(feed, target, None)
                now = time.perf_counter()
                sums["loss"] += value * len(target)
                sums["correct"] += right
                sums["samples"] += len(target)
                sums["seconds"] += now - before
                before = now
                seen += len(target)
                progress.batch += 1
                progress.steps += 1
                on_tick(Tick(progress.epoch, progress.batch, len(loader), sums["loss"] / sums["samples"]))
        return seen

    def _finish_epoch(self, validation: Dataset | None) -> Epoch:
        progress = self._progress
        sums = progress.partial
        measured = self.evaluate(validation) if validation is not None else None
        epoch = Epoch(
            loss=sums["loss"] / sums["samples"],
            accuracy=sums["correct"] / sums["samples"]
            if CORRECT in self._step.model.output_names()
            else None,
            val_loss=measured.loss if measured else None,
            val_accuracy=measured.accuracy if measured else None,
            seconds=sums["seconds"],
        )
        progress.history.append(asdict(epoch))
        progress.epoch, progress.batch, progress.partial = progress.epoch + 1, 0, {}
        return epoch

    def _advance(
        self, feed: Mapping[str, npt.NDArray[Any]], target: npt.NDArray[Any], lr: float | None
    ) -> tuple[float, float]:
        if self.loss in CLASS_LABELS:
            target = self._checked_labels(target)
        value, right = self._stepper.run(feed, target, self.optimizer.lr if lr is None else lr)
        if not np.isfinite(value):
            raise TrainingError(
                f"the loss became {value} at step {self._progress.steps + 1}; lower the learning rate, "
                "or check the data for NaN and unscaled values"
            )
        return value, right

    def _checked_labels(self, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Labels as int64, each below the number of classes: ONNX would take others for no class at all."""
        labels = labels.astype(np.int64, copy=False)
        classes = self._step.classes
        if labels.size and classes is not None and (labels.min() < 0 or labels.max() >= classes):
            bad = labels[(labels < 0) | (labels >= classes)][0]
            raise TrainingError(
                f"label {bad} is out of range: the model has {classes} classes, 0 to {classes - 1}"
            )
        return labels

    def _by_name(self, x: Inputs) -> dict[str, npt.NDArray[Any]]:
        if isinstance(x, Mapping):
            return dict(x)
        arrays = [x] if isinstance(x, np.ndarray) else list(x)
        if len(arrays) != len(self._step.inputs):
            names = ", ".join(self._step.inputs)
            raise TrainingError(
                f"the model has {len(self._step.inputs)} inputs ({names}), the batch {len(arrays)}"
            )
        return dict(zip(self._step.inputs, arrays, strict=True))

    def _fed(self) -> list[str]:
        """What is carried and also an initializer of the model: parameters and running statistics."""
        return [name for name in self._step.carried if name in self._model.graph.initializers]

    def _resume(self, folder: Path, batch_size: int) -> None:
        state, progress = checkpoint.load(folder)
        try:
            self._stepper.load(state)
        except ModelError as error:
            raise CheckpointError(f"{folder}: the checkpoint is of another model: {error}") from None
        for name, here in (
            ("optimizer", repr(self.optimizer)),
            ("loss", self.loss),
            ("batch_size", batch_size),
        ):
            there = getattr(progress, name)
            if there != here:
                raise CheckpointError(f"{folder}: the checkpoint was written with {name} {there}, not {here}")
        self._progress = progress
        self.seed = progress.seed
