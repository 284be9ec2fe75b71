"""The search: candidates, what was measured of each, and which one wins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxaccel.data import Source
from onnxaccel.errors import ModelError
from onnxaccel.graph.feeds import relative_error
from onnxaccel.graph.model import PROTO_LIMIT, Model, SessionSettings
from onnxaccel.runtime import measure
from onnxaccel.runtime.measure import ENVIRONMENT, Failed, Job, Limits, Result, reason
from onnxaccel.runtime.optimize.results import Candidate, Optimization, Row
from onnxaccel.runtime.optimize.samples import Samples, collect
from onnxaccel.runtime.optimize.variants import variant

ORIGINAL = "fp32"
"""What the table calls the model as it was given."""

WIN = 1.05
"""A variant must be at least this much faster than the original to replace it, ..."""

WINS = 0.75
"""... and faster in this share of the rounds."""

_PROVIDER_OPTIONS: dict[str, tuple[dict[str, str], ...]] = {
    "cpu": ({},),
    "cuda": ({}, {"use_tf32": "1"}, {"use_tf32": "1", "prefer_nhwc": "1"}),
    "tensorrt": ({}, {"trt_fp16_enable": "1"}),
    "tensorrt-rtx": ({},),
    "openvino": ({},),
}
"""Options that are tried on each provider."""

_PACKAGE = "onnxaccel.runtime.optimize"


class Search:
    """The candidates so far and what was found out about them."""

    def __init__(
        self,
        model: Model,
        data: Source | None,
        folder: Path,
        max_error: float,
        limits: Limits,
        batch_size: int | None,
        seed: int,
    ) -> None:
        if model.nbytes > PROTO_LIMIT:
            raise ModelError("models of over 2 GB are not optimized: their variants fit no ONNX file")
        self._folder, self._limits, self._max_error = folder, limits, max_error
        plain = model.copy()
        plain.metadata.session = None
        self._original = plain.save(folder / "original.onnx")
        self.samples: Samples = collect(model, data, folder, seed)
        self.batch_size = self.samples.fixed_batch or batch_size or 1
        self._candidates: dict[str, Candidate] = {}
        self._rows: dict[str, Row] = {}

    # -- candidates ---------------------------------------------------------------------------------

    def graphs(
        self, providers: list[str], variants: Sequence[str] | None, progress: Callable[[str], None]
    ) -> list[Candidate]:
        """The original and its variants on each provider; those that cannot be built become rows."""
        files = {ORIGINAL: self._original}
        unknown = [name for name in variants or () if name not in variant]
        if unknown:
            raise ModelError(f"unknown variant {unknown[0]!r}; choose of {', '.join(variant)}")
        for name in variant if variants is None else variants:
            progress(f"{name}: is built")
            target = self._folder / f"{name.replace(' ', '-')}.onnx"
            try:
                measure.once(
                    self._job("variants:build", {"variant": name, "target": str(target)}), self._limits
                )
                files[name] = target
            except Failed as error:
                self._rows[name] = Row(name, verdict=f"cannot be built: {reason(str(error))}")
        found = []
        for provider in providers:
            for options in _PROVIDER_OPTIONS[provider]:
                for name, file in files.items():
                    label = " ".join([name, *_label(provider, options)])
                    found.append(Candidate(label, name, file, SessionSettings(provider, options)))
        return found

    def threads(self) -> list[Candidate]:
        """The original, the best graph so far, and that with other threads and with threads that sleep."""
        best = self.winner()
        if best.settings.provider != "cpu":
            return []
        cores = measure.cores()
        changes = {
            f"{best.name}, {n} thread{'s' * (n > 1)}": replace(best.settings, threads=n)
            for n in sorted({1, cores // 2, cores} - {0})
        }
        changes[f"{best.name}, no spinning"] = replace(best.settings, spinning=False)
        original = self._candidates[self._reference]
        return list({c.name: c for c in (original, best)}.values()) + [
            replace(best, name=name, settings=settings) for name, settings in changes.items()
        ]

    # -- measuring ----------------------------------------------------------------------------------

    def compare(self, candidates: list[Candidate], timing: Mapping[str, Any]) -> None:
        """Judge candidates and measure them against the original, which is the first of them."""
        if not candidates:
            return
        self._reference = candidates[0].name
        running = {}
        for candidate in candidates:
            row = self._rows.setdefault(candidate.name, Row(candidate.name))
            self._candidates[candidate.name] = candidate
            if row.error is None and not self._judge(candidate, row):
                continue
            running[candidate.name] = Job(
                f"{_PACKAGE}.candidate:run",
                {**self._setup(candidate), "batch_size": self.batch_size},
                environment=ENVIRONMENT,
            )
        if self._reference not in running:
            why = self._rows[self._reference].verdict.removeprefix("does not run: ")
            raise ModelError(f"the model does not run as it is: {why}")
        results = measure.measure(running, **timing)
        base = results[self._reference]
        if base.failure is not None:
            raise ModelError(f"the model does not run as it is: {base.failure}")
        for name, result in results.items():
            self._enter(self._rows[name], result, base)

    def throughput(
        self, winner: Candidate, sizes: tuple[int, ...], timing: Mapping[str, Any]
    ) -> dict[int, float]:
        """The winner's samples per second at several batch sizes; those that fail are left out."""
        jobs = {
            str(size): Job(
                f"{_PACKAGE}.candidate:run",
                {**self._setup(winner), "batch_size": size},
                environment=ENVIRONMENT,
            )
            for size in sizes
        }
        results = measure.measure(jobs, **{**timing, "rounds": min(2, timing["rounds"])})
        return {int(size): r.rate * int(size) for size, r in results.items() if r.failure is None}

    def _judge(self, candidate: Candidate, row: Row) -> bool:
        """Compare a candidate's results with the original's; False if it does not run."""
        setup = self._setup(candidate)
        row.size = candidate.file.stat().st_size
        try:
            facts = measure.once(self._job("candidate:judge", setup), self._limits)
        except Failed as error:
            row.verdict = f"does not run: {reason(str(error))}"
            return False
        row.accuracy = facts["accuracy"]
        reference = self._rows[self._reference]
        with np.load(setup["outputs"]) as actual, np.load(self._outputs(self._reference)) as expected:
            pairs = [(actual[name], expected[name]) for name in expected.files]
        row.relative_error = max((relative_error(a, e) for a, e in pairs), default=0.0)
        if row.accuracy is not None and reference.accuracy is not None:
            row.error = reference.accuracy - row.accuracy
        else:
            row.error = row.relative_error
        return True

    def _enter(self, row: Row, result: Result, base: Result) -> None:
        if result.failure is not None:
            row.verdict = f"does not run: {reason(result.failure)}"
            row.error = None
            return
        row.p50, row.p90, row.p99 = (1e3 * result.percentile(share) for share in (0.5, 0.9, 0.99))
        row.throughput = result.rate * self.batch_size
        row.speedup = base.percentile(0.5) / result.percentile(0.5)
        pairs = list(zip(result.rates, base.rates, strict=True))
        row.rounds_won = sum(ours > theirs for ours, theirs in pairs) / len(pairs)
        row.memory, row.disturbed = result.memory, result.disturbed

    # -- the answer ---------------------------------------------------------------------------------

    def winner(self) -> Candidate:
        """The fastest candidate within the budget; the original unless one is faster by more than noise."""
        best = self._reference
        for name, row in self._rows.items():
            if row.speedup is None or row.error is None or row.error > self._max_error:
                continue
            if _wins(row) and row.speedup > (self._rows[best].speedup or 1.0):
                best = name
        return self._candidates[best]

    def report(self, winner: Candidate) -> Optimization:
        """All that was found out, each row with its verdict."""
        won = self._rows[winner.name]
        for name, row in self._rows.items():
            row.verdict = row.verdict or self._verdict(name, row, winner.name, won)
        warnings = []
        if self.samples.synthetic:
            warnings.append(
                "no --data: int8 was calibrated, and errors were measured, on random inputs; "
                "real data may give other ranges and errors"
            )
        disturbed = sum(row.disturbed for row in self._rows.values())
        if disturbed:
            warnings.append(
                f"other programs kept the machine busy in {disturbed} turns; run again when it is idle"
            )
        return Optimization(
            winner.name,
            won.speedup or 1.0,
            won.error or 0.0,
            "accuracy" if self.samples.has_labels else "relative_error",
            self._max_error,
            self.batch_size,
            copy.deepcopy(winner.settings),
            list(self._rows.values()),
            warnings=warnings,
        )

    def _verdict(self, name: str, row: Row, winner: str, won: Row) -> str:
        if name == winner:
            original = name == self._reference
            return "nothing is faster within the budget" if original else "the fastest within the budget"
        if name == self._reference:
            return "the original"
        assert row.error is not None and row.speedup is not None
        if row.error > self._max_error:
            what = "loses accuracy" if self.samples.has_labels else "error"
            return f"{what} {row.error:.3g}, over the budget of {self._max_error:g}"
        if row.speedup < 1 / WIN:
            return f"slower than the original ({row.speedup:.2f}x)"
        if not _wins(row):
            return f"not faster than the original beyond noise ({row.speedup:.2f}x)"
        return f"{row.speedup:.2f}x, the winner {won.speedup:.2f}x"

    # -- jobs ---------------------------------------------------------------------------------------

    def _job(self, function: str, setup: Mapping[str, Any]) -> Job:
        base = {"source": str(self._original), "samples": str(self.samples.calibration)}
        return Job(f"{_PACKAGE}.{function}", {**base, **setup}, environment=ENVIRONMENT)

    def _setup(self, candidate: Candidate) -> dict[str, Any]:
        return {
            "model": str(candidate.file),
            "settings": asdict(candidate.settings),
            "samples": str(self.samples.judged),
            "outputs": str(self._outputs(candidate.name)),
        }

    def _outputs(self, name: str) -> Path:
        return self._folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.outputs.npz"


def _wins(row: Row) -> bool:
    """Whether a candidate is faster than the original by more than noise."""
    return (row.speedup or 0.0) >= WIN and (row.rounds_won or 0.0) >= WINS


def _label(provider: str, options: Mapping[str, str]) -> list[str]:
    on = [] if provider == "cpu" else [f"on {provider}"]
    return on + [f"{name}={value}" for name, value in options.items()]
