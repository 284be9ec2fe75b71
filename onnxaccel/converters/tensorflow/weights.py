"""Weights: graph inputs while the graph is transformed, initializers under their own names in the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxaccel.graph.builder import attribute, constant_of
from onnxaccel.graph.model import Model, name_of

LAYOUT = "onnxaccel.layout"
"""Key of the steps that led from the source's layout to the initializer's, in the metadata of its value."""

_MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
_FOLDED = _MOVES | {"Split", "Concat", "Slice", "Cast"}


def to_initializers(model: Model, values: Mapping[str, Any], trainable: bool) -> set[str]:
    """Turn the inputs that are weights into initializers.

    A chain of nodes that alone reads a weight and moves its elements, from TensorFlow's layout to ONNX's, is
    applied to the weight itself; in trainable form only where the weight has more than two axes.

    Args:
        model: The mapped graph; changed in place.
        values: Arrays, or what numpy makes arrays of, by input name.
        trainable: Whether weights keep their names and identities; if not, what is constant is folded.

    Returns:
        The names of the weights that the graph uses.
    """
    graph = model.graph
    used = set()
    for value in list(graph.inputs):
        name = name_of(value)
        if name not in values:
            continue
        graph.inputs.remove(value)
        if not value.uses():
            continue
        used.add(name)
        held = values[name]
        data = held.numpy() if hasattr(held, "numpy") else np.asarray(held)
        steps: list[dict[str, list[int]]] = []
        while (data.ndim > 2 or steps or not trainable) and (step := _only_move(value)) is not None:
            node, moved = step
            steps.append(_step(node, data))
            data = moved(data)
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            graph.remove(node, safe=True)
        if any(steps):
            value.metadata_props[LAYOUT] = json.dumps([step for step in steps if step])
        data = np.asarray(data, order="C")
        value.const_value = ir.tensor(data, name=name)
        value.shape, value.type = ir.Shape(data.shape), ir.TensorType(ir.DataType.from_numpy(data.dtype))
        graph.register_initializer(value)
    if not trainable:
        _fold(model)
    return used


def in_source_layout(value: ir.Value, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An initializer's data in the layout that the source framework keeps it in."""
    for step in reversed(json.loads(value.metadata_props.get(LAYOUT, "[]"))):
        array = array.transpose(np.argsort(step["perm"])) if "perm" in step else array.reshape(step["shape"])
    return array


def _only_move(value: ir.Value) -> tuple[ir.Node, Any] | None:
    """The one node that reads ``value`` and only moves its elements, and how it moves them."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, index = uses[0]
    if index != 0 or node.op_type not in _MOVES or node.outputs[0].is_graph_output():
        return None
    if node.op_type == "Identity":
        return node, lambda data: data
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        return node, lambda data: data.transpose(perm)
    operand = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if operand is None:
        return None
    return node, lambda data: _evaluate(node, [data, operand])[0]


def _step(node: ir.Node, data: npt.NDArray[Any]) -> dict[str, list[int]]:
    if node.op_type == "Identity":
        return {}
    if node.op_type == "Transpose":
        return {"perm": list(attribute(node, "perm"))}
    return {"shape": list(data.shape)}


def _evaluate(node: ir.Node, inputs: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    names = [f"x{i}" for i in range(len(inputs))]
    del proto.input[:]
    proto.input.extend(names)
    outputs = ReferenceEvaluator(proto).run(None, dict(zip(names, inputs, strict=True)))
    assert isinstance(proto, onnx.NodeProto) and isinstance(outputs, list)
    return outputs


def _fold(model: Model) -> None:
    """Evaluate nodes that only rearrange constants."""
    graph = model.graph
    for node in list(graph):
        if node.op_type not in _FOLDED or any(output.is_graph_output() for output in node.outputs):
            continue
        inputs = [constant_of(value) for value in node.inputs]
        known = [data for data in inputs if data is not None]
        if len(known) < len(inputs) or sum(data.nbytes for data in known) > 2**28:
            continue
        for output, data in zip(node.outputs, _evaluate(node, known), strict=True):
            array = np.asarray(data, order="C")
            constant = ir.val(f"{output.name}_constant", const_value=ir.tensor(array))
            constant.const_value = ir.tensor(array, name=constant.name)
            graph.register_initializer(constant)
            ir.convenience.replace_all_uses_with(output, constant)
        graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
