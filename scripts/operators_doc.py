"""Write docs/operators.md's table of supported operators from the registry; a test keeps them equal.

python scripts/operators_doc.py
"""

from __future__ import annotations

from pathlib import Path

from onnx import defs

from onnxaccel.graph.expand import CONSTANT
from onnxaccel.graph.rules import expansion, gradient

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
BEGIN, END = "<!-- the table: scripts/operators_doc.py -->\n", "<!-- end of the table -->\n"

SEQUENCES = "works on sequences, optionals or strings"
INTEGERS = "its result or its input is no float"
WITHOUT_RULE = {
    "BitCast": "reads bits, which has no derivative",
    "QLinearMatMul": INTEGERS,
}
"""Operators that take and give floats and yet have no rule, and why."""


def how(name: str) -> str | None:
    """How an operator is differentiated, or why it is not; None for operators that ONNX has withdrawn."""
    schema = defs.get_schema(name)
    if name in gradient:
        return "rule"
    if name in expansion:
        return "written out"
    if name in CONSTANT:
        return "constant: derivative zero or none"
    if schema.has_function or schema.has_context_dependent_function:
        return "function of ONNX, written out"
    if schema.deprecated:
        return None
    return WITHOUT_RULE.get(name) or (
        INTEGERS if not _floats(schema) else SEQUENCES if _boxed(schema) else "none"
    )


def _floats(schema: defs.OpSchema) -> bool:
    return all(any("float" in t for p in side for t in p.types) for side in (schema.inputs, schema.outputs))


def _boxed(schema: defs.OpSchema) -> bool:
    kinds = [t for p in [*schema.inputs, *schema.outputs] for t in p.types]
    return any(t.startswith(("seq", "optional")) or "string" in t for t in kinds)


def table() -> str:
    """The table, one row per operator of the default domain, then those of com.microsoft."""
    names = sorted({schema.name for schema in defs.get_all_schemas() if schema.domain == ""})
    rows = [(name, how(name)) for name in names]
    lines = ["| operator | gradient |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in rows if text is not None]
    lines += ["", "| com.microsoft | gradient |", "|---|---|"]
    fused = sorted({name for name in [*gradient, *expansion] if name.startswith("com.microsoft::")})
    lines += [
        f"| {name.split('::')[1]} | {'rule' if name in gradient else 'written out'} |" for name in fused
    ]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """A page with its table replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
