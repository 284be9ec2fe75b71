"""Mixed precision: products in float16 or bfloat16, everything that needs range or many sums in float32.

`to_mixed` writes the casts into the forward graph; the backward graph follows by the rule of Cast, so that
parameters, their gradients and the optimizer's state stay float32. Which operators run in which type follows
torch.autocast: convolutions and matrix products low, normalisations, softmax, reductions, powers and losses
float32, what moves or compares data in the type it gets. An operator that ONNX does not define for the type,
in the model's opset, stays float32: so do convolutions in bfloat16 below opset 22.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import numpy as np
import onnx_ir as ir
from onnx import defs
from onnx_ir.passes import common as passes

from onnxaccel.graph.autodiff import reads
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.model import Model, tensor_of

PRECISIONS = {"fp32": None, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""The type of the products, by the name that the command line takes; None: float32 as all else."""

_LOW = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that run in the low type."""

_FOLLOW = frozenset(
    """Abs Add AveragePool Clip Concat DepthToSpace Div Dropout Elu Expand Flatten Gather GatherElements
    GatherND GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity LeakyRelu Max MaxPool Min Mul Neg
    PRelu Pad Relu Reshape Sigmoid Slice SpaceToDepth Split Squeeze Sub Tanh Tile Transpose Unsqueeze
    Where""".split()
)
"""Operators that run in the low type where all data that they get is in it; the others run in float32."""

_INTEGERS = frozenset({"Dropout", "MaxPool", "TopK"})
"""Operators whose outputs after the first are no floats."""


def to_mixed(model: Model, op: Builder, dtype: ir.DataType, parameters: Collection[ir.Value]) -> None:
    """Let a model's products run in ``dtype``, in place; its inputs and outputs stay as they are.

    Args:
        model: A normalised model.
        op: The builder over its graph.
        dtype: FLOAT16 or BFLOAT16.
        parameters: What is trained: it is cast whatever its values are, while a constant outside the type's
            range keeps what reads it in float32.
    """
    passes.TopologicalSortPass()(model.ir)
    casts = _Casts(op)
    low: set[ir.Value] = set()
    static = set(model.graph.initializers.values())
    for node in list(model.graph):
        outer = reads(node)
        if outer and all(x in static for x in outer):
            static.update(node.outputs)
            continue
        floats = [x for x in node.inputs if x is not None and (x in low or x.dtype == ir.DataType.FLOAT)]
        wanted = ir.DataType.FLOAT
        allowed = _allowed(node.op_type, model.opset, dtype)
        if allowed and node.op_type in _LOW:
            wanted = dtype
        elif allowed:
            data = [x for x in floats if x not in static]
            narrow = all(_fits(x, dtype) for x in floats if x.is_initializer() and x not in parameters)
            wanted = dtype if data and narrow and all(x in low for x in data) else wanted
        if node.op_type not in ("Cast", "Shape", "Size"):  # these take any type
            _read_as(node, wanted, floats, casts)
        if wanted == dtype:
            for output in node.outputs[: 1 if node.op_type in _INTEGERS else None]:
                output.type = ir.TensorType(dtype)
                low.add(output)
    for index, output in enumerate(model.graph.outputs):
        if output in low:
            model.graph.outputs[index] = casts.of(output, ir.DataType.FLOAT)


def _read_as(node: ir.Node, dtype: ir.DataType, floats: list[ir.Value], casts: _Casts) -> None:
    """Let a node, and the graphs in it, read floats as ``dtype``."""
    for index, x in enumerate(node.inputs):
        if x is not None and x in floats and x.dtype != dtype:
            node.replace_input_with(index, casts.of(x, dtype, node))
    for attribute in node.attributes.values():
        if attribute.type != ir.AttributeType.GRAPH:
            continue
        for inner in attribute.as_graph().all_nodes():
            for index, x in enumerate(inner.inputs):
                if x is not None and x.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
                    inner.replace_input_with(index, casts.of(x, dtype, node))


@lru_cache
def _allowed(operator: str, opset: int, dtype: ir.DataType) -> bool:
    """Whether ONNX defines an operator for a type: convolutions take bfloat16 from opset 22 on only."""
    if operator not in _LOW | _FOLLOW:
        return False
    schema = defs.get_schema(operator, opset)
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    return f"tensor({dtype.name.lower()})" in allowed.get(schema.outputs[0].type_str, ())


def _fits(constant: ir.Value, dtype: ir.DataType) -> bool:
    """Whether no element of a constant is lost in ``dtype``: becomes infinite, or zero."""
    array = tensor_of(constant)
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype.numpy()).astype(array.dtype)
    return bool(np.all(np.isfinite(narrow) == np.isfinite(array)) and np.all((narrow == 0) == (array == 0)))


class _Casts:
    """Casts, each written once."""

    def __init__(self, op: Builder) -> None:
        self._op = op
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def of(self, x: ir.Value, dtype: ir.DataType, before: ir.Node | None = None) -> ir.Value:
        """``x`` as ``dtype``, computed before a node, or at the end."""
        if (x, dtype) not in self._made:
            cast = self._op.Cast(x, to=dtype.value)
            cast.shape = x.shape
            node = cast.producer()
            if before is not None and node is not None:
                self._op.graph.remove(node)
                self._op.graph.insert_before(before, node)
            self._made[x, dtype] = cast
        return self._made[x, dtype]


def emulate(model: Model, dtype: ir.DataType, kernels: Collection[str] = ()) -> None:
    """Compute in float32 and round every result to ``dtype``, in place, but for the operators in ``kernels``.

    For providers without other kernels for ``dtype``, such as the CPU's: the values are those of kernels that
    sum in float32, as the products of GPUs do.
    """
    op = Builder(model.graph, prefix="emulated")
    for node in list(model.graph):
        if node.op_type == "Cast" or node.op_type in kernels:
            continue
        for index, x in enumerate(node.inputs):
            if x is not None and x.dtype == dtype:
                node.replace_input_with(index, op.Cast(x, to=ir.DataType.FLOAT.value))
        value = node.attributes.get("value")
        if value is not None and value.type == ir.AttributeType.TENSOR and value.as_tensor().dtype == dtype:
            wide = ir.tensor(value.as_tensor().numpy().astype(np.float32))
            node.attributes["value"] = ir.AttrTensor("value", wide)
        for output in node.outputs[: 1 if node.op_type in _INTEGERS else None]:
            if output.dtype != dtype:
                continue
            rounded = op.Cast(output, to=dtype.value)
            rounded.shape = output.shape
            cast = rounded.producer()
            ir.convenience.replace_all_uses_with(output, rounded, replace_graph_outputs=True)
            assert cast is not None
            cast.replace_input_with(0, output)
            name = output.name
            output.name, rounded.name = op.fresh("wide"), name
            output.type = ir.TensorType(ir.DataType.FLOAT)
    passes.TopologicalSortPass()(model.ir)
