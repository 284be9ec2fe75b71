"""Files written one weight at a time hold what protobuf would have written, in another order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxaccel.graph.model import Model
from onnxaccel.graph.proto_file import write_proto


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
def test_large_weights_are_written_by_hand(tmp_path: Path, dtype: type) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "small": rng.integers(0, 9, (3,)).astype(dtype),
        "large": rng.integers(0, 9, (3, 700_000)).astype(dtype),  # its length takes four bytes
        "also": rng.integers(0, 9, (2, 1_000_000)).astype(dtype),
    }
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"], name=name) for name in weights]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(f"{name}_out", kind, a.shape) for name, a in weights.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="p")
    model = ir.from_proto(proto)

    write_proto(model, tmp_path / "m.onnx")

    assert list(model.graph.initializers) == list(weights)
    written, expected = onnx.load(tmp_path / "m.onnx"), ir.to_proto(model)
    for message in (written, expected):
        message.graph.initializer.sort(key=lambda tensor: tensor.name)
        message.graph.ClearField("value_info")  # an initializer says itself what it is
    assert written == expected
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    for name, array in Model.load(tmp_path / "m.onnx").weights().items():
        np.testing.assert_array_equal(array, weights[name])
