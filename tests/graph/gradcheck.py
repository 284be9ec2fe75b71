"""Checking a gradient graph against finite differences in float64.

Graphs run on onnxruntime where it has float64 kernels for all their operators, and on the ONNX reference
evaluator otherwise (onnxruntime has none for Conv; the reference has no Pad that crops, and wrong Indices of
MaxPool).

For a scalar ``f(x) = sum(seed * output)`` and random directions v, ``<gradient, v>`` must equal
``(f(x + hv) - f(x - hv)) / 2h``. Outputs, inputs and seeds are float64, so that h = 1e-6 leaves ten digits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidGraph,
    NotImplemented,
    RuntimeException,
)

import onnxaccel as oa

Array = npt.NDArray[Any]
_NO_KERNEL = (Fail, InvalidGraph, NotImplemented, RuntimeException)
"""What onnxruntime raises for a type or an opset that it has no kernel for."""


def one_node(
    op_type: str,
    inputs: Sequence[Array | None],
    outputs: int = 1,
    opset: int = 18,
    constants: Sequence[int] = (),
    dims: Mapping[int, Sequence[int | str]] | None = None,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node, and a feed for it.

    Args:
        op_type: The operator.
        inputs: Its inputs, None for an absent one; integers become initializers.
        outputs: How many outputs it has.
        opset: The opset.
        constants: Positions of inputs to make initializers.
        dims: Declared dimensions of inputs by position, to make some symbolic.
        **attributes: The node's attributes.
    """
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    graph_inputs, initializers, feed = [], [], {}
    for index, (name, x) in enumerate(zip(names, inputs, strict=True)):
        if x is None:
            continue
        if index in constants or x.dtype.kind not in "f":
            initializers.append(onnx.numpy_helper.from_array(x, name))
            continue
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        graph_inputs.append(helper.make_tensor_value_info(name, kind, (dims or {}).get(index, x.shape)))
        feed[name] = x
    produced = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_type, names, produced, name="node", **attributes)
    kind = helper.np_dtype_to_tensor_dtype(next(iter(feed.values())).dtype)
    results = [helper.make_tensor_value_info(name, kind, None) for name in produced]
    graph = helper.make_graph([node], "g", graph_inputs, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model), feed


def runner(
    model: onnx.ModelProto, reference: bool = False
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Runs a model, on the reference evaluator alone if asked: arrays by name in, arrays by name out."""
    names = [o.name for o in model.graph.output]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = None
    if not reference:
        with contextlib.suppress(*_NO_KERNEL):
            session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        results = None
        if session is not None:
            with contextlib.suppress(*_NO_KERNEL):  # LSTM and GRU say so only when they run
                results = session.run(None, dict(feed))
        if results is None:
            results = ReferenceEvaluator(model, new_ops=[ConvTranspose]).run(None, dict(feed))
        return dict(zip(names, results, strict=True))

    return run


class ConvTranspose(OpRun):
    """Torch's transposed convolution in place of the reference evaluator's, which fails with groups."""

    op_domain = ""

    def _run(self, x: Array, w: Array, bias: Array | None = None, **attributes: Any) -> tuple[Array]:
        rank = x.ndim - 2
        pads = attributes.get("pads") or [0] * 2 * rank
        run = getattr(torch.nn.functional, f"conv_transpose{rank}d")
        full = run(
            torch.from_numpy(np.array(x)),
            torch.from_numpy(np.array(w)),
            None if bias is None else torch.from_numpy(np.array(bias)),
            stride=attributes.get("strides") or 1,
            groups=attributes.get("group") or 1,
            dilation=attributes.get("dilations") or 1,
        ).numpy()
        extra = attributes.get("output_padding") or [0] * rank
        full = np.pad(full, [(0, 0), (0, 0), *((0, e) for e in extra)])
        for axis in range(rank):
            size = full.shape[2 + axis]
            full = np.take(full, np.arange(pads[axis], size - pads[rank + axis]), 2 + axis)
        return (full,)


def finite_difference_error(
    model: onnx.ModelProto,
    feed: Mapping[str, Array],
    wrt: Sequence[str] | None = None,
    seed: int = 0,
    reference: bool = False,
    h: float = 1e-6,
) -> float:
    """The largest relative difference between gradients and finite differences, over all of ``wrt``."""
    rng = np.random.default_rng(seed)
    names = list(wrt or feed)
    forward = runner(model, reference)
    cotangents = {
        f"{name}_grad": np.asarray(rng.standard_normal(np.shape(y)), np.asarray(y).dtype)
        for name, y in forward(feed).items()
        if np.asarray(y).dtype.kind == "f"
    }
    backward = oa.gradient(model, wrt=names)
    backward.check()
    grads = runner(backward.to_proto(), reference)({**feed, **cotangents})

    def value(at: Mapping[str, Array]) -> float:
        return float(
            sum(
                np.sum(cotangents[f"{name}_grad"] * y)
                for name, y in forward(at).items()
                if f"{name}_grad" in cotangents
            )
        )

    worst = 0.0
    for name in names:
        grad = grads[f"{name}_grad"]
        assert grad.shape == feed[name].shape, f"{name}: gradient {grad.shape}, value {feed[name].shape}"
        for _ in range(3):
            v = np.asarray(rng.standard_normal(feed[name].shape))
            ahead, behind = (
                {**feed, name: np.asarray(feed[name] + h * v, feed[name].dtype)},
                {**feed, name: np.asarray(feed[name] - h * v, feed[name].dtype)},
            )
            expected = (value(ahead) - value(behind)) / (2 * h)
            scale = float(np.sqrt(np.sum(grad**2) * np.sum(v**2))) + 1e-12
            worst = max(worst, abs(float(np.sum(grad * v)) - expected) / max(scale, abs(expected)))
    return worst
