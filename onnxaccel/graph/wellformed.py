"""Whether a graph holds together: every value comes from somewhere, none from itself."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.errors import ModelError

_SMALL = 2**20
"""Bytes of external data that are read at once: shapes follow from small constants, axes for one."""


def check_graph(model: ir.Model) -> None:
    """Refuse a model whose nodes read values that nothing writes, or that depend on themselves.

    Nodes that stand before what they read are put behind it.

    Raises:
        ModelError: The graph does not hold together.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        _check_names(graph)
        _check_reads(graph, set())
        try:
            graph.sort()
        except ValueError:
            raise ModelError("the graph's nodes depend on themselves; export the model again") from None


def read_small(graph: ir.Graph) -> None:
    """Bring the small initializers that lie in other files into memory."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= _SMALL:
            value.const_value = ir.tensor(tensor.numpy().copy(), name=tensor.name)


def _check_names(graph: ir.Graph | ir.GraphView) -> None:
    """A name is text; protobuf's Python gives bytes where it is not UTF-8."""
    for node in graph:
        for value in (*node.inputs, *node.outputs):
            if value is not None and not isinstance(value.name, str):
                raise ModelError(f"node {node.name!r} ({node.op_type}) has a value named {value.name!r}")


def _check_reads(graph: ir.Graph | ir.GraphView, outer: set[ir.Value]) -> None:
    known = {*outer, *graph.inputs, *graph.initializers.values()}
    for node in graph:
        known.update(node.outputs)
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                raise ModelError(
                    f"node {node.name!r} ({node.op_type}) reads {value.name!r}, which nothing writes; export "
                    "the model again"
                )
        for attribute in node.attributes.values():
            if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
                _check_reads(attribute.as_graph(), known)
            elif isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    _check_reads(inner, known)
    for value in graph.outputs:
        if value not in known:
            raise ModelError(f"output {value.name!r} is written by nothing; export the model again")
