"""Where a training step first computes something that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.errors import ModelError
from onnxaccel.graph.autodiff import is_float
from onnxaccel.graph.builder import ORIGIN, describe
from onnxaccel.graph.model import Model, SessionSettings, tensor_of
from onnxaccel.runtime.providers import Provider
from onnxaccel.runtime.session import Session

Array = npt.NDArray[Any]


def first_wrong(step: Model, feed: Mapping[str, Array], provider: Provider) -> str | None:
    """The first tensor of a training step that is NaN or infinite, in words.

    A node is at fault when its result is not finite although all that it reads is. So masks of minus
    infinity, which are constants, pass.

    Args:
        step: The graph of the step; its nodes are put in order.
        feed: All of its inputs, those that are carried included.
        provider: Where to run.

    Returns:
        The input, or the node and what it belongs to; None when all results are finite.
    """
    taken = set(step.input_names())
    feed = {name: array for name, array in feed.items() if name in taken}
    for name, array in feed.items():
        if not _is_finite(array):
            return f"input {name!r}, before the step"
    step.graph.sort()  # nodes that training added stand at the end, also where earlier ones read them
    model = step.copy()
    model.infer_shapes()
    watched = [
        value
        for node in model.graph
        for value in node.outputs
        if value.type is not None and is_float(value) and not value.is_graph_output() and value.name
    ]
    model.graph.outputs.extend(watched)
    try:
        found = Session(model, provider, 0, SessionSettings(graph_optimization="off")).run(feed)
    except ModelError:  # a graph that only runs optimised: the step itself did run
        return None
    wrong = {name for name, array in found.items() if not _is_finite(array)}
    masks = {value.name for value in model.graph.initializers.values() if not _is_finite(tensor_of(value))}
    failed = [node for node in model.graph if any(output.name in wrong for output in node.outputs)]
    at_fault = [n for n in failed if not any(x is not None and x.name in wrong | masks for x in n.inputs)]
    for node in [*at_fault, *failed]:
        origin = node.metadata_props.get(ORIGIN)
        return describe(node) if origin is None else f"the gradient of {origin} (at {describe(node)})"
    return None


def unsound(state: Mapping[str, Array]) -> str | None:
    """The first tensor of a state that is not finite, in words."""
    return next((f"{name!r} is no longer finite" for name, a in state.items() if not _is_finite(a)), None)


def _is_finite(array: Array) -> bool:
    if array.dtype.kind in "biuOSU":
        return True
    return bool(np.isfinite(array.astype(np.float32, copy=False)).all())
