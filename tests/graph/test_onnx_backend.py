"""The gradient of every operator test that ships in the onnx package, against finite differences in float64.

Each model is made float64, its non-float inputs become initializers. A case is *right* when gradients and
differences agree, *refused* when onnxaccel says why it has no gradient, *wrong* otherwise. Left out, and
counted, are cases without float inputs and outputs, and those that cannot be evaluated in float64.
"""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxaccel.errors import AccelError
from onnxaccel.graph.expand import CONSTANT
from tests.graph.gradcheck import finite_difference_error

Array = np.ndarray[Any, Any]
NO_DERIVATIVE = CONSTANT | {"Adagrad", "Adam", "Momentum"}
"""Operators without a derivative; the last three are training steps, which no model contains."""


STEPS = ((False, 1e-6, 1e-6), (True, 1e-6, 1e-6), (False, 1e-4, 1e-5), (False, 1e-3, 1e-4))
"""Evaluator, step and tolerance, tried in this order."""
_GEOMETRY = {"scales", "roi"}
"""Inputs of Resize and Upsample that are settings, not data."""


def cases() -> Iterator[tuple[str, onnx.ModelProto, dict[str, Array]]]:
    """Name, float64 model and feed of each case that has a derivative."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        tests = load_model_tests(kind="node")
    for test in tests:
        graph = test.model.graph
        kinds = [v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]]
        known = {TensorProto.FLOAT, TensorProto.DOUBLE}
        floats = [kind in known for kind in kinds]
        inputs = len(graph.input)
        own = all(node.domain in ("", "ai.onnx") for node in graph.node)
        if not own or test.name.endswith("_expanded") or "_expanded_ver" in test.name:
            continue
        if not any(floats[:inputs]) or not any(floats[inputs:]):
            continue
        if all(node.op_type in NO_DERIVATIVE for node in graph.node):
            continue
        arrays = test.data_sets[0][0]
        if all(isinstance(array, np.ndarray) for array in arrays):
            yield (test.name, *in_float64(test.model, arrays))


def in_float64(model: onnx.ModelProto, arrays: list[Array]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model with float64 in place of float32, and its float inputs."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    graph = double.graph
    feed = {}
    rng = np.random.default_rng(0)
    inputs = list(graph.input)
    del graph.input[:]
    for value, array in zip(inputs, arrays, strict=False):
        if value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
            if value.name in _GEOMETRY:
                graph.initializer.append(numpy_helper.from_array(array, value.name))
                continue
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
            graph.input.append(value)
            away = rng.uniform(0.001, 0.002, array.shape)  # examples stand on kinks, such as 0 of Relu
            feed[value.name] = np.asarray(array.astype(np.float64) + away)
        else:
            graph.initializer.append(numpy_helper.from_array(array, value.name))
    for output in graph.output:
        if output.type.tensor_type.elem_type == TensorProto.FLOAT:
            output.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
            elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                wide = numpy_helper.to_array(attribute.t).astype(np.float64)
                attribute.CopyFrom(helper.make_attribute("value", wide))
    double.ir_version = max(double.ir_version, 8)
    return double, feed


def verdict(model: onnx.ModelProto, feed: dict[str, Array]) -> tuple[str, str]:
    """Right, refused, wrong or not evaluated, and why.

    Both evaluators compute a few operators (Erf, RNN, functions with a stash_type) in single precision, where
    steps of 1e-6 drown in rounding; those are compared with steps of 1e-3, to four digits.
    """
    errors = []
    for reference, h, tolerance in STEPS:
        try:
            error = finite_difference_error(model, feed, reference=reference, h=h)
        except AccelError as refusal:
            return "refused", str(refusal)
        except Exception as failure:
            errors.append(f"{type(failure).__name__}: {failure}")
            continue
        if error < tolerance:
            return "right", ""
        errors.append(f"relative difference {error:.1e} at h = {h:.0e}")
    differs = any(error.startswith("relative difference") for error in errors)
    return ("wrong" if differs else "not evaluated"), "; ".join(errors)


def test_gradients_of_onnx_own_operator_tests() -> None:
    """None is wrong; the counts are printed (pytest -s)."""
    found: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for name, model, feed in cases():
        kind, why = verdict(model, feed)
        found[kind][name] = why
    for kind, names in found.items():
        print(f"{kind}: {len(names)}")
    for kind in ("refused", "not evaluated"):
        for name, why in found[kind].items():
            print(f"  {kind} {name}: {why[:150]}")
    assert not found["wrong"], found["wrong"]
    assert len(found["right"]) >= 650
