"""Reverse-mode differentiation of ONNX graphs into standard ONNX operators.

`backward` walks a graph against its data flow. Each node's rule (see `onnxaccel.graph.rules`) writes the
nodes of its vector-Jacobian product, gradients of values with several readers are summed, and what no one
asked for is never kept: rules write the gradients of all inputs, and unused nodes are removed at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxaccel.errors import ModelError, UnsupportedOperator
from onnxaccel.graph.bodies import bodies, captured
from onnxaccel.graph.builder import Builder, describe, operator_of
from onnxaccel.graph.expand import CONSTANT, refusal
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
    active = downstream(nodes, wrt)
    path = _upstream(nodes, seeds, active)
    missing = list(without_rule(nodes, wrt, seeds))
    if missing:
        raise UnsupportedOperator(_explain(nodes, missing, wrt))

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
        dxs = rule(op, node, *dys, active=active) if bodies(node) else rule(op, node, *dys)
        op.origin = None
        found = [dxs] if isinstance(dxs, ir.Value) else dxs or ()
        for x, dx in zip([*node.inputs, *captured(node)], found, strict=False):
            if x is not None and dx is not None and x in active:
                parts.setdefault(x, []).append(dx)
    gradients = {value: collect(value) for value in wrt}
    return {value: grad for value, grad in gradients.items() if grad is not None}


def downstream(nodes: Iterable[ir.Node], wrt: Iterable[ir.Value]) -> set[ir.Value]:
    """The float values that depend differentiably on ``wrt``."""
    active = set(wrt)
    for node in nodes:
        if node.op_type not in CONSTANT and any(x in active for x in reads(node)):
            active.update(output for output in node.outputs if is_float(output))
    return active


def reads(node: ir.Node) -> list[ir.Value]:
    """The values that a node depends on: its inputs, and what its subgraphs read from outside."""
    return [x for x in [*node.inputs, *captured(node)] if x is not None]


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


def without_rule(
    nodes: Sequence[ir.Node], wrt: Iterable[ir.Value], seeds: Iterable[ir.Value]
) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Nodes between ``wrt`` and ``seeds`` that have no gradient rule, in subgraphs as well.

    Yields:
        The node among ``nodes`` in which it is found, and the node itself.
    """
    active = downstream(nodes, wrt)
    for node in _upstream(nodes, seeds, active):
        if rules.get(operator_of(node)) is None:
            yield node, node
        for body in bodies(node):
            floats = [x for x in body.inputs if is_float(x)] + [x for x in captured(node) if x in active]
            results = [x for x in body.outputs if is_float(x)]
            yield from ((node, found) for _, found in without_rule(list(body), floats, results))


def _explain(
    nodes: Sequence[ir.Node], missing: Sequence[tuple[ir.Node, ir.Node]], wrt: Sequence[ir.Value]
) -> str:
    """All operators without a rule, why, and what to freeze so that none of them is needed."""
    by_operator: dict[str, list[ir.Node]] = {}
    for _, node in missing:
        by_operator.setdefault(operator_of(node), []).append(node)
    lines = []
    for found in by_operator.values():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        lines.append(refusal(found[0]) or f"no gradient rule for {describe(found[0])}{more}")
    blocked = {id(outer) for outer, _ in missing}
    before = [x for x in wrt if any(id(n) in blocked and _touches(n, nodes, x) for n in nodes)]
    names = ", ".join(str(x.name) for x in before[:_NAMED]) + (", ..." if len(before) > _NAMED else "")
    if len(before) < len(wrt):
        advice = f"freezing {names} ({len(before)} of {len(wrt)}) avoids it"
    else:
        advice = f"freezing does not avoid it, since all that is differentiated by lies before it ({names})"
    hint = f"a rule can be added with @gradient({next(iter(by_operator))!r}) in onnxaccel/graph/rules"
    return f"{'; '.join(lines)}; {advice}; {hint}"


_NAMED = 8
"""How many parameters a message names."""


def _touches(node: ir.Node, nodes: Sequence[ir.Node], x: ir.Value) -> bool:
    active = downstream(nodes, [x])
    return any(value in active for value in reads(node))


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
