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


def ints(values: Any) -> Any:
    return np.array(values, np.int32)


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
    ("Attention", [normal(2, 5, 8), normal(8, 24), normal(24)], {"num_heads": 2}),
    ("Attention", [normal(2, 5, 8), normal(8, 24), normal(24)], {"num_heads": 2, "unidirectional": 1}),
    ("Attention", [normal(2, 5, 8), normal(8, 24), normal(24), ints([3, 5])], {"num_heads": 2}),
    (
        "Attention",
        [normal(2, 5, 8), normal(8, 24), normal(24), ints([[1, 1, 0, 1, 1], [1, 0, 1, 1, 0]])],
        {"num_heads": 4, "scale": 0.5},
    ),
    ("MultiHeadAttention", [normal(2, 5, 8), normal(2, 4, 8), normal(2, 4, 8), normal(24)], {"num_heads": 2}),
    (
        "MultiHeadAttention",
        [normal(2, 5, 8), normal(2, 4, 8), normal(2, 4, 8), None, None, normal(1, 2, 5, 4)],
        {"num_heads": 2},
    ),
    (
        "EmbedLayerNormalization",
        [
            ints([[1, 3, 2], [0, 1, 1]]),
            ints([[0, 1, 1], [0, 0, 1]]),
            normal(4, 8),
            normal(5, 8),
            normal(2, 8),
            normal(8),
            normal(8),
        ],
        {"epsilon": 1e-5},
    ),
    ("Inverse", [normal(2, 3, 3) + 3 * np.eye(3, dtype=np.float32)], {}),
    ("SkipSimplifiedLayerNormalization", [normal(2, 3, 8), normal(2, 3, 8), normal(8)], {"epsilon": 1e-5}),
]


@pytest.mark.parametrize(("name", "inputs", "attributes"), CASES, ids=[c[0] for c in CASES])
def test_fused_operator(name: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    kind = onnx.TensorProto.FLOAT
    slots = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    produced = ["y", "lengths"] if name == "EmbedLayerNormalization" else ["y"]  # its second is not optional
    node = helper.make_node(name, slots, produced, name="node", domain="com.microsoft", **attributes)
    feed = {n: x for n, x in zip(slots, inputs, strict=True) if n}
    bare = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in feed.items()
    ]
    names = [n for n, x in feed.items() if x.dtype.kind == "f"]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]

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
