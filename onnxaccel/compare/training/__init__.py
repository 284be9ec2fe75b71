"""The training side of a comparison: the same weights, batches, optimizer and loss on every side.

Each side trains in a process of its own (`onnxaccel.compare.training.curve`): first on the shared batches,
which gives its loss curve and its accuracy at the end; then the sides take turns for the timing, as
`onnxaccel.runtime.measure` has it. A side that cannot train is a row with its reason.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxaccel.compare.candidates import matches, ways_of
from onnxaccel.compare.results import Candidate, Settings, Training
from onnxaccel.compare.training import batches, jobs
from onnxaccel.compare.training.plan import Plan
from onnxaccel.data import Source
from onnxaccel.errors import AccelError, DataError, ModelError
from onnxaccel.files import scratch_folder
from onnxaccel.graph.model import Model
from onnxaccel.runtime.measure import GAP, Job, Limits, Result, measure, reason

if TYPE_CHECKING:
    from onnxaccel.compare.sources import Opened

LIMITS = Limits(600.0)
"""What a side may take unless given: its time covers the whole of its loss curve."""

_NOTES = {
    "dropout": "the model has Dropout: each side draws masks of its own, and the loss curves differ; without "
    "(dropout=false) they show whether all sides compute the same",
    "adam": "adam's eps: Keras and Caffe add it before the correction of the moments' bias, torch and "
    "onnxaccel after it; of a Caffe network onnxaccel trains by Caffe's formula",
    "device": "the frameworks train on the CPU; what onnxaccel does on a GPU is no comparison with them",
}


@dataclass
class Trained:
    """What a training comparison gave.

    Attributes:
        candidates: All sides, those that failed among them, with `Candidate.training` filled in.
        target_loss: See `onnxaccel.compare.results.Source`.
        settings: What was the same for all, for `onnxaccel.compare.results.Settings.training`.
        warnings: What to keep in mind about these figures.
    """

    candidates: list[Candidate]
    target_loss: float | None = None
    settings: dict[str, float | int | str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def train(
    models: Sequence[Opened],
    data: Source,
    validation: Source | None,
    settings: Settings,
    *,
    providers: Sequence[str] = ("cpu",),
    only: Sequence[str] = (),
    limits: Limits = LIMITS,
    gap: float = GAP,
    patience: int = 4,
    progress: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train one source on all sides.

    Args:
        models: The source in each framework that has it; the first one's framework is the reference.
        data: The training data: a SPEC, a data set or a pair of arrays.
        validation: The validation data, or None: no accuracy.
        settings: ``training`` holds the fields of `onnxaccel.compare.training.plan.Plan` that were given.
        providers: Execution providers that onnxaccel trains on.
        only: Patterns of candidates' names: no others train; empty: all.
        limits: What each side may take; its time covers the whole of its loss curve.
        gap: Seconds of quiet before a turn.
        patience: How often a turn is tried while the machine is busy.
        progress: Called with one line per stage.

    Raises:
        TrainingError: The settings are no such settings, or out of range.
    """
    chosen = [side for side in _sides(models, providers) if matches(side[0].name, only)]
    with scratch_folder() as folder:
        try:
            plan = Plan.of(settings.training, data)
            progress("the batches of all sides are written")
            graph = Model.load(models[0].trainable or models[0].onnx)
            shared = batches.write(graph, plan, data, validation, settings.seed, folder)
        except (DataError, ModelError) as error:
            for candidate, _ in chosen:
                candidate.training = Training(failure=str(error))
            return Trained([candidate for candidate, _ in chosen])
        common = jobs.Common(plan, shared, settings.threads, folder)
        running: dict[str, Job] = {}
        failed: dict[str, str] = {}
        for candidate, model in chosen:
            start = jobs.onnx if candidate.framework == "onnxaccel" else jobs.native
            try:
                running[candidate.name] = start(model, candidate.mode, common)
            except AccelError as error:
                failed[candidate.name] = str(error)
        results = measure(
            running,
            rounds=settings.rounds,
            seconds=settings.seconds,
            limits=limits,
            gap=gap,
            patience=patience,
            progress=progress,
        )
    for candidate, model in chosen:
        found = results.get(candidate.name)
        candidate.training = _training(found) if found else Training(failure=failed[candidate.name])
        if candidate.framework == "onnxaccel":
            candidate.training.command = _command(model, candidate.mode, plan, data, validation)
    candidates = [candidate for candidate, _ in chosen]
    notes = _warnings(results, plan, shared, providers)
    return Trained(candidates, _compare(candidates, shared.per_epoch), plan.shared(), notes)


def _sides(models: Sequence[Opened], providers: Sequence[str]) -> list[tuple[Candidate, Opened]]:
    """All ways to train: the frameworks' own, then onnxaccel's on the first trainable graph."""
    sides = []
    for model in models:
        ways = (("Caffe", "caffe"),) if model.framework == "caffe" else ways_of(model)
        # Keras's fit runs its step as a tf.function: there is no plain way beside it
        sides += [
            (Candidate(name, model.framework, mode, command=model.export), model)
            for name, mode in ways
            if mode != "keras"
        ]
    ours = next((model for model in models if model.trainable is not None), models[0])
    return [*sides, *((Candidate(f"onnxaccel {name}", "onnxaccel", name), ours) for name in providers)]


def _training(result: Result) -> Training:
    """What one side's process gave."""
    if result.failure is not None:
        return Training(failure=reason(result.failure))
    facts = result.facts
    return Training(
        losses=facts["losses"],
        steps_per_second=result.rate,
        rounds=result.rates,
        disturbed=result.disturbed,
        accuracy=facts["accuracy"],
        memory=result.memory,
        gpu_memory=result.gpu_memory,
        startup=result.startup_seconds - facts["seconds"],
        first_step=facts["first_step"],
    )


def _compare(candidates: Sequence[Candidate], per_epoch: int) -> float | None:
    """Fill in what each side is beside the first that ran; gives the loss that all of them reach."""
    ran = [c.training for c in candidates if c.training is not None and c.training.failure is None]
    if not ran:
        return None
    means = [np.reshape(training.losses, (-1, per_epoch)).mean(axis=1) for training in ran]
    target = max(float(mean[-1]) for mean in means)
    for training, mean in zip(ran, means, strict=True):
        apart = np.abs(np.subtract(training.losses, ran[0].losses))
        training.difference = float(apart.max())
        epochs = int(np.argmax(mean <= target)) + 1
        assert training.steps_per_second is not None
        training.seconds_to_loss = epochs * per_epoch / training.steps_per_second
    return target


def _warnings(
    results: dict[str, Result], plan: Plan, shared: batches.Shared, providers: Sequence[str]
) -> list[str]:
    """What to keep in mind, each once."""
    notes = dict.fromkeys(note for r in results.values() for note in r.facts.get("notes", []))
    keys = [*notes, *["adam"] * (plan.optimizer != "sgd"), *["device"] * (set(providers) != {"cpu"})]
    return [*shared.notes, *(_NOTES.get(key, key) for key in keys)]


def _command(model: Opened, provider: str, plan: Plan, data: Source, validation: Source | None) -> str | None:
    """The commands that convert the source and train it so with onnxaccel."""
    if model.trainable is None or not isinstance(data, str):
        return None
    convert = [f"{model.convert} --trainable"] if model.convert else []
    target, spec = shlex.quote(model.target), shlex.quote(data)
    held_out = f" --val {shlex.quote(validation)}" if isinstance(validation, str) else ""
    given = model.asked.preprocessing.items()
    pixels = "".join(f" --{name} {_listed(value)}" for name, value in given if value is not None)
    train = f"onnxaccel train {target} --data {spec}{held_out}{pixels} {plan.options()} --ep {provider}"
    return " && ".join([*convert, f"{train} -o trained.onnx"])


def _listed(value: object) -> str:
    """An option's value: numbers joined by commas."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
