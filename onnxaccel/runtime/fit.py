"""Training for a number of epochs: one readable loop over batches, with what goes on around it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from onnxaccel.data import Augmentation, Dataset, batches
from onnxaccel.errors import DataError
from onnxaccel.graph.schedules import Moment, Schedule
from onnxaccel.graph.training import CORRECT
from onnxaccel.runtime import distributed
from onnxaccel.runtime.checkpoint import Checkpoints
from onnxaccel.runtime.distributed import PeerLost
from onnxaccel.runtime.history import Epoch, Monitor, Tick
from onnxaccel.runtime.interrupt import Impatient, Interruption
from onnxaccel.runtime.learner import Learner
from onnxaccel.runtime.tensorboard import Scalars


@dataclass
class Fit:
    """One call of `Trainer.fit`, whose arguments these are.

    Attributes:
        samples: Samples trained on so far.
    """

    learner: Learner
    train: Dataset
    validation: Dataset | None
    epochs: int
    batch_size: int
    steps_per_epoch: int | None
    max_steps: int | None
    schedule: Schedule
    augmentation: Augmentation | None
    metrics: Sequence[str]
    monitor: Monitor
    store: Checkpoints | None
    checkpoint_every: int | None
    logdir: str | os.PathLike[str] | None
    on_tick: Callable[[Tick], None]
    on_epoch: Callable[[int, Epoch], None]
    samples: int = 0
    _scalars: Scalars | None = None

    def run(self, resume: bool) -> None:
        """Train; ``resume`` goes on from the newest checkpoint, where it was interrupted."""
        learner, store = self.learner, self.store
        if distributed.restarted():  # in the place of processes of which one died
            resume = learner.group.from_first(store is not None and store.exists())
        with ExitStack() as stack:
            if store is not None:
                stack.enter_context(store.held(resume))
            if resume:
                learner.resume(store)
            if self.logdir is not None and learner.group.leads:
                self._scalars = stack.enter_context(Scalars(self.logdir))
            interruption = stack.enter_context(Interruption())
            start = learner.progress.epoch, learner.progress.batch
            try:
                while learner.progress.epoch < self.epochs and not self.monitor.is_over(self.history()):
                    self._epoch(interruption)
            except Impatient:  # perhaps in the middle of a step
                raise
            except (KeyboardInterrupt, PeerLost, DataError) as error:
                if isinstance(error, PeerLost) and not interruption.noted:
                    raise
                # The state is whole, also where another process heeded the signal first. A training that did
                # nothing yet saves nothing, and takes nothing from an earlier one that has its folder.
                if (learner.progress.epoch, learner.progress.batch) != start:
                    self._save()
                if isinstance(error, DataError):  # of a file that vanished, perhaps, and will come back
                    raise
                raise KeyboardInterrupt from None

    def history(self) -> list[Epoch]:
        """The epochs so far, those before a resume included."""
        return [Epoch(**entry) for entry in self.learner.progress.history]

    def _epoch(self, interruption: Interruption) -> None:
        self._train(interruption)
        learner, progress = self.learner, self.learner.progress
        learner.group.check_equal(learner.engine.state)
        epoch = self._measured(interruption)
        progress.history.append(asdict(epoch))
        progress.epoch, progress.batch, progress.partial = progress.epoch + 1, 0, {}
        learner.pending = 0  # the last batch of an epoch ends an update
        if self._scalars is not None:
            self._scalars.add_epoch(progress.steps, epoch)
        self.on_epoch(progress.epoch - 1, epoch)
        is_best = self.monitor.best(self.history()) == progress.epoch - 1
        if is_best:
            learner.keep_best()
        self._save(best=is_best)

    def _train(self, interruption: Interruption) -> None:
        """Train on what is left of the epoch."""
        learner, progress = self.learner, self.learner.progress
        loader = batches(
            self.train,
            learner.model,
            self.batch_size,
            seed=learner.seed,
            epoch=progress.epoch,
            loss=learner.loss,
            window=self._window(),
            augmentation=self.augmentation,
            share=learner.group.share,
        )
        results = [e.loss if e.val_loss is None else e.val_loss for e in self.history()]
        sums = progress.partial or {"loss": 0.0, "correct": 0.0, "samples": 0.0, "seconds": 0.0}
        progress.partial = sums
        before = time.perf_counter()
        with loader.starting_at(progress.batch) as remaining:
            for feed, target in interruption.between(learner.ahead(remaining)):
                moment = Moment(progress.steps, progress.epoch, results)
                lr = self.schedule.rate(learner.optimizer.lr, moment)
                last = progress.batch + 1 == len(loader)
                value, right = learner.advance(feed, target, lr, last)
                now = time.perf_counter()
                count = learner.engine.counted(len(target))
                sums["loss"] += value * count
                sums["correct"] += right
                sums["samples"] += count
                sums["seconds"] += now - before
                before = now
                self.samples += count
                progress.batch += 1
                progress.steps += not learner.pending
                tick = Tick(
                    progress.epoch,
                    progress.batch,
                    len(loader),
                    sums["loss"] / sums["samples"],
                    progress.steps,
                    lr,
                    sums["samples"] / sums["seconds"],
                )
                self.on_tick(tick)
                if self._scalars is not None:
                    self._scalars.add(progress.steps, {"train/batch_loss": value, "train/learning_rate": lr})
                every = self.checkpoint_every
                if every and not learner.pending and not progress.steps % every:
                    self._save()

    def _window(self) -> tuple[int, int] | None:
        """The samples of this epoch, where epochs are counted in steps."""
        if self.steps_per_epoch is None:
            return None
        progress, accumulate = self.learner.progress, self.learner.recipe.accumulate
        start = progress.steps - progress.batch // accumulate
        stop = start + self.steps_per_epoch
        per_step = self.batch_size * accumulate
        return start * per_step, min(stop, self.max_steps or stop) * per_step

    def _measured(self, interruption: Interruption) -> Epoch:
        """What the epoch gave, validation included."""
        sums, validation = self.learner.progress.partial, None
        if self.validation is not None:
            validation = self.learner.evaluate(self.validation, 256, self.metrics, interruption)
        counted = CORRECT in self.learner.engine.step.model.output_names()
        return Epoch(
            loss=sums["loss"] / sums["samples"],
            accuracy=sums["correct"] / sums["samples"] if counted else None,
            val_loss=validation.loss if validation else None,
            val_accuracy=validation.accuracy if validation else None,
            seconds=sums["seconds"],
            metrics=validation.metrics if validation else {},
        )

    def _save(self, best: bool = False) -> None:
        if self.store is not None:
            self.store.save(self.learner.engine.state(), self.learner.progress, best=best)
