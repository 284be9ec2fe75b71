"""Loss and accuracy of a model over a data set."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxaccel.data import Source, batches, label_kind
from onnxaccel.errors import DataError
from onnxaccel.graph.autodiff import as_model
from onnxaccel.graph.losses import TARGET, Loss
from onnxaccel.graph.model import Model
from onnxaccel.graph.training import CORRECT, LOSS, SCORES, evaluation_step
from onnxaccel.runtime import distributed
from onnxaccel.runtime.distributed import Group
from onnxaccel.runtime.metrics import made
from onnxaccel.runtime.providers import Provider
from onnxaccel.runtime.session import Session, provider_for, short

Batch = tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        loss: Mean loss per sample.
        accuracy: Share of right predictions, or None where there are no classes.
        samples: Number of samples.
        samples_per_second: Throughput, reading the data included.
        provider: The execution provider.
        metrics: The other metrics asked for, by name.
    """

    loss: float
    accuracy: float | None
    samples: int
    samples_per_second: float
    provider: str
    metrics: dict[str, Any] = field(default_factory=dict)


class Evaluator:
    """Evaluates batches; a trainer keeps one and feeds it the weights where they lie.

    Args:
        graph: A graph made by `onnxaccel.graph.training.evaluation_step`.
        provider: Where to run.
        threads: Threads within an operator; 0 leaves it to onnxruntime.
        metrics: Names of `onnxaccel.runtime.metrics.metric`; the graph must give SCORES for any.
    """

    def __init__(
        self, graph: Model, provider: Provider, threads: int = 0, metrics: Sequence[str] = ()
    ) -> None:
        self._session = Session(graph, provider, threads)
        self._metrics = list(metrics)

    def run(
        self,
        data: Iterable[Batch],
        weights: Mapping[str, ort.OrtValue] | None = None,
        group: Group = Group(),  # noqa: B008  one process has no state
    ) -> Evaluation:
        """Evaluate all batches of ``data``; ``weights`` are values for the graph's fed initializers.

        Each process of ``group`` gives its share of the data, and gets the result of the whole.
        """
        started = time.perf_counter()
        loss = right = 0.0
        samples = 0
        metrics = made(self._metrics)
        for feed, target in data:
            if not len(target):  # this process's share of a last batch of few samples
                continue
            results = self._batch(feed, target, weights or {})
            for metric in metrics.values():
                metric.add(results[SCORES], target)
            loss += float(results[LOSS]) * len(target)
            right += float(results.get(CORRECT, math.nan))
            samples += len(target)
        parts = group.gather(
            (loss, right, samples, {name: metric.totals for name, metric in metrics.items()})
        )
        losses, rights, counts, totals = zip(*parts, strict=True)
        samples = sum(counts)
        if not samples:
            raise DataError("there is no sample to evaluate")
        for name, metric in metrics.items():
            metric.totals = sum(found for part in totals if (found := part[name]) is not None)
        seconds = time.perf_counter() - started
        right = math.fsum(rights)
        return Evaluation(
            math.fsum(losses) / samples,
            None if math.isnan(right) else right / samples,
            samples,
            samples / seconds,
            self._session.provider.name,
            {name: metric.value() for name, metric in metrics.items()},
        )

    def _batch(
        self, feed: dict[str, npt.NDArray[Any]], target: npt.NDArray[Any], weights: Mapping[str, ort.OrtValue]
    ) -> dict[str, npt.NDArray[Any]]:
        binding = self._session.raw.io_binding()
        given = {**feed, TARGET: target} if TARGET in self._session.input_names else feed
        for name, array in given.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._session.input_names:
            if name in weights:
                binding.bind_ortvalue_input(name, weights[name])
        for name in self._session.output_names:
            binding.bind_output(name)
        try:
            self._session.raw.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise DataError(f"the model does not run on this data: {short(error)}") from None
        return dict(zip(self._session.output_names, binding.copy_outputs_to_cpu(), strict=True))


def evaluate(
    model: Model | str | os.PathLike[str],
    data: Source,
    *,
    loss: str | Loss | None = None,
    ep: str | Provider = "auto",
    batch_size: int | None = None,
    threads: int = 0,
    metrics: Sequence[str] = (),
) -> Evaluation:
    """Loss and accuracy of a model over a data set, which the processes share where there are several.

    Args:
        model: The model or its path, in inference form.
        data: A data SPEC ("mnist#test"), a data set, or a pair of arrays (x, y).
        loss: The loss; None: cross entropy for class labels, mean squared error for all other targets.
        ep: The execution provider; "auto": the one that `optimize` found best, else the best usable one.
        batch_size: Samples per batch; None: as `optimize` recorded in the model, else 256.
        threads: Threads within an operator; 0 leaves it to onnxruntime.
        metrics: Further metrics: "top5", "mae", "confusion".

    Raises:
        DataError: The data is unreadable, empty or does not fit the model.
        ProviderError: The provider is not usable here.
    """
    model = as_model(model)
    recorded = model.metadata.session
    batch_size = batch_size or (recorded.batch_size if recorded is not None else None) or 256
    loss = loss or label_kind(data)
    made(metrics)  # refuses an unknown name before anything runs
    graph = evaluation_step(model, loss, scores=bool(metrics))
    provider = provider_for(model, ep)
    group = distributed.join(provider.device)
    evaluator = Evaluator(graph, provider, distributed.threads_each(threads), metrics)
    loader = batches(data, model, batch_size, loss=loss, share=group.share)
    return evaluator.run(loader, group=group)
