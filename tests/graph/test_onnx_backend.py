"""The gradient of every operator test that ships in the onnx package, against finite differences in float64.

Each model is made float64, its non-float inputs become initializers. A case is *right* when gradients and
differences agree, *refused* when onnxaccel says why it has no gradient, *wrong* otherwise. Left out, and
counted, are cases without float inputs and outputs, and those that cannot be evaluated in float64.
"""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxaccel.errors import AccelError
from onnxaccel.graph.expand import CONSTANT
from onnxaccel.graph.model import Model
from onnxaccel.graph.normalize import differentiable
from tests.graph.gradcheck import finite_difference_error, runner

Array = np.ndarray[Any, Any]
NO_DERIVATIVE = CONSTANT | {"Adagrad", "Adam", "Momentum"}
"""Operators without a derivative; the last three are training steps, which no model contains."""


STEPS = (
    ("onnxruntime", 1e-6, 1e-6),
    ("reference", 1e-6, 1e-6),
    ("written out", 1e-6, 1e-6),
    ("onnxruntime", 1e-4, 1e-5),
    ("onnxruntime", 1e-3, 1e-4),
)
"""Evaluator, step and tolerance, tried in this order."""
SINGLE_STEPS = (
    ("onnxruntime", 2.0**-5, 1e-3),
    ("written out", 2.0**-5, 1e-3),
    ("onnxruntime", 2.0**-11, 1e-3),
)
"""The same for operators that ONNX defines in single precision only."""
RUNS = 22
"""An opset of which onnxruntime runs all operators that a written-out graph is made of."""
_GEOMETRY = {"scales", "roi"}
"""Inputs of Resize and Upsample that are settings, not data."""


@dataclass(frozen=True)
class Case:
    """One operator test: the model in float64, its inputs, and the model as it ships with its data."""

    name: str
    model: onnx.ModelProto
    feed: dict[str, Array]
    single: bool
    shipped: onnx.ModelProto
    data: tuple[list[Array], list[Array]]


def cases() -> Iterator[Case]:
    """Each case that has a derivative."""
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
        given, expected = test.data_sets[0]
        if all(isinstance(array, np.ndarray) for array in given):
            single = any(_single_only(node, opset_of(test.model)) for node in graph.node)
            model, feed = in_float64(test.model, given, single)
            yield Case(test.name, model, feed, single, test.model, (given, expected))


def _single_only(node: onnx.NodeProto, opset: int) -> bool:
    """Whether ONNX defines an operator for float32 but not for float64."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    types = {kind for value in [*schema.inputs, *schema.outputs] for kind in value.types}
    return "tensor(float)" in types and "tensor(double)" not in types


def in_float64(
    model: onnx.ModelProto, arrays: list[Array], single: bool = False
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model with float64 in place of float32, and its float inputs.

    Args:
        model: The model.
        arrays: Its inputs.
        single: Keep the computation in float32, between casts.
    """
    double = onnx.ModelProto()
    double.CopyFrom(model)
    graph = double.graph
    feed = {}
    rng = np.random.default_rng(0)
    inputs, before, after = list(graph.input), [], []
    del graph.input[:]
    for value, array in zip(inputs, arrays, strict=False):
        if value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
            if value.name in _GEOMETRY:
                graph.initializer.append(numpy_helper.from_array(array, value.name))
                continue
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
            # examples stand on kinks, such as 0 of Relu, which a step must not reach
            away = rng.uniform(0.001, 0.002, array.shape) * (50 if single else 1)
            x = np.asarray(array.astype(np.float64) + away)
            if single:
                before.append(
                    helper.make_node("Cast", [f"{value.name}_wide"], [value.name], to=TensorProto.FLOAT)
                )
                value.name += "_wide"
            graph.input.append(value)
            feed[value.name] = x
        else:
            graph.initializer.append(numpy_helper.from_array(array, value.name))
    if single:
        for output in graph.output:
            if output.type.tensor_type.elem_type == TensorProto.FLOAT:
                after.append(
                    helper.make_node("Cast", [output.name], [f"{output.name}_wide"], to=TensorProto.DOUBLE)
                )
                output.name += "_wide"
                output.type.tensor_type.elem_type = TensorProto.DOUBLE
        nodes = [*before, *graph.node, *after]
        del graph.node[:]
        graph.node.extend(nodes)
    else:
        _widen(graph, opset_of(model))
    double.ir_version = max(double.ir_version, 8)
    return double, feed


def _widen(graph: onnx.GraphProto, opset: int) -> None:
    """Float64 in place of float32 in types, casts and constants, also in subgraphs.

    The statistics that LayerNormalization puts out are float32 by ONNX's definition, whatever its input is.
    """
    narrow = {name for node in graph.node if node.op_type == _NARROW for name in node.output[1:]}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        kind = value.type.tensor_type
        if value.name not in narrow and kind.elem_type == TensorProto.FLOAT:
            kind.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        if (
            node.op_type != _NARROW
            and "stash_type" in onnx.defs.get_schema(node.op_type, opset, node.domain).attributes
        ):
            kept = [a for a in node.attribute if a.name != "stash_type"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("stash_type", TensorProto.DOUBLE)])
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
            elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                wide = numpy_helper.to_array(attribute.t).astype(np.float64)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(wide)))
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _widen(attribute.g, opset)


_NARROW = "LayerNormalization"


def written_out(case: Case) -> onnx.ModelProto:
    """The model in operators that have gradient rules; in float32 it computes what ships with the test."""

    def plain(model: onnx.ModelProto) -> onnx.ModelProto:
        written = Model.from_proto(model)
        differentiable(written)
        proto = written.to_proto()
        for entry in proto.opset_import:
            entry.version = min(entry.version, RUNS) if entry.domain == "" else entry.version
        return proto

    single = plain(case.shipped)
    given, expected = case.data
    feed = dict(zip([v.name for v in case.shipped.graph.input], given, strict=False))
    found = runner(single)(feed)
    for value, array in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(value, array, rtol=1e-3, atol=1e-5)
    return plain(case.model)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default operator set."""
    return max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))


def verdict(case: Case) -> tuple[str, str]:
    """Right, refused, wrong or not evaluated, and why.

    Both evaluators compute a few operators (Erf, RNN, functions with a stash_type) in single precision, where
    steps of 1e-6 drown in rounding; those are compared with steps of 1e-3, to four digits.
    """
    errors = []
    for evaluator, h, tolerance in SINGLE_STEPS if case.single else STEPS:
        try:
            model = written_out(case) if evaluator == "written out" else case.model
            error = finite_difference_error(model, case.feed, reference=evaluator == "reference", h=h)
        except AccelError as refusal:
            return "refused", str(refusal)
        except Exception as failure:
            errors.append(f"{type(failure).__name__}: {failure}")
            continue
        if error < tolerance:
            return "right", "" if tolerance < 1e-5 else f"h = {h:.0e}, {'; '.join(errors)}"
        errors.append(f"relative difference {error:.1e} at h = {h:.0e}")
    differs = any(error.startswith("relative difference") for error in errors)
    return ("wrong" if differs else "not evaluated"), "; ".join(errors)


def test_gradients_of_onnx_own_operator_tests() -> None:
    """None is wrong; the counts are printed (pytest -s)."""
    found: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for case in cases():
        kind, why = verdict(case)
        found[kind][case.name] = why
    for kind, names in found.items():
        print(f"{kind}: {len(names)}")
    loose = {name: why for name, why in found["right"].items() if why}
    print(f"right at larger steps only: {len(loose)}")
    for name, why in loose.items():
        print(f"  loose {name}: {why[:300]}")
    for kind in ("refused", "not evaluated", "wrong"):
        for name, why in found[kind].items():
            print(f"  {kind} {name}: {why[:300]}")
    assert not found["wrong"], found["wrong"]
    assert len(found["right"]) >= 0.99 * sum(len(names) for names in found.values())
