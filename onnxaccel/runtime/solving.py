"""Training as Caffe's solver trains: so many iterations, on and on through the data, tests in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from onnxaccel.data import Source, as_dataset
from onnxaccel.data.dataset import Dataset, Part
from onnxaccel.graph.losses import Loss
from onnxaccel.graph.model import Model
from onnxaccel.graph.solver import Solver, loss_of
from onnxaccel.runtime.history import History, Tick
from onnxaccel.runtime.providers import Provider
from onnxaccel.runtime.trainer import Trainer

_BATCH = 64
"""Samples per batch where neither the caller nor the model says how many."""


@dataclass(frozen=True)
class Test:
    """One test.

    Attributes:
        iteration: The iterations before it.
        loss: Mean loss over the test's samples.
        accuracy: The share of right predictions, or None where there are no classes.
    """

    iteration: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Solved:
    """What a solver gave.

    Attributes:
        trainer: The trainer, with the trained weights.
        history: One epoch per ``test_interval`` iterations.
        tests: The tests in between, the first before the first iteration.
        iterations: Iterations in all.
        iterations_per_second: Reading the data included, tests left out.
    """

    trainer: Trainer
    history: History
    tests: list[Test]
    iterations: int
    iterations_per_second: float


def solve(
    model: Model,
    solver: Solver,
    train: Source,
    test: Source | None = None,
    *,
    loss: str | Loss | None = None,
    batch_size: int | None = None,
    ep: str | Provider = "auto",
    threads: int = 0,
    seed: int | None = None,
    checkpoint_folder: str | os.PathLike[str] | None = None,
    keep: int = 2,
    resume: bool = False,
    logdir: str | os.PathLike[str] | None = None,
    on_tick: Callable[[Tick], None] = lambda tick: None,
) -> Solved:
    """Train a model by a solver.

    The samples come in the data set's own order, batches running across its end. A test takes the first
    ``test_iter`` batches of the test data.

    Args:
        model: A Caffe network's trainable form; lr_mult and decay_mult are in its metadata.
        solver: The solver.
        train: The training data.
        test: The test data; without it there are no tests.
        loss: The loss; None: that of the network's own head.
        batch_size: Samples per batch; None: as many as the network's data layer takes.
        ep: The execution provider.
        threads: Threads within an operator; 0 leaves it to onnxruntime.
        seed: Seed of random crops and of Dropout; None: the solver's.
        checkpoint_folder: Where snapshots go, every ``snapshot`` iterations and after each test.
        keep: How many of the newest snapshots to keep.
        resume: Go on from the newest snapshot in that folder.
        logdir: Write scalars for TensorBoard into this folder.
        on_tick: Called after each batch.

    Raises:
        TrainingError: The network's loss is none that can be trained here, or is no longer finite.
        DataError: The data is unreadable, empty or does not fit the model.
        CheckpointError: There is no snapshot to resume from, or it is another training's.
    """
    sizes = model.metadata.batch_sizes
    batch, clip = batch_size or sizes.get("train", _BATCH), solver.clip_gradients
    trainer = Trainer(
        model,
        loss=loss or loss_of(model.metadata.heads),
        optimizer=solver.optimizer(model.metadata.multipliers),
        ep=ep,
        seed=(solver.random_seed or 0) if seed is None else seed,
        threads=threads,
        metrics=False,
        clip_norm=clip / solver.iter_size if clip is not None else None,  # Caffe's is of the sum
        accumulate=solver.iter_size,
    )
    held_out = _tested(as_dataset(test), solver.test_iter * sizes.get("test", batch)) if test else None
    interval = min(solver.test_interval or solver.max_iter, solver.max_iter)
    tests = []
    if held_out is not None and solver.test_initialization and not resume:
        before = trainer.evaluate(held_out)
        tests.append(Test(0, before.loss, before.accuracy))
    history = trainer.fit(
        train,
        held_out,
        epochs=-(-solver.max_iter // interval),
        batch_size=batch,
        steps_per_epoch=interval,
        max_steps=solver.max_iter,
        schedule=solver.schedule(),
        checkpoint_folder=checkpoint_folder,
        checkpoint_every=solver.snapshot or None,
        keep=keep,
        resume=resume,
        logdir=logdir,
        on_tick=on_tick,
    )
    for number, epoch in enumerate(history.epochs, 1):
        if epoch.val_loss is not None:
            tests.append(Test(min(number * interval, solver.max_iter), epoch.val_loss, epoch.val_accuracy))
    seconds = sum(epoch.seconds for epoch in history.epochs)
    return Solved(trainer, history, tests, history.steps, history.steps / seconds if seconds else 0.0)


def _tested(data: Dataset, wanted: int) -> Dataset:
    """The test's share of the test data; all of it where it has less, or no number is stated."""
    return Part(data, 0, min(wanted, len(data))) if wanted else data
