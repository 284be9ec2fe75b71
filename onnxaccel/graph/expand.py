"""Operators without a gradient rule, written in terms of operators that have one.

Three sources, in this order: an ``@expansion``, the body that ONNX's schema gives an operator it defines as a
function, and nothing: such a node stays as it is, and `autodiff` refuses it if it is differentiated.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from onnx import defs
from onnx_ir.passes import common as passes

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.bodies import lift_weights, nested, own_constants, own_outputs
from onnxaccel.graph.builder import Builder, dims_of, operator_of
from onnxaccel.graph.model import Model, name_of
from onnxaccel.graph.rules import expansion
from onnxaccel.graph.rules import gradient as rules

CONSTANT = frozenset(
    """Shape Size ArgMax ArgMin Equal Greater GreaterOrEqual Less LessOrEqual Not And Or Xor IsNaN IsInf
    NonZero Sign Floor Ceil Round ConstantOfShape RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Bernoulli Multinomial EyeLike NonMaxSuppression QuantizeLinear
    Hardmax BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot StringNormalizer Constant
    HannWindow HammingWindow BlackmanWindow MelWeightMatrix""".split()
)
"""Operators whose derivative is zero wherever it exists, or whose results are no floats."""

_REFUSAL = "onnxaccel.refusal"
"""Key of a node's ``meta``: the message of the expansion that does not cover it."""

_DEPTH = 8
"""How often bodies are looked through for further functions; ONNX nests them two deep."""


def expand(model: Model) -> bool:
    """Write out, in place, every node without a rule that has an expansion or a function body.

    Returns:
        Whether there was one.
    """
    for depth in range(_DEPTH):
        everywhere = model.graph.all_nodes()
        pending = [n for n in everywhere if rules.get(operator_of(n)) is None and n.op_type not in CONSTANT]
        written = [_write_out(model, node) or _call_body(model, node) for node in pending]
        if not any(written):
            return depth > 0
        plain_form(model)
    return True


def plain_form(model: Model) -> None:
    """Inline functions, make constants initializers of the main graph, sort, name, infer types and shapes."""
    ir.passes.Sequential(
        passes.InlinePass(),
        passes.RemoveInitializersFromInputsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.TopologicalSortPass(),
        passes.RemoveUnusedNodesPass(),
    )(model.ir)
    for graph in nested(model.graph):
        if graph is not model.graph:
            lift_weights(graph, model.graph)
            own_constants(graph)
            own_outputs(graph)
    passes.NameFixPass()(model.ir)
    model.infer_shapes()


def _write_out(model: Model, node: ir.Node) -> bool:
    """Replace a node by its ``@expansion``."""
    rule = expansion.get(operator_of(node))
    if rule is None or node.graph is None or refusal(node):
        return False
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    before = set(graph)
    op = Builder(graph, node.name or name_of(node.outputs[0]), model.graph)
    try:
        outputs = rule(op, node)
    except UnsupportedOperator as error:
        node.meta[_REFUSAL] = str(error)
        graph.remove([n for n in reversed(list(graph)) if n not in before], safe=False)
        return False
    for old, new in zip(node.outputs, [outputs] if isinstance(outputs, ir.Value) else outputs, strict=False):
        if new.type is None or new.shape is None:
            new.type, new.shape = old.type, old.shape
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name, new.name = None, name
    graph.remove(node, safe=True)
    return True


def refusal(node: ir.Node) -> str | None:
    """Why a node's expansion does not cover it, or None."""
    reason: str | None = node.meta.get(_REFUSAL)
    return reason


def _call_body(model: Model, node: ir.Node) -> bool:
    """Make a node a call of the function that its schema defines it by, for the inliner to write out."""
    if node.domain not in ("", "ai.onnx") or not defs.has(node.op_type):
        return False
    schema = defs.get_schema(node.op_type, model.opset)
    body = _body(schema, node, model.opset)
    if body is None:
        return False
    for name, declared in schema.attributes.items():
        if name not in node.attributes and declared.default_value.name:
            node.attributes[name] = ir.from_proto(declared.default_value)
    node.domain, node.overload = "", node.name or name_of(node.outputs[0])
    body.domain, body.name, body.overload = node.op_identifier()
    del body.opset_import[:]
    body.opset_import.append(onnx.helper.make_opsetid("", model.opset))
    produced = {name for inner in body.node for name in inner.output}
    kept = [name for name in body.output if name in produced]  # unused results may be left out
    if kept != list(body.output[: len(kept)]):
        return False
    del body.output[len(kept) :]
    node.resize_outputs(min(len(node.outputs), len(kept)))
    model.ir.functions[node.op_identifier()] = ir.from_proto(body)
    return True


def _body(schema: Any, node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    def newest(versions: list[int]) -> int | None:
        return max((version for version in versions if version <= opset), default=None)

    version = newest(schema.function_opset_versions)
    if version is not None:
        return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(version))
    version = newest(schema.context_dependent_function_opset_versions)
    if version is None:
        return None
    types = [_type(x) for x in node.inputs]
    built = schema.get_context_dependent_function_with_opset_version(
        version, ir.to_proto(node).SerializeToString(), [t.SerializeToString() for t in types]
    )
    return onnx.FunctionProto.FromString(built) if built else None


def _type(x: ir.Value | None) -> onnx.TypeProto:
    if x is None or x.dtype is None:
        return onnx.TypeProto()
    return onnx.helper.make_tensor_type_proto(x.dtype.value, dims_of(x))
