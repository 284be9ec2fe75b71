"""The trainer: a model, a loss and an optimizer, trained step by step or for a number of epochs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxaccel.data import Augmentation, Source, as_dataset
from onnxaccel.errors import CheckpointError, ProviderError, TrainingError
from onnxaccel.graph.autodiff import as_model
from onnxaccel.graph.finetune import freeze as frozen
from onnxaccel.graph.finetune import replace_head
from onnxaccel.graph.losses import NOTHING, Loss, as_loss
from onnxaccel.graph.model import Model
from onnxaccel.graph.normalize import normalize
from onnxaccel.graph.optimizers import AdamW, Optimizer
from onnxaccel.graph.recipe import Recipe
from onnxaccel.graph.schedules import Constant, Schedule, create
from onnxaccel.runtime import distributed, engines
from onnxaccel.runtime.batch import Inputs, by_name
from onnxaccel.runtime.checkpoint import Checkpoints
from onnxaccel.runtime.evaluator import Evaluation
from onnxaccel.runtime.fit import Fit
from onnxaccel.runtime.history import Epoch, History, Monitor, Tick
from onnxaccel.runtime.interrupt import Interruption
from onnxaccel.runtime.learner import Learner
from onnxaccel.runtime.metrics import made
from onnxaccel.runtime.providers import Provider, resolve


class Trainer:
    """Trains a model.

    Args:
        model: A model in inference form, or its path; it is not changed.
        loss: The loss, or its name for one with its defaults: "cross_entropy", "mse", ... (see `losses`).
        optimizer: The optimizer; AdamW with its defaults when None.
        ep: A name of `onnxaccel.runtime.providers.NAMES`, or a resolved provider.
        seed: Seed of the data's order and of Dropout.
        threads: Threads within an operator; 0 leaves it to onnxruntime.
        metrics: Count right predictions while training.
        freeze: Patterns over the names of parameters that stay as they are, see `graph.finetune.freeze`.
        num_classes: Replace the classifier by a new one, see `graph.finetune.replace_head`.
        detect_anomaly: Look through all parameters after each step, and stop at the first that is not
            finite; without it only the loss is looked at.
        clip_norm: Largest L2 norm of all gradients together; larger ones are scaled down.
        clip_value: Largest absolute value of a gradient's element.
        accumulate: Batches per update of the parameters.
        ema: Decay of an average of the parameters, which is then what is evaluated and exported.
        engine: "graph", our gradient graph on any onnxruntime, or "ort-training", see
            `onnxaccel.runtime.engines.ort_training`.
        precision: "fp32"; "bf16" or "fp16" for products in that type, with parameters in float32. The CPU has
            no kernels for these, it computes in float32 and rounds.

    Raises:
        UnsupportedOperator: An operator between the loss and a parameter has no gradient rule.
        ModelError: The model has nothing to train, or its output does not fit the loss.
        ProviderError: The provider is not usable here.
    """

    def __init__(
        self,
        model: Model | onnx.ModelProto | str | os.PathLike[str],
        loss: str | Loss = "cross_entropy",
        optimizer: Optimizer | None = None,
        ep: str | Provider = "auto",
        seed: int = 0,
        threads: int = 0,
        metrics: bool = True,
        freeze: Sequence[str] = (),
        num_classes: int | None = None,
        detect_anomaly: bool = False,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        accumulate: int = 1,
        ema: float | None = None,
        engine: str = "graph",
        precision: str = "fp32",
    ) -> None:
        self.optimizer = optimizer or AdamW()
        self.loss = as_loss(loss)
        self.seed = seed
        self.provider = resolve(ep)
        if not self.provider.trains:
            raise ProviderError(f"{self.provider.name} is for inference; train with --ep cpu or --ep cuda")
        group = distributed.join(self.provider.device)
        threads = distributed.threads_each(threads)
        whole = as_model(model).copy()
        normalize(whole)
        if num_classes is not None:
            whole = replace_head(whole, num_classes, seed)
        trained = frozen(whole, freeze) if freeze else whole
        self.recipe = Recipe(clip_norm, clip_value, accumulate, ema, precision)
        self.engine = engine
        self._learner = Learner(
            whole,
            engines.start(
                engine,
                trained,
                self.loss,
                self.optimizer,
                self.recipe,
                self.provider,
                threads,
                metrics,
                seed,
                group,
            ),
            self.loss,
            self.optimizer,
            self.recipe,
            self.provider,
            threads,
            group,
            seed,
            detect_anomaly,
        )

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes files: the first of several, or the only one."""
        return self._learner.group.leads

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters that are trained."""
        return list(self._learner.engine.step.parameters)

    def step(self, x: Inputs, y: npt.NDArray[Any] | None = None, lr: float | None = None) -> float:
        """Train on one batch.

        Args:
            x: The inputs, in the model's own layout and type.
            y: The target: int64 class labels, [N] or one per position, or a float array shaped like the
                output; None for loss "output".
            lr: The learning rate of this step; the optimizer's when None.

        Returns:
            The batch's mean loss, before the update.

        Raises:
            TrainingError: The batch does not fit the model, or a label is out of range.
        """
        if y is None and self.loss.kind != NOTHING:
            raise TrainingError(f"loss {self.loss.called} compares with a target; give step(x, y)")
        feed = by_name(x, self._learner.engine.step.inputs)
        return self._learner.advance(feed, np.asarray(() if y is None else y), lr)[0]

    def fit(
        self,
        train: Source,
        validation: Source | None = None,
        *,
        epochs: int = 5,
        batch_size: int = 64,
        steps_per_epoch: int | None = None,
        max_steps: int | None = None,
        schedule: Schedule | str | None = None,
        augmentation: Augmentation | None = None,
        metrics: Sequence[str] = (),
        monitor: str | None = None,
        early_stopping: int | None = None,
        min_delta: float = 0.0,
        best: bool = False,
        checkpoint_folder: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        keep: int = 2,
        resume: bool = False,
        logdir: str | os.PathLike[str] | None = None,
        on_tick: Callable[[Tick], None] = lambda tick: None,
        on_epoch: Callable[[int, Epoch], None] = lambda number, epoch: None,
    ) -> History:
        """Train for a number of epochs.

        Args:
            train: A data SPEC, a data set or a pair of arrays.
            validation: The same, evaluated after each epoch.
            epochs: Epochs in all, those before a resume included.
            batch_size: Samples per batch; the last batch of an epoch may be smaller.
            steps_per_epoch: Count an epoch as so many steps, through the data set in its own order and again
                from its start, as Caffe goes; None: an epoch is one pass in a random order.
            max_steps: With ``steps_per_epoch``, steps in all; the last epoch may be shorter.
            schedule: The learning rate's schedule, or its name; None: the optimizer's rate throughout.
            augmentation: Random changes to the training images.
            metrics: Metrics of the validation data, beside loss and accuracy: "top5", "mae", "confusion".
            monitor: What the best epoch is chosen by: "val_loss" (by default, where there is validation
                data), "val_accuracy", "loss", "accuracy" or a metric.
            early_stopping: Stop after so many epochs without a better one, and go back to the best one.
            min_delta: By how much an epoch must be better than the best so far.
            best: Go back to the weights and running statistics after the best epoch in the end.
            checkpoint_folder: Where the state is saved after each epoch, and when the training is
                interrupted; the state after the best epoch is kept beside.
            checkpoint_every: Also save it after every so many steps.
            keep: How many of the newest checkpoints to keep.
            resume: Go on from the newest checkpoint in that folder, exactly as if there had been no
                interruption.
            logdir: Write scalars for TensorBoard into this folder.
            on_tick: Called after each batch.
            on_epoch: Called after each epoch.

        Raises:
            DataError: The data is unreadable, empty or does not fit the model; where it became so in the
                middle, the state was saved if there is a folder.
            CheckpointError: There is no checkpoint to resume from, it is another training's, or another
                training uses the folder.
            TrainingError: The loss is no longer finite.
            KeyboardInterrupt: Interrupted by SIGINT, SIGTERM or SIGHUP; the state was saved if there is a
                folder.
        """
        made(metrics)  # refuses an unknown name before anything runs
        data, held_out = as_dataset(train), as_dataset(validation) if validation is not None else None
        schedule = create(schedule) if isinstance(schedule, str) else schedule or Constant()
        per_step = batch_size * self.recipe.accumulate
        schedule = schedule.over(epochs, steps_per_epoch or -(-len(data) // per_step))
        if resume and checkpoint_folder is None:
            raise CheckpointError("resuming needs the checkpoint folder")
        self._learner.progress.settings = {
            "optimizer": repr(self.optimizer),
            "loss": repr(self.loss),
            "recipe": repr(self.recipe),
            "schedule": repr(schedule),
            "seed": str(self.seed),
            "batch_size": str(batch_size),
            "samples": str(len(data)),
            "steps_per_epoch": str(steps_per_epoch),
            "augmentation": repr(augmentation),
        }
        store = None
        if checkpoint_folder is not None and self.leads:
            store = Checkpoints(checkpoint_folder, keep, self._learner.model.key)
        fit = Fit(
            self._learner,
            data,
            held_out,
            epochs,
            batch_size,
            steps_per_epoch,
            max_steps,
            schedule,
            augmentation,
            metrics,
            Monitor(monitor, early_stopping, min_delta),
            store,
            checkpoint_every,
            logdir,
            on_tick,
            on_epoch,
        )
        started = time.perf_counter()
        fit.run(resume)
        if best or early_stopping is not None:
            self._learner.go_back()
        seconds = time.perf_counter() - started
        return History(
            fit.history(),
            self._learner.progress.steps,
            fit.samples / seconds if seconds else 0.0,
            self.provider.name,
            self.engine,
        )

    def evaluate(self, data: Source, batch_size: int = 256, metrics: Sequence[str] = ()) -> Evaluation:
        """Loss, accuracy and other metrics of the weights as they are now."""
        return self._learner.evaluate(as_dataset(data), batch_size, metrics, Interruption())

    def model(self) -> Model:
        """The model in inference form, with weights (or their averages) and statistics as they are now."""
        return self._learner.trained()

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write `model` to a file, atomically."""
        return self.model().save(path)
