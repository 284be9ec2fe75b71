"""docs/operators.md says what the registry holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("operators_doc", ROOT / "scripts" / "operators_doc.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_equals_the_registry() -> None:
    script = _script()
    text = script.PAGE.read_text()
    assert text == script.page(text), "run: python scripts/operators_doc.py"
    assert "| none |" not in text, "an operator has neither a rule nor a reason"
