"""Candidates as the charts show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxaccel.compare.results import Candidate
from onnxaccel.report.figures import legible
from onnxaccel.report.html.charts import Look, looks


@dataclass(frozen=True)
class Side:
    """A candidate with its name as it is shown, and its look, the same in every chart of a source."""

    candidate: Candidate
    name: str
    look: Look


def sides_of(candidates: Sequence[Candidate]) -> list[Side]:
    """A side for each candidate."""
    return [
        Side(candidate, legible(candidate.name, 60), look)
        for candidate, look in zip(candidates, looks(candidates), strict=True)
    ]
