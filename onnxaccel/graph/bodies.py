"""The subgraphs of a node: the branches of If, the bodies of Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The node's own subgraphs."""
    return [attr.as_graph() for attr in node.attributes.values() if attr.type == ir.AttributeType.GRAPH]


def nested(graph: ir.Graph) -> Iterator[ir.Graph]:
    """``graph`` and all graphs within it, outer ones first."""
    yield graph
    for node in graph:
        for body in bodies(node):
            yield from nested(body)


def values_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values that ``graph`` itself defines: inputs, initializers, and what its nodes compute."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def captured(node: ir.Node) -> list[ir.Value]:
    """The values that the node's subgraphs read from outside, each once, in the order of their use."""
    graphs = [inner for body in bodies(node) for inner in nested(body)]
    own = {value for graph in graphs for value in values_of(graph)}
    read = [x for graph in graphs for x in [*(x for n in graph for x in n.inputs), *graph.outputs]]
    return list(dict.fromkeys(x for x in read if x is not None and x not in own))


def lift_weights(graph: ir.Graph, root: ir.Graph) -> None:
    """Move a subgraph's float initializers, but for scalars, to the main graph, where training looks."""
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or tensor.size < 2:
            continue
        del graph.initializers[name]
        if name in root.initializers:
            value.name = f"{graph.name}/{name}"
        root.register_initializer(value)


def own_constants(graph: ir.Graph) -> None:
    """Copy into a subgraph the short integer constants that it reads from outside.

    ONNX's inference, which runs over subgraphs one by one, sees no axes and no shapes that lie outside.
    """
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is None or value.graph is graph or not value.is_initializer():
                continue
            tensor = value.const_value
            if tensor is None or tensor.dtype.is_floating_point() or tensor.size > _SHORT:
                continue
            name = f"{graph.name}/{value.name}"
            if name not in graph.initializers:
                graph.register_initializer(ir.val(name, const_value=ir.tensor(tensor.numpy(), name=name)))
            node.replace_input_with(index, graph.initializers[name])


_SHORT = 64
"""Elements of what counts as a short constant."""


def own_outputs(graph: ir.Graph) -> None:
    """Make each output of a subgraph the result of a node of its own, for gradients to start from."""
    seen: set[ir.Value] = set()
    for index, value in enumerate(graph.outputs):
        producer = value.producer()
        if producer is not None and producer.graph is graph and value not in seen:
            seen.add(value)
            continue
        copy = ir.node("Identity", [value])
        copy.outputs[0].name = f"{graph.name}/{value.name}/{index}"
        copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
        graph.append(copy)
        graph.outputs[index] = copy.outputs[0]
