"""Where a model's time goes, by operator, from onnxruntime's own profiler."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxaccel.files import scratch_folder
from onnxaccel.graph.model import SessionSettings
from onnxaccel.runtime.optimize.samples import feed_of
from onnxaccel.runtime.providers import resolve
from onnxaccel.runtime.session import Session

RUNS = 20


@dataclass(frozen=True)
class OperatorTime:
    """The time of all nodes of one operator on one provider.

    Attributes:
        operator: The operator; one that onnxruntime fused has its name.
        provider: The execution provider that ran it.
        nodes: Nodes of it in the optimized graph.
        milliseconds: Time per run of the model, each node's median.
        share: Part of the time of all nodes.
    """

    operator: str
    provider: str
    nodes: int
    milliseconds: float
    share: float


def profile(
    path: Path, settings: SessionSettings, samples: Path, batch_size: int, secret: bool = False
) -> list[OperatorTime]:
    """Run a model under onnxruntime's profiler.

    Args:
        path: The model's file.
        settings: How to run it.
        samples: A .npz of inputs, see `onnxaccel.runtime.optimize.samples`.
        batch_size: Samples per run.
        secret: Let nothing of the model reach the disk; its own folder is in memory.

    Returns:
        One entry per operator and provider, the slowest first.
    """
    feed = feed_of(samples, batch_size)
    provider = resolve(settings.provider or "cpu", settings.options)
    with scratch_folder(path.parent if secret else None) as folder:
        session = Session(path, provider, settings=settings, profile=folder, secret=secret)
        for _ in range(RUNS + 1):
            session.run(feed)
        events = json.loads(Path(session.raw.end_profiling()).read_text())
    return summary(events)


def summary(events: Iterable[Mapping[str, Any]]) -> list[OperatorTime]:
    """Times by operator from the profiler's events; the first run of each node is left out."""
    durations: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            facts = event["args"]
            key = facts["op_name"], facts.get("provider", "").removesuffix("ExecutionProvider").lower()
            durations[key][event["name"]].append(event["dur"])
    times = {
        key: sum(float(np.median(runs[1:] or runs)) for runs in nodes.values()) / 1e3
        for key, nodes in durations.items()
    }
    total = sum(times.values()) or 1.0
    found = [
        OperatorTime(operator, provider, len(durations[operator, provider]), time, time / total)
        for (operator, provider), time in times.items()
    ]
    return sorted(found, key=lambda entry: -entry.milliseconds)
