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
from onnxaccel.runtime.providers.options import TRIED

ORIGINAL = "fp32"
"""What the table calls the model as it was given."""

WIN = 1.05
"""A variant must be at least this much faster than the original to replace it, ..."""

WINS = 0.75
"""... and faster in this share of the rounds."""

ATTEMPTS = 3
"""How many of the fastest are measured again before the original stays."""

SPARE = 0.95
"""Share of the best throughput that makes a smaller batch the better choice."""

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
        threads: int | None = None,
    ) -> None:
        if model.nbytes > PROTO_LIMIT:
            raise ModelError("models of over 2 GB are not optimized: their variants fit no ONNX file")
        self._folder, self._limits, self._max_error = folder, limits, max_error
        self._threads = threads
        plain = model.copy()
        plain.metadata.session = None
        self.secret = (
            model.key is not None
        )  # then the folder is in memory, and all that is written goes there
        self._environment = ENVIRONMENT | ({"TMPDIR": str(folder)} if self.secret else {})
        plain.key = None
        self._original = plain.save(folder / "original.onnx")
        self._convolves = any(node.op_type == "Conv" for node in plain.graph)
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
            for options in TRIED[provider]:
                for name, file in files.items():
                    label = " ".join([name, *_label(provider, options)])
                    settings = SessionSettings(provider, options, self._threads or 0)
                    found.append(Candidate(label, name, file, settings))
        return found

    def tunings(self) -> list[Candidate]:
        """The original, the best graph so far, and that with other threads and another layout inside."""
        best = self.leader()
        if best.settings.provider != "cpu":
            return []
        cores = measure.cores()
        tried = sorted({1, cores // 2, cores} - {0}) if self._threads is None else []
        changes = {
            f"{best.name}, {n} thread{'s' * (n > 1)}": replace(best.settings, threads=n) for n in tried
        }
        changes[f"{best.name}, no spinning"] = replace(best.settings, spinning=False)
        if self._convolves:  # from "all" on onnxruntime blocks their channels, and reorders data around them
            changes[f"{best.name}, plain layout"] = replace(best.settings, graph_optimization="extended")
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
            running[candidate.name] = self._running(candidate, self.batch_size)
        if self._reference not in running:
            why = self._rows[self._reference].verdict.removeprefix("does not run: ")
            raise ModelError(f"the model does not run as it is: {why}")
        results = measure.measure(running, **timing)
        base = results[self._reference]
        if base.failure is not None:
            raise ModelError(f"the model does not run as it is: {base.failure}")
        for name, result in results.items():
            self._enter(self._rows[name], result, base)

    def confirm(self, timing: Mapping[str, Any]) -> Candidate:
        """The fastest candidate that is faster than the original also in rounds of their own.

        The first one was picked for its figures, so these flatter it; the second ones do not.
        """
        original = self._candidates[self._reference]
        for name in self._in_line()[:ATTEMPTS]:
            candidate, row = self._candidates[name], self._rows[name]
            pair = {c.name: self._running(c, self.batch_size) for c in (original, candidate)}
            base, again = measure.measure(pair, **timing).values()
            if base.failure is None and again.failure is None:
                row.confirmed, won = _compared(again, base)
                row.disturbed += again.disturbed
                if _wins(row.confirmed, won):
                    return candidate
            row.verdict = f"{row.speedup:.2f}x at first, " + (
                f"but {row.confirmed:.2f}x when measured again" if row.confirmed else "but then it failed"
            )
        return original

    def throughput(
        self, winner: Candidate, sizes: tuple[int, ...], timing: Mapping[str, Any]
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Samples per second of the winner by batch size, and how many times the original's that is.

        Sizes that fail are left out.
        """
        pair = {c.name: c for c in (winner, self._candidates[self._reference])}
        jobs = {f"{name} {size}": self._running(c, size) for size in sizes for name, c in pair.items()}
        results = measure.measure(jobs, **{**timing, "rounds": min(2, timing["rounds"])})
        found = {name: [results[f"{name} {size}"] for size in sizes] for name in pair}
        ours = {size: r for size, r in zip(sizes, found[winner.name], strict=True) if r.failure is None}
        theirs = {size: r for size, r in zip(sizes, found[self._reference], strict=True) if r.failure is None}
        rates = {size: result.rate * size for size, result in ours.items()}
        return rates, {size: r.rate / theirs[size].rate for size, r in ours.items() if size in theirs}

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
        row.speedup, row.rounds_won = _compared(result, base)
        row.memory, row.disturbed = result.memory, result.disturbed

    # -- the answer ---------------------------------------------------------------------------------

    def leader(self) -> Candidate:
        """The fastest candidate within the budget so far; the original unless one is faster beyond noise."""
        return self._candidates[next(iter(self._in_line()), self._reference)]

    def _in_line(self) -> list[str]:
        """Names of the candidates within the budget that were faster beyond noise, the fastest first."""
        rows = [
            row
            for row in self._rows.values()
            if row.error is not None and row.error <= self._max_error and _wins(row.speedup, row.rounds_won)
        ]
        return [row.name for row in sorted(rows, key=lambda row: -(row.speedup or 0.0))]

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
            won.confirmed or 1.0,
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
            if name == self._reference:
                return "nothing is faster within the budget"
            return f"the fastest within the budget; {row.confirmed:.2f}x when measured again"
        if name == self._reference:
            return "the original"
        assert row.error is not None and row.speedup is not None
        if row.error > self._max_error:
            what = "loses accuracy" if self.samples.has_labels else "error"
            return f"{what} {row.error:.3g}, over the budget of {self._max_error:g}"
        if row.speedup < 1 / WIN:
            return f"slower than the original ({row.speedup:.2f}x)"
        if not _wins(row.speedup, row.rounds_won):
            return f"not faster than the original beyond noise ({row.speedup:.2f}x)"
        return f"{row.speedup:.2f}x, the winner {won.speedup or 1.0:.2f}x in the same rounds"

    # -- jobs ---------------------------------------------------------------------------------------

    def _job(self, function: str, setup: Mapping[str, Any]) -> Job:
        base = {"source": str(self._original), "samples": str(self.samples.calibration)}
        return Job(f"{_PACKAGE}.{function}", {**base, **setup}, environment=self._environment)

    def _running(self, candidate: Candidate, batch_size: int) -> Job:
        setup = {**self._setup(candidate), "batch_size": batch_size}
        return Job(f"{_PACKAGE}.candidate:run", setup, environment=self._environment)

    def _setup(self, candidate: Candidate) -> dict[str, Any]:
        return {
            "model": str(candidate.file),
            "settings": asdict(candidate.settings),
            "samples": str(self.samples.judged),
            "outputs": str(self._outputs(candidate.name)),
            "secret": self.secret,
        }

    def _outputs(self, name: str) -> Path:
        return self._folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.outputs.npz"


def best_batch(rates: Mapping[int, float]) -> int:
    """The smallest batch size whose throughput is near the best."""
    return min(size for size, rate in rates.items() if rate >= SPARE * max(rates.values()))


def _compared(result: Result, base: Result) -> tuple[float, float]:
    """By how much a candidate is faster, and the share of the rounds in which it was."""
    pairs = list(zip(result.rates, base.rates, strict=True))
    won = sum(ours > theirs for ours, theirs in pairs) / len(pairs)
    return base.percentile(0.5) / result.percentile(0.5), won


def _wins(speedup: float | None, rounds_won: float | None) -> bool:
    """Whether a candidate is faster than the original by more than noise."""
    return (speedup or 0.0) >= WIN and (rounds_won or 0.0) >= WINS


def _label(provider: str, options: Mapping[str, str]) -> list[str]:
    on = [] if provider == "cpu" else [f"on {provider}"]
    return on + [f"{name}={value}" for name, value in options.items()]
