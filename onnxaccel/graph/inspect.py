"""What a model holds: its interface, parameters, arithmetic, and what of it can be trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.autodiff import is_float
from onnxaccel.graph.bodies import bodies, nested
from onnxaccel.graph.builder import Builder, attribute, dims_of, operator_of
from onnxaccel.graph.expand import CONSTANT, refusal
from onnxaccel.graph.model import Metadata, Model, name_of, tensor_of
from onnxaccel.graph.normalize import differentiable, normalize
from onnxaccel.graph.parameters import trainable
from onnxaccel.graph.rules import gradient


@dataclass(frozen=True)
class Tensor:
    """Name, element type and dimensions of an input, an output or a parameter; symbolic ones by name."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        inputs: The inputs.
        outputs: The outputs.
        parameters: The parameters that training may change.
        parameter_count: Number of their elements.
        weight_bytes: Bytes of all initializers.
        opset: The opset.
        operators: How often each operator occurs.
        flops: Floating-point operations of one pass per sample (a multiply-add counts as two), of
            convolutions and matrix products; None where a size other than the batch is dynamic.
        untrainable: For each operator without a gradient rule the nodes that use it.
        metadata: What the converter recorded.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: list[Tensor]
    parameter_count: int
    weight_bytes: int
    opset: int
    operators: dict[str, int]
    flops: int | None
    untrainable: dict[str, list[str]]
    metadata: Metadata


def inspect(model: Model) -> Inspection:
    """Describe a model; it is not changed."""
    model = model.copy()
    normalize(model)
    nodes = list(model.graph)
    parameters = trainable(model)
    flops = [_flops(node) for node in nodes]
    return Inspection(
        inputs=[_tensor(v) for v in model.inputs],
        outputs=[_tensor(v) for v in model.outputs],
        parameters=[_tensor(v) for v in parameters],
        parameter_count=sum(tensor_of(v).size for v in parameters),
        weight_bytes=model.nbytes,
        opset=model.opset,
        operators=operators(model),
        flops=None if None in flops else sum(f for f in flops if f is not None),
        untrainable=_untrainable(model),
        metadata=model.metadata,
    )


def _untrainable(model: Model) -> dict[str, list[str]]:
    """The nodes that cannot be differentiated, by operator, in subgraphs as well, and why if that is known.

    All that can be written out is written out first. Then each rule is tried on its own, so that one answer
    names all that stands in the way.
    """
    model = model.copy()
    try:
        differentiable(model)
    except UnsupportedOperator as error:
        return {"unsupported": [str(error)]}
    found: dict[str, list[str]] = {}
    builders = {graph: Builder(graph, "trial", model.graph) for graph in nested(model.graph)}
    for node in list(model.graph.all_nodes()):
        reason = _obstacle(node, builders)
        if reason is not None:
            found.setdefault(operator_of(node), []).append(reason)
    return found


def _obstacle(node: ir.Node, builders: dict[ir.Graph, Builder]) -> str | None:
    """Why a node cannot be differentiated, or its name where it has no rule; None where it can be."""
    operator = operator_of(node)
    if operator in CONSTANT or not any(is_float(x) for x in node.inputs if x is not None):
        return None
    rule = gradient.get(operator)
    if rule is None:
        return refusal(node) or node.name or name_of(node.outputs[0])
    if bodies(node) or not isinstance(node.graph, ir.Graph):
        return None  # what stands in the way of a loop or a branch stands in its body
    dys = [ir.val("dy", y.dtype, y.shape) if is_float(y) else None for y in node.outputs]
    try:
        rule(builders[node.graph], node, *dys)
    except UnsupportedOperator as error:
        return str(error)
    return None


def interface(values: Sequence[ir.Value]) -> list[dict[str, object]]:
    """Inputs or outputs as plain dictionaries: name, dtype, shape."""
    return [asdict(_tensor(value)) for value in values]


def operators(model: Model) -> dict[str, int]:
    """How often each operator occurs, the most frequent first."""
    return dict(Counter(operator_of(node) for node in model.graph).most_common())


def _tensor(value: ir.Value) -> Tensor:
    dims = [d if d is not None else "?" for d in dims_of(value) or []]
    return Tensor(name_of(value), value.dtype.numpy().name if value.dtype is not None else "?", dims)


def _flops(node: ir.Node) -> int | None:
    """Multiply-adds times two of one node, for one sample; 0 for operators that are not counted."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    first, second = node.inputs[:2]
    # each element of the result (ConvTranspose: of the input) takes part in one product per weight it meets
    counted = first if node.op_type == "ConvTranspose" else node.outputs[0]
    weight = dims_of(second) if second is not None else None
    dims = dims_of(counted) if counted is not None else None
    if dims is None or weight is None:
        return None
    per_sample = [d for d in dims[1:]] if not isinstance(dims[0], int) else dims[1:]
    if node.op_type in ("Conv", "ConvTranspose"):
        products = weight[1:]
    elif node.op_type == "Gemm":
        products = [weight[1] if attribute(node, "transB", 0) else weight[0]]
    else:
        products = [weight[-2] if len(weight) > 1 else weight[0]]
    sizes = [*per_sample, *products]
    if not all(isinstance(d, int) for d in sizes):
        return None
    return 2 * math.prod(d for d in sizes if isinstance(d, int))
