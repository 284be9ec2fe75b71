"""docs/operators.md says what the registry holds, and its example works."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
from onnx import parser

import onnxaccel as oa
from onnxaccel.graph.rules import gradient

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


def test_example_of_a_rule() -> None:
    text = (ROOT / "docs" / "operators.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(code, {})
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18, "my.domain": 1]> g (float[3] x) => (float[3] y) '
        "{ y = my.domain.Cube(x) }"
    )
    backward = oa.gradient(model).to_proto()
    cube = onnx.helper.make_function(
        "my.domain",
        "Cube",
        ["x"],
        ["y"],
        [onnx.helper.make_node("Mul", ["x", "x"], ["s"]), onnx.helper.make_node("Mul", ["s", "x"], ["y"])],
        [onnx.helper.make_opsetid("", 18)],
    )
    backward.functions.append(cube)
    import onnxruntime as ort

    x = np.array([1.0, -2.0, 3.0], np.float32)
    feed = {"x": x, "y_grad": np.ones(3, np.float32)}
    session = ort.InferenceSession(backward.SerializeToString())
    np.testing.assert_allclose(session.run(["x_grad"], feed)[0], 3 * x**2, rtol=1e-6)
    assert "my.domain::Cube" in gradient
