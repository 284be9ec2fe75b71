"""Does a provider really work here? One node is run on it."""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    from onnxaccel.runtime.providers import Provider

_CAUSES = {
    r"driver version is insufficient|error 35\b|cudaErrorInsufficientDriver": (
        "NVIDIA's driver is too old for this CUDA; install a newer driver, or an onnxruntime-gpu for an "
        "older CUDA (1.24 and before: CUDA 12)"
    ),
    r"no CUDA-capable device|error 100\b|cudaErrorNoDevice": (
        "NVIDIA's driver sees no device; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    ),
    r"out of memory|error 2\b": "the device has no memory left; end other programs on it (nvidia-smi)",
    r"no kernel image|invalid device function|error 209\b": (
        "onnxruntime has no code for this device's compute capability; try another onnxruntime-gpu"
    ),
}
"""What onnxruntime's messages mean, by a pattern."""


def probe(provider: Provider) -> str | None:
    """Run a Relu on ``provider``; gives what went wrong, or None."""
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    providers = provider.attach(options)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            session = ort.InferenceSession(
                onnx.ModelProto.SerializeToString(model), options, providers=providers, enable_fallback=0
            )
            if provider.ort_name not in session.get_providers():
                return explain("its library does not load")
            (result,) = session.run(None, {"x": np.array([-1, 1], np.float32)})
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        return explain(str(error))
    return None if result.tolist() == [0, 1] else f"it computes Relu(-1, 1) = {result.tolist()}"


def explain(message: str) -> str:
    """What to do about a message of onnxruntime's; its first line where we know no more."""
    for pattern, cause in _CAUSES.items():
        if re.search(pattern, message, re.IGNORECASE):
            return cause
    line = (message.strip() or "it fails without a message").splitlines()[0]
    return f"it does not start ({line.split(' : ')[-1]})"
