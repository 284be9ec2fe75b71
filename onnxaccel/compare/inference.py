"""The inference side of a comparison: what each candidate takes, how fast it is, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.compare.candidates import Plan, Way, converted, inputs_of, matches, native, optimized
from onnxaccel.compare.native.common import JUDGE
from onnxaccel.compare.results import Batch, Inference, Source
from onnxaccel.compare.sources import Opened
from onnxaccel.data import Source as Data
from onnxaccel.errors import AccelError, ProviderError
from onnxaccel.graph.feeds import relative_error
from onnxaccel.graph.model import Model
from onnxaccel.runtime.measure import Field, Limits, Result, reason
from onnxaccel.runtime.optimize import ORIGINAL, optimize
from onnxaccel.runtime.optimize.samples import collect, read
from onnxaccel.runtime.providers import resolve, usable

Outputs = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class Request:
    """How inference is compared; see `onnxaccel.compare.frame.compare`."""

    threads: int
    data: Data | None = None
    ep: str = "auto"
    batch_sizes: Sequence[int] = (1, 8, 32)
    rounds: int = 5
    seconds: float = 1.0
    seed: int = 0
    optimized: bool = True
    only: Sequence[str] = ()
    max_error: float = 0.01
    pythons: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    gap: float = 0.3
    patience: int = 4


def infer(
    source: Source,
    opened: Sequence[Opened],
    request: Request,
    folder: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, str], list[str]]:
    """Measure all candidates of a source; its rows are added to ``source.candidates``.

    Args:
        source: The source's entry in the result.
        opened: The model in each framework.
        request: How to measure.
        folder: An empty folder for inputs, outputs and variants.
        progress: Called with one line per stage.

    Returns:
        Versions of what ran, by package; and what to keep in mind, one line each.

    Raises:
        DataError: The data is unreadable or does not fit the model.
        ModelError: Nothing can be drawn for an input of unknown rank.
    """
    first = opened[0]
    folder.mkdir(parents=True, exist_ok=True)
    samples = collect(Model.load(first.onnx), request.data, folder, request.seed)
    arrays, _, labels = read(samples.judged)
    plan = _plan(request, first, len(next(iter(arrays.values()))), folder)
    for model in opened:
        _write_inputs(model, first, [arrays[name] for name in first.inputs], plan)
    providers, obstacle = providers_of(request.ep)
    ways = [way for model in opened for way in native(model, plan)] + converted(first, plan, providers)
    ways = [way for way in ways if matches(way.candidate.name, request.only)]
    if not ways and obstacle is None:
        raise AccelError(f"it has no candidate that --only names: {', '.join(request.only)}")
    warnings = []
    variants = request.optimized and any(
        matches(f"onnxaccel {p}, a variant", request.only) for p in providers
    )
    if variants:
        best = _optimized(first, plan, request, folder, progress)
        if isinstance(best, Way):
            ways.append(best)
        else:
            warnings.append(f"{source.name}: {best}")
    measured, judged = _measure(ways, plan, request, progress)
    versions: dict[str, str] = {}
    outputs = {name: _outputs(way) for way in ways if judged.get(name := way.candidate.name, "") is None}
    reference = next((way for way in ways if way.candidate.name in outputs), None)
    runs = min((len(found[0]) for found in outputs.values()), default=0)
    outputs = {name: [array[:runs] for array in found] for name, found in outputs.items()}
    if reference is not None and runs < len(arrays[first.inputs[0]]) // plan.judged:
        warnings.append(
            f"{source.name}: outputs were compared for {runs * plan.judged} samples, for want of time"
        )
    for way in ways:
        name = way.candidate.name
        if way.job is None:
            way.candidate.inference = Inference(failure=way.obstacle)
        else:
            way.candidate.inference = found = _entry(way, [step[name] for step in measured], plan.sizes)
            versions |= measured[0][name].facts.get("versions", {})
            if name in outputs and reference is not None:
                found.relative_error = _difference(way, outputs[name], reference, outputs)
                found.accuracy = _accuracy(outputs[name], labels)
            elif found.failure is None:
                warnings.append(f"{source.name}: {name} gives no outputs to judge: {judged[name]}")
        source.candidates.append(way.candidate)
    if obstacle is not None:
        (row,) = (way.candidate for way in converted(first, plan, [request.ep]))
        row.inference = Inference(failure=obstacle)
        source.candidates.append(row)
    if first.batch is not None and list(request.batch_sizes) != [first.batch]:
        warnings.append(f"{source.name} takes batches of {first.batch} alone")
    return versions, warnings


def _plan(request: Request, first: Opened, samples: int, folder: Path) -> Plan:
    sizes = [first.batch] if first.batch is not None else sorted(set(request.batch_sizes))
    judged = max((size for size in sizes if size <= samples), default=min(sizes[0], samples))
    devices = ("cpu", "cuda") if request.ep != "cpu" and "cuda" in usable() else ("cpu",)
    return Plan(request.threads, sizes, judged, devices, request.pythons, request.limits, folder)


def providers_of(ep: str) -> tuple[list[str], str | None]:
    """The providers to run on, or what is wrong with the one asked for."""
    try:
        return (usable() if ep == "auto" else [resolve(ep).name]), None
    except ProviderError as error:
        return [], str(error)


def _write_inputs(model: Opened, first: Opened, arrays: Outputs, plan: Plan) -> None:
    """The samples as a model takes them: the first one's, images in the model's own layout."""
    for index, array in enumerate(arrays):
        if array.ndim == 4 and model.planar != first.planar:
            array = array.transpose((0, 3, 1, 2) if model.planar else (0, 2, 3, 1))
        np.save(inputs_of(model, plan, index), np.ascontiguousarray(array, model.dtypes[index]))


def _optimized(
    first: Opened, plan: Plan, request: Request, folder: Path, progress: Callable[[str], None]
) -> Way | str:
    """The fastest variant within the budget, or why there is none beside the original."""
    target = folder / "optimized.onnx"
    progress(f"{first.name}: the variants of the converted model are measured")
    try:
        found = optimize(
            first.onnx,
            request.data,
            max_error=request.max_error,
            output=target,
            ep=request.ep,
            batch_sizes=(),
            rounds=request.rounds,
            seconds=request.seconds,
            limits=request.limits,
            patience=request.patience,
            seed=request.seed,
            threads=request.threads,
            progress=progress,
        )
    except AccelError as error:
        return f"there is no optimised variant: {error}"
    if found.winner == ORIGINAL:
        return f"no variant of the converted model is faster within an error of {request.max_error:g}"
    command = f"onnxaccel optimize {first.target} --max-error {request.max_error:g}"
    if isinstance(request.data, str):
        command += f" --data '{request.data}'"
    if first.convert is not None:
        command = f"{first.convert} && {command}"
    return optimized(first, plan, target, found.settings, found.winner, command)


def _measure(
    ways: Sequence[Way], plan: Plan, request: Request, progress: Callable[[str], None]
) -> tuple[list[dict[str, Result]], dict[str, str | None]]:
    """One result per batch size and candidate; and why a candidate could not be judged, or None."""
    jobs = {way.candidate.name: way.job for way in ways if way.job is not None}
    with Field(
        jobs, request.limits, gap=request.gap, patience=request.patience, progress=progress
    ) as candidates:
        measured = []
        for size in plan.sizes:
            progress(f"batches of {size}: {len(jobs)} candidates, {request.rounds} rounds")
            measured.append(candidates.measure(str(size), request.rounds, request.seconds))
        progress("the outputs of all candidates are compared")
        return measured, candidates.run(JUDGE)


def _entry(way: Way, results: Sequence[Result], sizes: Sequence[int]) -> Inference:
    """A candidate's figures."""
    batches = [_batch(result, size) for result, size in zip(results, sizes, strict=True)]
    begun = results[0]
    if all(batch.failure is not None for batch in batches):
        return Inference(size=way.size, failure=_explained(way, str(batches[0].failure)))
    on_gpu = [result.gpu_memory for result in results if result.gpu_memory]
    return Inference(
        batches=batches,
        memory=max(result.memory for result in results),
        gpu_memory=max(on_gpu) if on_gpu else None,
        startup=begun.startup_seconds,
        first_run=begun.first_seconds,
        size=way.size,
    )


def _batch(result: Result, size: int) -> Batch:
    if result.failure is not None:
        return Batch(size, failure=reason(result.failure))
    p50, p90, p99 = (1e3 * result.percentile(share) for share in (0.5, 0.9, 0.99))
    rates = [rate * size for rate in result.rates]
    return Batch(size, p50, p90, p99, result.rate * size, rates, result.disturbed)


def _explained(way: Way, failure: str) -> str:
    """A failure, with the Python that it happened in where that is another one."""
    assert way.job is not None
    elsewhere = failure.startswith("No module named")
    return f"{way.job.python}: {failure}; install it there" if elsewhere else failure


def _outputs(way: Way) -> Outputs:
    """The outputs for the samples, each [runs, batch, ...]."""
    with np.load(way.results) as stored:
        return [stored[str(index)] for index in range(len(stored.files))]


def _difference(way: Way, found: Outputs, reference: Way, outputs: Mapping[str, Outputs]) -> float:
    """The largest relative difference to the reference's outputs; infinite where their number differs."""
    expected = list(outputs[reference.candidate.name])
    found = list(found)
    if len(found) != len(expected):
        return float("inf")
    ours, theirs = way.model.probabilities, reference.model.probabilities
    if ours and not theirs:
        expected[0] = _softmax(expected[0], reference.model.planar)
    elif theirs and not ours:
        found[0] = _softmax(found[0], way.model.planar)
    if way.model.planar != reference.model.planar:
        found = [_turned(array, way.model.planar) for array in found]
    return max(relative_error(a, b) for a, b in zip(found, expected, strict=True))


def _softmax(scores: npt.NDArray[Any], planar: bool) -> npt.NDArray[Any]:
    axis = 2 if planar and scores.ndim == 5 else -1
    powers = np.exp(scores - scores.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


def _turned(array: npt.NDArray[Any], planar: bool) -> npt.NDArray[Any]:
    """Runs of images in the other layout."""
    if array.ndim != 5:
        return array
    return array.transpose((0, 1, 3, 4, 2) if planar else (0, 1, 4, 2, 3))


def _accuracy(outputs: Outputs, labels: npt.NDArray[Any] | None) -> float | None:
    """The share of samples whose highest score is that of their class."""
    if labels is None:
        return None
    runs, batch = outputs[0].shape[:2]
    chosen = outputs[0].reshape(runs * batch, -1).argmax(1)
    return float(np.mean(chosen == labels[: len(chosen)]))
