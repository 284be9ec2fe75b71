"""`compare`: models in their own frameworks beside onnxaccel, and which to choose."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from onnxaccel.compare.inference import Request, infer, providers_of
from onnxaccel.compare.recommend import recommend
from onnxaccel.compare.results import (
    GOALS,
    Candidate,
    Comparison,
    Inference,
    Machine,
    Settings,
    Source,
    Training,
)
from onnxaccel.compare.sources import Asked, Opened, open_source
from onnxaccel.compare.training import LIMITS
from onnxaccel.compare.training import train as train_sides
from onnxaccel.compare.training.plan import Plan
from onnxaccel.data import Source as Data
from onnxaccel.data import as_dataset
from onnxaccel.errors import AccelError
from onnxaccel.files import scratch_folder
from onnxaccel.runtime import distributed
from onnxaccel.runtime.measure import GAP, Limits, cores
from onnxaccel.runtime.providers import resolve
from onnxaccel.version import __version__

FRAMEWORKS = ("tensorflow", "pytorch", "caffe", "opencv")
"""What ``pythons`` may name."""

PATIENT = Limits(300.0)
"""What a candidate may take unless given: a compiler may work for minutes on its first run."""

_TITLES = {"tensorflow": "TensorFlow", "pytorch": "PyTorch", "caffe": "Caffe"}

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "keras")
"""Packages whose versions are told beside those that candidates tell of themselves."""


def compare(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    data: Data | None = None,
    *,
    validation: Data | None = None,
    inference: bool = True,
    train: bool = False,
    training: Mapping[str, Any] | None = None,
    goal: str | None = None,
    ep: str = "auto",
    threads: int = 0,
    batch_sizes: Sequence[int] = (1, 8, 32),
    rounds: int = 5,
    seconds: float = 1.0,
    seed: int = 0,
    only: Sequence[str] = (),
    optimized: bool = True,
    max_error: float = 0.01,
    factory: str | None = None,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    trust_pickle: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
    pythons: Mapping[str, str] | None = None,
    limits: Limits = PATIENT,
    patience: int = 4,
    gap: float = GAP,
    progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compare models in their own frameworks with what onnxaccel makes of them.

    Args:
        sources: What to compare: "models:NAME", an ONNX file, or a model's files joined by commas, see
            `onnxaccel.compare.sources`.
        data: Data for the accuracy, the calibration and the training; None: random inputs.
        validation: Data for the accuracy after training; None: none is measured.
        inference: Whether to compare inference.
        train: Whether to compare training; needs ``data``.
        training: What all sides train with, see `onnxaccel.compare.training.train`.
        goal: One of `onnxaccel.compare.results.GOALS`; its recommendation comes first.
        ep: "auto": onnxaccel on all providers usable here; else the one to try.
        threads: Threads of each candidate; 0: as many as there are processors.
        batch_sizes: Batch sizes of the inference; a model that is fixed to one has that alone.
        rounds: Turns of each candidate.
        seconds: Seconds of a turn.
        seed: Seed of weights, order of the data, and random inputs.
        only: Patterns of candidates' names, as "PyTorch *": no others run; empty: all.
        optimized: Also look for the fastest variant of the converted model, see `onnxaccel.runtime.optimize`.
        max_error: Its budget: the largest loss of accuracy, or without labels the largest relative error.
        factory: "module:callable" that builds the torch module a state dict belongs to.
        shapes: Shape by input name, see `onnxaccel.convert`.
        inputs: Tensors to cut a TensorFlow graph at; empty: inferred.
        outputs: Tensors to end it at; empty: inferred.
        trust_pickle: Allow files that run code when they are loaded.
        preprocessing: How data becomes the input: "mean", "scale", "layout"; the rest is as the model's
            metadata say.
        pythons: Path of the Python of a framework that lives in another environment, by the framework's name.
        limits: Time and memory that each candidate may take.
        patience: How often a turn is tried while the machine is busy.
        gap: Seconds of quiet before a turn.
        progress: Called with one line per stage.

    Returns:
        All that was found. A source, or a candidate, that fails is an entry with its reason.

    Raises:
        DataError: There is no data to train on, or it is unreadable.
        AccelError: There is nothing to compare, or an argument makes no sense.
    """
    if distributed.size_of_group() > 1:
        raise AccelError("compare measures one machine by itself; start it once, not under torchrun")
    given = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    names = [os.fspath(source) for source in given]
    _check(names, data, train, inference, batch_sizes, pythons or {})
    if goal is not None and goal not in GOALS:
        raise AccelError(f"unknown goal {goal!r}; choose one of {', '.join(GOALS)}")
    request = Request(
        threads=threads or cores(),
        data=data,
        ep=ep,
        batch_sizes=batch_sizes,
        rounds=rounds,
        seconds=seconds,
        seed=seed,
        only=only,
        optimized=optimized,
        max_error=max_error,
        pythons=pythons or {},
        limits=limits,
        gap=gap,
        patience=patience,
    )
    asked = Asked(
        factory=factory,
        shapes=shapes,
        inputs=inputs,
        outputs=outputs,
        trust_pickle=trust_pickle,
        preprocessing=preprocessing or {},
        data=data,
        train=train,
        seed=seed,
        pythons=pythons or {},
        limits=limits,
    )
    plan = Plan.of(training, data) if train and data is not None else None
    settings = Settings(request.threads, "fp32", list(batch_sizes), _named(data), rounds, seconds, seed)
    settings.training = asdict(plan) if plan is not None else None
    made = Comparison(_now(), _machine(), settings, [])
    for name in dict.fromkeys(names):
        with scratch_folder() as folder:
            made.sources.append(_one(name, asked, request, folder, validation, inference, made, progress))
    if data is None:
        made.warnings.append("no data: inputs are random, and no accuracy was measured")
    if plan is not None:
        settings.training = plan.shared()
    if goal is not None:
        for source in made.sources:
            source.recommendations.sort(key=lambda answer: answer.goal != goal)
    disturbed = _disturbed(made)
    if disturbed:
        made.warnings.append(
            f"other programs kept the machine busy in {disturbed} turns; run again when it is idle"
        )
    return made


def _one(
    name: str,
    asked: Asked,
    request: Request,
    folder: Path,
    validation: Data | None,
    inference: bool,
    made: Comparison,
    progress: Callable[[str], None],
) -> Source:
    """Everything about one source."""
    source, opened, failures = open_source(name, asked, folder / "models", progress)
    if not opened:
        return source
    try:
        if inference:
            versions, notes = infer(source, opened, request, folder / "inference", progress)
            made.machine.versions.update(versions)
            made.warnings += notes
        if asked.train:
            _train(source, opened, request, validation, made, progress)
    except AccelError as error:
        source.failure = str(error)
    for framework, why in failures.items():
        row = Candidate(_TITLES[framework], framework, "")
        row.inference = Inference(failure=why) if inference else None
        row.training = Training(failure=why) if asked.train else None
        source.candidates.append(row)
    source.recommendations = recommend(source, made.settings)
    return source


def _train(
    source: Source,
    opened: Sequence[Opened],
    request: Request,
    validation: Data | None,
    made: Comparison,
    progress: Callable[[str], None],
) -> None:
    """Train the source on all sides; each candidate's training goes into its row."""
    assert request.data is not None
    providers = [name for name in providers_of(request.ep)[0] if resolve(name).trains]
    found = train_sides(
        opened,
        request.data,
        validation,
        made.settings,
        providers=providers,
        only=request.only,
        limits=replace(request.limits, seconds=max(LIMITS.seconds, request.limits.seconds)),
        gap=request.gap,
        patience=request.patience,
        progress=progress,
    )
    rows = {row.name: row for row in source.candidates}
    for side in found.candidates:
        row = rows.get(side.name)
        if row is None:
            source.candidates.append(side)
        else:
            row.training = side.training
    source.target_loss = found.target_loss
    made.warnings += [f"{source.name}: {line}" for line in found.warnings]


def _check(
    names: Sequence[str],
    data: Data | None,
    train: bool,
    inference: bool,
    batch_sizes: Sequence[int],
    pythons: Mapping[str, str],
) -> None:
    """Refuse what makes no sense, before anything runs."""
    if not names:
        raise AccelError("nothing to compare: give models:NAME, or a model's files joined by commas")
    if not (inference or train):
        raise AccelError("neither inference nor training is to be compared")
    if not batch_sizes or min(batch_sizes) < 1:
        raise AccelError(f"batch sizes {list(batch_sizes)}: give at least one, each at least 1")
    if train and data is None:
        raise AccelError("training needs data: give --data SPEC")
    for framework, python in pythons.items():
        if framework not in FRAMEWORKS:
            raise AccelError(f"--python {framework}={python}: choose of {', '.join(FRAMEWORKS)}")
        if not os.access(python, os.X_OK) or Path(python).is_dir():
            raise AccelError(f"--python {framework}={python}: there is no such program")
    if data is not None:
        as_dataset(data)


def _named(data: Data | None) -> str | None:
    return data if data is None or isinstance(data, str) else as_dataset(data).source


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _machine() -> Machine:
    versions = {"onnxaccel": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    system = f"{platform.system()} {platform.release()}"
    return Machine(_processor(), cores(), memory, _gpus(), system, versions)


def _processor() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _gpus() -> list[str]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if not done.returncode else []


def _disturbed(made: Comparison) -> int:
    rows = [row for source in made.sources for row in source.candidates]
    batches = [batch for row in rows if row.inference is not None for batch in row.inference.batches]
    steps = [row.training.disturbed for row in rows if row.training is not None]
    return sum(batch.disturbed for batch in batches) + sum(steps)
