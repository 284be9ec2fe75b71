"""The JSON document: what is written is read back, and what is no comparison is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxaccel.compare import results
from onnxaccel.compare.document import LARGEST, document, load, save
from onnxaccel.errors import ComparisonError, OutputError
from tests.report.samples import comparison

_PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "str": st.text(max_size=20),
    "int": st.integers(0, 10**18),
    "float": st.floats(0, 1e18),
    "bool": st.booleans(),
}
_KINDS = {name: kind for name, kind in vars(results).items() if dataclasses.is_dataclass(kind)}


def _values(hint: str) -> st.SearchStrategy[Any]:
    """Values of a type hint of `results`, as it is written there."""
    if hint.endswith(" | None"):
        return st.none() | _values(hint.removesuffix(" | None"))
    if hint.startswith("list["):
        return st.lists(_values(hint[5:-1]), max_size=2)
    if hint.startswith("dict[str, "):
        return st.dictionaries(_PLAIN["str"], _values(hint[10:-1]), max_size=2)
    if " | " in hint:
        return st.one_of(*map(_values, hint.split(" | ")))
    if hint in _PLAIN:
        return _PLAIN[hint]
    kind: Any = _KINDS[hint]
    return st.builds(kind, **{f.name: _values(str(f.type)) for f in dataclasses.fields(kind)})


ANY = _values("Comparison").map(lambda found: dataclasses.replace(found, schema=results.SCHEMA))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(written=ANY)
def test_what_is_written_is_read(
    written: results.Comparison, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("round") / "a.json"
    save(written, path)
    assert load(path) == written
    assert document(load(path)) == json.loads(path.read_text())


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    written = comparison()
    training = written.sources[0].candidates[0].training
    assert training is not None
    training.losses[-1], training.difference = math.nan, math.inf
    path = save(written, tmp_path / "a.json")
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    found = load(path).sources[0].candidates[0].training
    assert found is not None and found.difference is None
    assert math.isnan(found.losses[-1])
    assert found.losses[:-1] == training.losses[:-1]


def test_fields_of_a_newer_writer_are_left_out(tmp_path: Path) -> None:
    found = document(comparison())
    found["weather"] = found["machine"]["colour"] = {"deep": [1, None]}
    found["schema"] = "onnxaccel.comparison/1.4"
    path = tmp_path / "a.json"
    path.write_text(json.dumps(found))
    assert load(path) == dataclasses.replace(comparison(), schema="onnxaccel.comparison/1.4")


def _changed(change: Any) -> str:
    found = document(comparison())
    change(found)
    return json.dumps(found)


def _set(*path: str | int, to: Any) -> str:
    def change(found: Any) -> None:
        for step in path[:-1]:
            found = found[step]
        found[path[-1]] = to

    return _changed(change)


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "no complete JSON document"),
    "cut off": (json.dumps(document(comparison()))[:-100], "no complete JSON document"),
    "no text": (bytes(range(256)), "no complete JSON document"),
    "nested": ("[" * 100_000, "no complete JSON document"),
    "endless number": ('{"schema": ' + "9" * 5000 + "}", "no complete JSON document"),
    "a list": ("[]", "no comparison: its schema is 'None'"),
    "something else": ('{"epochs": []}', "no comparison"),
    "schema of another kind": ('{"schema": {"a": 1}}', "no comparison"),
    "the next major version": (
        _set("schema", to="onnxaccel.comparison/2"),
        "written as 'onnxaccel.comparison/2', and this onnxaccel reads 'onnxaccel.comparison/1'",
    ),
    "a version of more digits": (_set("schema", to="onnxaccel.comparison/12"), "and this onnxaccel reads"),
    "a missing field": (_changed(lambda d: d["machine"].pop("cores")), "document.machine has no 'cores'"),
    "text for a number": (_set("machine", "cores", to="2"), "document.machine.cores is str, not int"),
    "a flag for a number": (
        _set("settings", "seconds", to=True),
        "document.settings.seconds is bool, not float",
    ),
    "a fraction for a count": (
        _set("settings", "rounds", to=1.5),
        "document.settings.rounds is float, not int",
    ),
    "not finite": (_set("settings", "seconds", to=math.inf), "document.settings.seconds is out of range"),
    "a huge number": (_set("machine", "memory", to=10**400), "document.machine.memory is out of range"),
    "a negative time": (
        _set("sources", 0, "candidates", 0, "inference", "startup", to=-1.0),
        r"inference\.startup is negative",
    ),
    "a negative rate among others": (
        _set("sources", 0, "candidates", 0, "training", "rounds", to=[1.0, -1]),
        r"training\.rounds is negative",
    ),
    "null for text": (_set("created", to=None), "document.created is null, not str"),
    "a list for an object": (
        _set("sources", 0, "candidates", 1, to=[]),
        r"candidates\[1\] is list, not object",
    ),
    "text in the losses": (
        _set("sources", 0, "candidates", 0, "training", "losses", to=[1.0, "x"]),
        r"document\.sources\[0\]\.candidates\[0\]\.training\.losses\[1\] is str, not float",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_comparison_is_refused(case: str, tmp_path: Path) -> None:
    content, reason = REFUSED[case]
    path = tmp_path / "bad.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ComparisonError, match=f"bad.json: .*{reason}"):
        load(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(ComparisonError, match="larger than 32 MiB"):
        load(path)
    with pytest.raises(ComparisonError, match="a folder"):
        load(tmp_path)
    with pytest.raises(ComparisonError, match="no such file"):
        load(tmp_path / "none.json")
    with pytest.raises(ComparisonError, match="no such file"):  # endless
        load("/dev/zero")


def test_an_output_is_whole_or_not_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none/a.json", Path("/proc/a.json")):
        with pytest.raises(OutputError, match="cannot be written"):
            save(comparison(), place)
    assert list(tmp_path.iterdir()) == []
