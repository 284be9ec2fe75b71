"""Whatever a comparison's document can hold is shown: no figure is so odd that a report fails over it."""

from __future__ import annotations

import io

from hypothesis import HealthCheck, given, settings
from rich.console import Console

from onnxaccel.compare.results import Comparison
from onnxaccel.report import comparison, machines
from onnxaccel.report.html import machines as machine_pages
from onnxaccel.report.html import render
from tests.compare.test_document import ANY
from tests.report.test_html import parsed


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(ANY, ANY)
def test_any_document_is_shown(one: Comparison, other: Comparison) -> None:
    out = Console(file=io.StringIO(), width=80, markup=False)
    comparison.show(one, out)
    parsed(render(one))
    beside = machines.side_by_side([one, other], ["one.json", "other.json"])
    machines.show(beside, out)
    parsed(machine_pages.render(beside))
