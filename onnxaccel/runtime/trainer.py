"""The trainer: one readable loop over batches, around a step that is one graph."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxaccel.data import Augmentation, Dataset, Source, as_dataset, batches
from onnxaccel.errors import CheckpointError, ModelError, ProviderError, TrainingError
from onnxaccel.graph.autodiff import as_model
from onnxaccel.graph.finetune import freeze as frozen
from onnxaccel.graph.finetune import replace_head
from onnxaccel.graph.losses import NOTHING, TARGET, Loss, as_loss
from onnxaccel.graph.model import Model
from onnxaccel.graph.normalize import normalize
from onnxaccel.graph.optimizers import AdamW, Optimizer
from onnxaccel.graph.recipe import Recipe
from onnxaccel.graph.schedules import Constant, Moment, Schedule, create
from onnxaccel.graph.training import CORRECT, evaluation_step
from onnxaccel.graph.training_form import running_factor
from onnxaccel.graph.update import AVERAGE
from onnxaccel.runtime import distributed, engines
from onnxaccel.runtime.anomaly import first_wrong, unsound
from onnxaccel.runtime.batch import Inputs, by_name, checked
from onnxaccel.runtime.checkpoint import Checkpoints, Progress
from onnxaccel.runtime.distributed import Group, PeerLost
from onnxaccel.runtime.evaluator import Evaluation, Evaluator
from onnxaccel.runtime.history import Epoch, History, Monitor, Tick
from onnxaccel.runtime.interrupt import Impatient, Interruption
from onnxaccel.runtime.metrics import made
from onnxaccel.runtime.providers import Provider, resolve
from onnxaccel.runtime.tensorboard import Scalars


@dataclass(frozen=True)
class _Run:
    """What one call of `Trainer.fit` trains with."""

    train: Dataset
    validation: Dataset | None
    batch_size: int
    steps_per_epoch: int | None
    max_steps: int | None
    schedule: Schedule
    augmentation: Augmentation | None
    store: Checkpoints | None
    checkpoint_every: int | None
    metrics: Sequence[str]
    interruption: Interruption
    scalars: Scalars | None
    on_tick: Callable[[Tick], None]


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
        self._group = distributed.join(self.provider.device)
        self._threads = threads = distributed.threads_each(threads)
        self._detect_anomaly = detect_anomaly
        self._model = as_model(model).copy()
        normalize(self._model)
        if num_classes is not None:
            self._model = replace_head(self._model, num_classes, seed)
        trained = frozen(self._model, freeze) if freeze else self._model
        self.recipe = Recipe(clip_norm, clip_value, accumulate, ema, precision)
        self.engine = engine
        self._stepper = engines.start(
            engine,
            trained,
            self.loss,
            self.optimizer,
            self.recipe,
            self.provider,
            threads,
            metrics,
            seed,
            self._group,
        )
        self._step = self._stepper.step
        self._evaluators: dict[tuple[str, ...], Evaluator] = {}
        self._progress = Progress()
        self._best: dict[str, npt.NDArray[Any]] | None = None
        self._pending = 0  # batches since the last update

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes files: the first of several, or the only one."""
        return self._group is None or self._group.leads

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters that are trained."""
        return list(self._step.parameters)

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
        return self._advance(by_name(x, self._step.inputs), np.asarray(() if y is None else y), lr)[0]

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
            DataError: The data is unreadable, empty or does not fit the model.
            CheckpointError: There is no checkpoint to resume from, it is another training's, or another
                training uses the folder.
            TrainingError: The loss is no longer finite.
            KeyboardInterrupt: Interrupted by SIGINT or SIGTERM; the state was saved if there is a folder.
        """
        made(metrics)  # refuses an unknown name before anything runs
        data, held_out = as_dataset(train), as_dataset(validation) if validation is not None else None
        schedule = create(schedule) if isinstance(schedule, str) else schedule or Constant()
        per_step = batch_size * self.recipe.accumulate
        schedule = schedule.over(epochs, steps_per_epoch or -(-len(data) // per_step))
        choice = Monitor(monitor, early_stopping, min_delta)
        if resume and checkpoint_folder is None:
            raise CheckpointError("resuming needs the checkpoint folder")
        store = Checkpoints(checkpoint_folder, keep) if checkpoint_folder is not None and self.leads else None
        if distributed.restarted():  # in the place of processes of which one died
            resume = self._from_first(store is not None and store.exists())
        self._progress.settings = {
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
        samples, started = 0, time.perf_counter()
        with ExitStack() as stack:
            if store is not None:
                stack.enter_context(store.held(resume))
            if resume:
                self._resume(store)
            progress = self._progress
            scalars = stack.enter_context(Scalars(logdir)) if logdir is not None and self.leads else None
            interruption = stack.enter_context(Interruption())
            run = _Run(
                data,
                held_out,
                batch_size,
                steps_per_epoch,
                max_steps,
                schedule,
                augmentation,
                store,
                checkpoint_every,
                metrics,
                interruption,
                scalars,
                on_tick,
            )
            try:
                while progress.epoch < epochs and not choice.is_over(self._epochs()):
                    samples += self._train_epoch(run)
                    if self._group is not None:
                        self._group.check_equal(self._stepper.state())
                    result = self._finish_epoch(run)
                    on_epoch(progress.epoch - 1, result)
                    is_best = choice.best(self._epochs()) == progress.epoch - 1
                    if is_best:
                        state = self._stepper.state()
                        self._best = {name: state[name] for name in self._kept()}
                    if store is not None:
                        store.save(self._stepper.state(), progress, best=is_best)
            except Impatient:  # perhaps in the middle of a step
                raise
            except (KeyboardInterrupt, PeerLost) as error:
                if isinstance(error, PeerLost) and not interruption.noted:
                    raise
                # the state is whole, also where another process heeded the signal first
                if store is not None:
                    store.save(self._stepper.state(), progress)
                raise KeyboardInterrupt from None
        if (best or early_stopping is not None) and self._best is not None:
            self._stepper.load(self._stepper.state() | self._best)
        seconds = time.perf_counter() - started
        return History(
            self._epochs(),
            progress.steps,
            samples / seconds if seconds else 0.0,
            self.provider.name,
            self.engine,
        )

    def evaluate(self, data: Source, batch_size: int = 256, metrics: Sequence[str] = ()) -> Evaluation:
        """Loss, accuracy and other metrics of the weights as they are now."""
        return self._evaluate(as_dataset(data), batch_size, metrics, Interruption())

    def model(self) -> Model:
        """The model in inference form, with weights (or their averages) and statistics as they are now."""
        trained = self._model.copy()
        trained.set_weights(self._weights())
        factors = trained.metadata.running_factors
        state = self._stepper.state() if factors else {}
        factors |= {name: float(state[key]) for name in factors if (key := running_factor(name)) in state}
        return trained

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write `model` to a file, atomically."""
        return self.model().save(path)

    # -- one epoch ----------------------------------------------------------------------------------

    def _train_epoch(self, run: _Run) -> int:
        """Train on what is left of the epoch; gives the number of samples seen."""
        progress = self._progress
        loader = batches(
            run.train,
            self._model,
            run.batch_size,
            seed=self.seed,
            epoch=progress.epoch,
            loss=self.loss,
            window=self._window(run),
            augmentation=run.augmentation,
            share=self._share,
        )
        results = [e.loss if e.val_loss is None else e.val_loss for e in self._epochs()]
        sums = progress.partial or {"loss": 0.0, "correct": 0.0, "samples": 0.0, "seconds": 0.0}
        progress.partial = sums
        seen = 0
        before = time.perf_counter()
        with loader.starting_at(progress.batch) as remaining:
            for feed, target in run.interruption.between(remaining):
                lr = run.schedule.rate(self.optimizer.lr, Moment(progress.steps, progress.epoch, results))
                last = progress.batch + 1 == len(loader)
                value, right = self._advance(feed, target, lr, last)
                now = time.perf_counter()
                count = self._stepper.counted(len(target))
                sums["loss"] += value * count
                sums["correct"] += right
                sums["samples"] += count
                sums["seconds"] += now - before
                before = now
                seen += count
                progress.batch += 1
                progress.steps += not self._pending
                tick = Tick(
                    progress.epoch,
                    progress.batch,
                    len(loader),
                    sums["loss"] / sums["samples"],
                    progress.steps,
                    lr,
                    sums["samples"] / sums["seconds"],
                )
                run.on_tick(tick)
                if run.scalars is not None:
                    run.scalars.add(progress.steps, {"train/batch_loss": value, "train/learning_rate": lr})
                due = run.checkpoint_every and not self._pending and not progress.steps % run.checkpoint_every
                if run.store and due:
                    run.store.save(self._stepper.state(), progress)
        return seen

    def _window(self, run: _Run) -> tuple[int, int] | None:
        """The samples of this epoch, where epochs are counted in steps."""
        if run.steps_per_epoch is None:
            return None
        start = self._progress.steps - self._progress.batch // self.recipe.accumulate
        stop = start + run.steps_per_epoch
        per_step = run.batch_size * self.recipe.accumulate
        return start * per_step, min(stop, run.max_steps or stop) * per_step

    def _finish_epoch(self, run: _Run) -> Epoch:
        progress = self._progress
        sums = progress.partial
        measured = None
        if run.validation is not None:
            measured = self._evaluate(run.validation, 256, run.metrics, run.interruption)
        counted = CORRECT in self._step.model.output_names()
        epoch = Epoch(
            loss=sums["loss"] / sums["samples"],
            accuracy=sums["correct"] / sums["samples"] if counted else None,
            val_loss=measured.loss if measured else None,
            val_accuracy=measured.accuracy if measured else None,
            seconds=sums["seconds"],
            metrics=measured.metrics if measured else {},
        )
        progress.history.append(asdict(epoch))
        progress.epoch, progress.batch, progress.partial = progress.epoch + 1, 0, {}
        self._pending = 0  # the last batch of an epoch ends an update
        if run.scalars is not None:
            run.scalars.add_epoch(progress.steps, epoch)
        return epoch

    def _evaluate(
        self, data: Dataset, batch_size: int, metrics: Sequence[str], interruption: Interruption
    ) -> Evaluation:
        key = tuple(metrics)
        if key not in self._evaluators:
            graph = evaluation_step(self._model, self.loss, self._fed(), scores=bool(metrics))
            self._evaluators[key] = Evaluator(graph, self.provider, self._threads, metrics)
        group = self._group if not metrics and len(data) >= self._share[1] else None
        share = self._share if group is not None else (0, 1)
        loader = batches(data, self._model, batch_size, loss=self.loss, share=share)
        buffers = self._stepper.buffers()
        averages = {name: buffers.get(name + AVERAGE, buffers[name]) for name in self._fed()}
        found = self._evaluators[key].run(interruption.between(loader), averages)
        return found if group is None else _together(found, group)

    @property
    def _share(self) -> tuple[int, int]:
        """Which part of each batch is this process's."""
        return (0, 1) if self._group is None else (self._group.rank, self._group.size)

    def _from_first(self, thing: Any) -> Any:
        """What the first process has."""
        return thing if self._group is None else self._group.from_first(thing)

    def _epochs(self) -> list[Epoch]:
        return [Epoch(**entry) for entry in self._progress.history]

    def _weights(self) -> dict[str, npt.NDArray[Any]]:
        """Parameters and running statistics as they are now, by the names of their initializers."""
        state = self._stepper.state()
        return {name: state.get(name + AVERAGE, state[name]) for name in self._fed()}

    def _advance(
        self,
        feed: Mapping[str, npt.NDArray[Any]],
        target: npt.NDArray[Any],
        lr: float | None,
        last: bool = False,
    ) -> tuple[float, float]:
        """Train on one batch; ``last`` ends an update however many batches it has."""
        target = checked(target, self.loss, self._step.classes)
        first = not self._pending
        self._pending = 0 if last else (self._pending + 1) % self.recipe.accumulate
        rate = self.optimizer.lr if lr is None else lr
        value, right = self._stepper.run(feed, target, rate, first, last=not self._pending)
        wrong = None if np.isfinite(value) else f"the loss became {value}"
        if wrong is None and self._detect_anomaly:
            wrong = unsound(self._stepper.state())
        if wrong is not None:
            inputs = {**feed, TARGET: target, **self._stepper.previous()}
            culprit = first_wrong(self._step.model, inputs, self.provider) or "not reproducible"
            raise TrainingError(
                f"{wrong} at step {self._progress.steps + 1}; lower the learning rate, or check the data for "
                f"NaN and unscaled values. First not finite: {culprit}"
            )
        return value, right

    def _fed(self) -> list[str]:
        """What is carried and also an initializer of the model: parameters and running statistics."""
        return [name for name in self._step.carried if name in self._model.graph.initializers]

    def _kept(self) -> list[str]:
        """What of the best epoch is kept: parameters, running statistics, averages."""
        return self._fed() + [name for name in self._step.carried if name.endswith(AVERAGE)]

    def _resume(self, store: Checkpoints | None) -> None:
        """Take over the newest checkpoint, which the process that has the store reads for all."""
        found = None
        if store is not None:
            state, progress = store.latest()
            progress.must_fit(self._progress.settings, store.folder)
            found = state, progress, store.best()
        state, self._progress, best = self._from_first(found)
        self._pending = self._progress.batch % self.recipe.accumulate
        try:
            self._stepper.load(state)
        except ModelError as error:
            raise CheckpointError(f"the checkpoint is of another model: {error}") from None
        self._best = {name: best[name] for name in self._kept()} if best is not None else None


def _together(part: Evaluation, group: Group) -> Evaluation:
    """The evaluation of the whole, from those of the parts that the processes of a group took."""
    right = (part.accuracy or 0.0) * part.samples
    loss, right, samples = group.sums(part.loss * part.samples, right, part.samples)
    accuracy = None if part.accuracy is None else right / samples
    rate = part.samples_per_second * samples / part.samples if part.samples else 0.0
    return replace(
        part, loss=loss / samples, accuracy=accuracy, samples=int(samples), samples_per_second=rate
    )
