"""`optimize`: the fastest variant of a model on this machine, within a budget of error.

All of it is measured: first the graphs (the original, fused, fp16, int8) and the providers run against each
other, then the threads and the layout of the best one, then the winner once more against the original. Each
candidate is built, judged and measured in processes of its own; see `onnxaccel.runtime.measure`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from onnxaccel.data import Source
from onnxaccel.errors import AccelError
from onnxaccel.files import scratch_folder
from onnxaccel.graph.model import Model, SessionSettings
from onnxaccel.protect.memory import memory_folder
from onnxaccel.runtime import distributed
from onnxaccel.runtime.measure import Limits
from onnxaccel.runtime.optimize.profile import profile
from onnxaccel.runtime.optimize.results import Candidate, Optimization, Row
from onnxaccel.runtime.optimize.search import ORIGINAL, Search, best_batch
from onnxaccel.runtime.providers import resolve, usable


def optimize(
    model: Model | str | os.PathLike[str],
    data: Source | None = None,
    *,
    max_error: float = 0.01,
    output: str | os.PathLike[str] | None = None,
    ep: str = "auto",
    variants: Sequence[str] | None = None,
    batch_size: int | None = None,
    batch_sizes: tuple[int, ...] = (1, 4, 16, 64),
    rounds: int = 5,
    seconds: float = 1.0,
    limits: Limits = Limits(),  # noqa: B008  frozen
    patience: int = 4,
    with_profile: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Optimization:
    """Find the fastest variant of a model within a budget of error, and save it.

    Args:
        model: The model or its path, in inference form.
        data: Data to calibrate on and to compare with; None: random inputs, and the error is relative.
        max_error: The largest loss of accuracy where the data has class labels (0.01: one percent point),
            else the largest relative error of the outputs.
        output: Where to write the winner; None: nowhere.
        ep: "auto": all providers usable here; else the one to try.
        variants: Which variants to try, of `onnxaccel.runtime.optimize.variants`; None: all.
        batch_size: Samples per run at which latency is measured; the model's own where that is fixed, else 1.
        batch_sizes: Where the model leaves the batch open: sizes to measure the winner's throughput at.
        rounds: Turns of each candidate.
        seconds: Seconds of a turn.
        limits: Time and memory that a candidate may take.
        patience: How often a turn is tried while the machine is busy.
        with_profile: Also find where the winner's time goes, by operator.
        seed: Seed of the samples.
        threads: Threads of every candidate; None: how many are best is found out.
        progress: Called with one line per stage.

    Raises:
        AccelError: This is one of several processes.
        ModelError: The model does not run as it is.
        DataError: The data is unreadable or does not fit the model.
        ProviderError: The provider is not usable here.
        OutputError: ``output`` cannot be written.
    """
    if distributed.size_of_group() > 1:
        raise AccelError("optimize measures one machine by itself; start it once, not under torchrun")
    model = model if isinstance(model, Model) else Model.load(model)
    providers = usable() if ep == "auto" else [resolve(ep).name]
    with scratch_folder() if model.key is None else memory_folder() as folder:
        search = Search(model, data, folder, max_error, limits, batch_size, seed, threads)
        timing = {
            "rounds": rounds,
            "seconds": seconds,
            "limits": limits,
            "patience": patience,
            "progress": progress,
        }
        search.compare(search.graphs(providers, variants, progress), timing)
        search.compare(search.tunings(), timing)
        winner = search.confirm(timing)
        found = search.report(winner)
        if search.samples.fixed_batch is None and batch_sizes:
            found.throughput_by_batch, found.speedup_by_batch = search.throughput(winner, batch_sizes, timing)
            if found.throughput_by_batch:
                chosen = best_batch(found.throughput_by_batch)
                found.settings = replace(found.settings, batch_size=chosen)
                ratio = found.speedup_by_batch.get(chosen, 1.0)
                if ratio < 1:
                    found.warnings.append(
                        f"in batches of {chosen} the original is faster: {winner.name} {ratio:.2f}x; "
                        f"with --batch-size {chosen} the search is for that"
                    )
        if with_profile:
            found.profile = profile(
                winner.file, winner.settings, search.samples.judged, search.batch_size, search.secret
            )
        if output is not None:
            found.output = str(_save(model, winner, found.settings, Path(output)))
    return found


def _save(model: Model, winner: Candidate, settings: SessionSettings, output: Path) -> Path:
    """Write the winner with the original's metadata and the settings that made it fast."""
    chosen = Model.load(winner.file)
    chosen.metadata = copy.deepcopy(model.metadata)
    chosen.metadata.session = settings
    chosen.key = model.key
    if winner.variant != ORIGINAL:
        chosen.metadata.trainable = []
    return chosen.save(output)


__all__ = ["ORIGINAL", "Limits", "Optimization", "Row", "optimize"]
