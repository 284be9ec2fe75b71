"""What advances a training run by one batch: our own gradient graphs, or onnxruntime's training packages."""

from __future__ import annotations

from onnxaccel.errors import ProviderError, TrainingError
from onnxaccel.graph.devices import narrow
from onnxaccel.graph.losses import Loss
from onnxaccel.graph.model import Model
from onnxaccel.graph.optimizers import Optimizer
from onnxaccel.graph.precision import PRECISIONS
from onnxaccel.graph.recipe import Recipe
from onnxaccel.graph.training import training_step
from onnxaccel.runtime.distributed import Group
from onnxaccel.runtime.engines.ort_training import OrtTrainingStepper
from onnxaccel.runtime.parallel import ParallelStepper
from onnxaccel.runtime.providers import Provider
from onnxaccel.runtime.stepper import Stepper

NAMES = ("graph", "ort-training")
"""What ``--engine`` takes."""

Engine = Stepper | OrtTrainingStepper
"""What advances a training by one batch."""

_MASKS = 1_000_003
"""Distance between the seeds from which the processes of a group draw their masks of Dropout."""


def start(
    engine: str,
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    recipe: Recipe,
    provider: Provider,
    threads: int,
    metrics: bool,
    seed: int,
    group: Group,
) -> Engine:
    """The engine of that name, with the model at its start; in a group each process has its own.

    Raises:
        TrainingError: There is no such engine, or it lacks what is asked of it.
        ProviderError: It is not installed, or does not run on the provider.
        UnsupportedOperator: It has no gradient for an operator of the model.
    """
    if engine == "graph":
        own, split = seed + _MASKS * group.rank, group.size > 1
        step = training_step(
            model,
            loss,
            optimizer,
            recipe,
            metrics=metrics,
            seed=own,
            split=split,
            device=provider.device,
        )
        low = PRECISIONS[recipe.precision]
        if low is not None:
            narrow(step.model, provider.device, low)
        return ParallelStepper(step, provider, threads, group) if split else Stepper(step, provider, threads)
    if engine != "ort-training":
        raise TrainingError(f"unknown engine {engine!r}; choose one of {', '.join(NAMES)}")
    if group.size > 1:
        raise TrainingError("engine ort-training trains in one process; leave out --workers")
    if provider.name != "cpu":
        raise ProviderError("engine ort-training runs on the CPU only; add --ep cpu")
    if recipe != Recipe():
        raise TrainingError(
            "engine ort-training neither clips, accumulates nor averages, all in float32; leave that out"
        )
    return OrtTrainingStepper(model, loss, optimizer, threads)
