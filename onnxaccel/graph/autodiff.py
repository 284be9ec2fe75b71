"""Reverse-mode differentiation of ONNX graphs into standard ONNX operators.

`backward` walks a graph against its data flow. Each node's rule (see `onnxaccel.graph.rules`) writes the
nodes of its vector-Jacobian product, gradients of values with several readers are summed, and what no one
asked for is never kept: rules write the gradients of all inputs, and unused nodes are removed at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxaccel.errors import ModelError, UnsupportedOperator
from onnxaccel.graph.builder import Builder, describe, operator_of
from onnxaccel.graph.expand import CONSTANT
from onnxaccel.graph.model import Model, name_of
from onnxaccel.graph.normalize import differentiable
from onnxaccel.graph.rules import gradient as rules


def is_float(value: ir.Value) -> bool:
    """Whether a value is a floating-point tensor; a value of unknown type counts as one."""
    return value.dtype is None or value.dtype.is_floating_point()


def backward(
    op: Builder, seeds: Mapping[ir.Value, ir.Value], wrt: Iterable[ir.Value]
) -> dict[ir.Value, ir.Value]:
    """Write the gradient of ``sum(seed * value)`` with respect to ``wrt``.

    Args:
        op: The builder over the graph; its values must have types and shapes (`Model.infer_shapes`).
        seeds: For each value to differentiate its cotangent, of the same shape.
        wrt: The values to differentiate by.

    Returns:
        The gradient of each value of ``wrt`` that the seeds depend on; the others are left out.

    Raises:
        UnsupportedOperator: A node on the way has no rule; raised before anything is written.
    """
    wrt = list(wrt)
    nodes = list(op.graph)
    active = _downstream(nodes, wrt)
    path = _upstream(nodes, seeds, active)
    missing = [node for node in path if rules.get(operator_of(node)) is None]
    if missing:
        raise UnsupportedOperator(_explain(missing))

    parts: dict[ir.Value, list[ir.Value]] = {value: [seed] for value, seed in seeds.items()}
    total: dict[ir.Value, ir.Value] = {}

    def collect(value: ir.Value) -> ir.Value | None:
        if value not in total and value in parts:
            grads = parts[value]
            summed = grads[0] if len(grads) == 1 else op.Sum(*grads) if len(grads) > 2 else op.Add(*grads)
            if summed.shape is None and not summed.is_graph_input() and not summed.is_initializer():
                summed.type, summed.shape = value.type, value.shape
            total[value] = summed
        return total.get(value)

    for node in reversed(path):
        dys = [collect(output) for output in node.outputs]
        if all(dy is None for dy in dys):
            continue
        rule = rules.get(operator_of(node))
        assert rule is not None
        op.origin = describe(node)
        dxs = rule(op, node, *dys)
        op.origin = None
        for x, dx in zip(node.inputs, [dxs] if isinstance(dxs, ir.Value) else dxs or (), strict=False):
            if x is not None and dx is not None and x in active:
                parts.setdefault(x, []).append(dx)
    gradients = {value: collect(value) for value in wrt}
    return {value: grad for value, grad in gradients.items() if grad is not None}


def _downstream(nodes: Sequence[ir.Node], wrt: Iterable[ir.Value]) -> set[ir.Value]:
    """The float values that depend differentiably on ``wrt``."""
    active = set(wrt)
    for node in nodes:
        if node.op_type not in CONSTANT and any(x in active for x in reads(node)):
            active.update(output for output in node.outputs if is_float(output))
    return active


def reads(node: ir.Node) -> list[ir.Value]:
    """The values that a node depends on: its inputs, and what its subgraphs read from outside."""
    graphs = [graph for attr in node.attributes.values() if (graph := _graph(attr)) is not None]
    inner = [x for graph in graphs for n in graph.all_nodes() for x in n.inputs]
    results = [x for graph in graphs for x in graph.outputs]
    return [x for x in [*node.inputs, *inner, *results] if x is not None]


def _graph(attr: ir.Attr) -> ir.Graph | None:
    return attr.as_graph() if attr.type == ir.AttributeType.GRAPH else None


def _upstream(nodes: Sequence[ir.Node], seeds: Iterable[ir.Value], active: set[ir.Value]) -> list[ir.Node]:
    """The nodes between ``wrt`` and ``seeds``, in the graph's order."""
    wanted = set(seeds)
    path = []
    for node in reversed(nodes):
        inputs = [x for x in reads(node) if x in active]
        if inputs and any(output in wanted and output in active for output in node.outputs):
            wanted.update(inputs)
            path.append(node)
    return path[::-1]


def _explain(missing: Sequence[ir.Node]) -> str:
    operators = sorted({operator_of(node) for node in missing})
    return (
        f"no gradient rule for {', '.join(operators)}, first needed at {describe(missing[0])}; freeze the "
        f"parameters before it, or add a rule with @gradient({operators[0]!r}) in onnxaccel/graph/rules"
    )


def gradient(
    model: Model | onnx.ModelProto | str | os.PathLike[str],
    wrt: str | Sequence[str] = "inputs",
) -> Model:
    """The gradient graph of a model, in standard operators, for any ONNX runtime.

    Args:
        model: A path, a ModelProto or a `Model`. It is not changed.
        wrt: "inputs" (the float ones), "parameters" (the trainable ones), or names of inputs and
            initializers.

    Returns:
        A model with the original inputs plus, for each float output, one seed ``<output>_grad`` of its shape;
        and with the original outputs plus ``<name>_grad`` for each name of ``wrt``: the vector-Jacobian
        product ``sum over outputs of seed * d output / d name``. Zeros where no output depends on a name.

    Raises:
        UnsupportedOperator: A node on the way has no gradient rule.
        ModelError: A name is not in the model or not a float.
    """
    model = as_model(model).copy()
    differentiable(model)
    graph = model.graph
    values = _select(model, wrt)
    op = Builder(graph)
    seeds = {}
    for output in list(graph.outputs):
        if is_float(output):
            seed = ir.Value(name=f"{output.name}_grad", type=output.type, shape=output.shape)
            seeds[output] = seed
    grads = backward(op, seeds, values)
    graph.inputs.extend(seeds.values())
    for value in values:
        grad = grads[value] if value in grads else op.zeros_like(value)
        result = op.Identity(grad)
        result.name = f"{value.name}_grad"
        result.type, result.shape = value.type, value.shape
        graph.outputs.append(result)
    prune(model)
    return model


def as_model(model: Model | onnx.ModelProto | str | os.PathLike[str]) -> Model:
    """A `Model` from a path or a ModelProto; a `Model` is given back as it is."""
    if isinstance(model, Model):
        return model
    return Model.from_proto(model) if isinstance(model, onnx.ModelProto) else Model.load(model)


def _select(model: Model, wrt: str | Sequence[str]) -> list[ir.Value]:
    if wrt == "inputs":
        return [v for v in model.inputs if is_float(v)]
    if wrt == "parameters":
        from onnxaccel.graph.parameters import trainable

        return trainable(model)
    named: dict[str, Any] = {name_of(v): v for v in model.inputs} | dict(model.graph.initializers)
    values = []
    for name in [wrt] if isinstance(wrt, str) else wrt:
        if name not in named or not is_float(named[name]):
            raise ModelError(
                f"{name!r} is no float input or initializer of the model; "
                f"its inputs are {', '.join(model.input_names())}"
            )
        values.append(named[name])
    return values


def prune(model: Model) -> None:
    """Remove nodes and initializers that no output depends on."""
    passes.RemoveUnusedNodesPass()(model.ir)
