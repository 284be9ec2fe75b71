"""The fused operators of com.microsoft: written out, they compute what onnxruntime's own kernels compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

import onnxaccel as oa

RNG = np.random.default_rng(3)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Gelu", [normal(2, 3, 8)], {}),
    ("BiasGelu", [normal(2, 3, 8), normal(8)], {}),
    ("FastGelu", [normal(2, 3, 8), normal(8)], {}),
    ("QuickGelu", [normal(2, 3, 8)], {"alpha": 1.5}),
    ("FusedMatMul", [normal(2, 4, 3), normal(2, 5, 4)], {"transA": 1, "transB": 1, "alpha": 0.5}),
    ("FusedGemm", [normal(3, 4), normal(4, 5), normal(5)], {"activation": "Relu", "alpha": 2.0}),
    (
        "FusedConv",
        [normal(2, 3, 7, 7), normal(4, 3, 3, 3), normal(4)],
        {"activation": "Relu", "pads": [1, 0, 1, 2]},
    ),
    ("FusedConv", [normal(2, 3, 7, 7), normal(4, 3, 3, 3)], {"activation": "Tanh", "auto_pad": "SAME_UPPER"}),
    ("SkipLayerNormalization", [normal(2, 3, 8), normal(2, 3, 8), normal(8), normal(8)], {"epsilon": 1e-5}),
    ("SkipSimplifiedLayerNormalization", [normal(2, 3, 8), normal(2, 3, 8), normal(8)], {"epsilon": 1e-5}),
]


@pytest.mark.parametrize(("name", "inputs", "attributes"), CASES, ids=[c[0] for c in CASES])
def test_fused_operator(name: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    kind = onnx.TensorProto.FLOAT
    names = [f"x{i}" for i in range(len(inputs))]
    node = helper.make_node(name, names, ["y"], name="node", domain="com.microsoft", **attributes)
    bare = [helper.make_tensor_value_info(n, kind, x.shape) for n, x in zip(names, inputs, strict=True)]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    feed = dict(zip(names, inputs, strict=True))

    def model(shape: Any) -> onnx.ModelProto:
        graph = helper.make_graph([node], "g", bare, [helper.make_tensor_value_info("y", kind, shape)])
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    fused = ort.InferenceSession(model(None).SerializeToString())
    (expected,) = fused.run(None, feed)
    backward = oa.gradient(model(expected.shape), wrt=names)
    assert all(
        n.domain == "" or n.op_type == name for n in backward.graph
    )  # no other fused operator is written
    seed = RNG.standard_normal(expected.shape).astype(np.float32)
    session = ort.InferenceSession(backward.to_proto().SerializeToString())
    y, *grads = session.run(None, {**feed, "y_grad": seed})
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for n, grad in zip(
        names, grads, strict=True
    ):  # against central differences of onnxruntime's fused kernel
        v = RNG.standard_normal(feed[n].shape).astype(np.float32)
        v /= np.linalg.norm(v)
        h = np.float32(1e-2)
        ahead, behind = ({**feed, n: feed[n] + s * h * v} for s in (1, -1))
        slope = float(np.sum(seed * (fused.run(None, ahead)[0] - fused.run(None, behind)[0]))) / (
            2 * float(h)
        )
        assert abs(slope - float(np.sum(grad * v))) < 2e-2 * float(np.linalg.norm(grad)) + 1e-3
