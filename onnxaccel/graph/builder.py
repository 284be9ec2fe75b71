"""`Builder`: writes nodes into a graph, one call per operator: ``op.Concat(op.Mul(x, y), z, axis=1)``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxaccel.graph.bodies import nested, values_of
from onnxaccel.graph.model import OPSET, name_of, tensor_of

Operand = ir.Value | float | int | Sequence[int] | np.ndarray[Any, Any] | np.generic | None
"""An input of a node: a value, None for an absent one, or a number or array that becomes an initializer."""

_INT64 = frozenset({"Shape", "Size", "NonZero", "ArgMax", "ArgMin"})
_BOOL = frozenset(
    {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf"}
)
_TYPED_BY = {"Where": 1, "CastLike": 1, "DequantizeLinear": 1, "OneHot": 2}
"""Operators whose result has the type of another input than the first."""

_UNTYPED = frozenset({"If", "Loop", "Scan"})
"""Operators whose results have the types that their subgraphs give them."""


ORIGIN = "onnxaccel.gradient_of"
"""The entry of a node's metadata that says which node's gradient it belongs to."""


class Emit(Protocol):
    """Writes one operator: inputs by position, attributes by keyword; gives its first or its only output."""

    def __call__(self, *inputs: Operand, **attributes: Any) -> ir.Value:
        """Append the node."""


class Builder:
    """Appends nodes to a graph.

    ``op.X(...)`` appends a node of operator X of the default domain and returns its output. Numbers and
    arrays among the inputs become initializers: floats of the type of the first value among the inputs,
    integers int64.

    Args:
        graph: The graph to extend.
        prefix: First part of the names of new nodes and values.
        root: The main graph that ``graph`` is a subgraph of; None: it is the main graph.
        device: What the graph will run on, "cpu" or "cuda"; gradients take the form that is fast there.

    Attributes:
        origin: What new nodes are noted to be the gradient of, or None.
    """

    def __init__(
        self, graph: ir.Graph, prefix: str = "grad", root: ir.Graph | None = None, device: str = "cpu"
    ) -> None:
        self.graph = graph
        self.prefix = prefix
        self.device = device
        self.origin: str | None = None
        self.root = graph if root is None else root
        self._count = 0
        self._taken = {value.name for inner in nested(self.root) for value in values_of(inner)}

    def within(self, body: ir.Graph) -> Builder:
        """A builder for a new subgraph; what is in it already is renamed, so that no name hides another."""
        inner = Builder(body, self.fresh("body"), self.root, self.device)
        for graph in nested(body):
            for value in list(values_of(graph)):
                value.name = inner.fresh("value")
            for node in graph:
                node.name = inner.fresh(node.op_type)
        return inner

    @property
    def opset(self) -> int:
        """Version of the default operator set that nodes are written in."""
        return self.root.opset_imports.get("", OPSET)

    def __getattr__(self, op_type: str) -> Emit:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.node(op_type, inputs, **attributes)[0]

    def node(
        self,
        op_type: str,
        inputs: Sequence[Operand],
        *,
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Append a node and return all its outputs.

        Args:
            op_type: The operator.
            inputs: Its inputs.
            outputs: How many outputs it has.
            domain: The operator's domain.
            **attributes: Its attributes; None leaves one out.
        """
        types = [v.dtype for v in inputs if isinstance(v, ir.Value) and v.dtype is not None]
        like = next((dtype for dtype in types if dtype.is_floating_point()), None)
        values = [v if v is None or isinstance(v, ir.Value) else self.constant(v, like) for v in inputs]
        while values and values[-1] is None:
            values.pop()
        given = {key: value for key, value in attributes.items() if value is not None}
        node = ir.node(op_type, values, given, domain=domain, num_outputs=outputs)
        node.name = self.fresh(op_type)
        if self.origin is not None:
            node.metadata_props[ORIGIN] = self.origin
        dtype = self._result_type(op_type, values, given)
        for index, output in enumerate(node.outputs):
            output.name = node.name if index == 0 else f"{node.name}.{index}"
            if dtype is not None:
                output.type = ir.TensorType(dtype)
        self.graph.append(node)
        return node.outputs

    def ReduceSum(self, x: ir.Value, axes: Operand = None, **attributes: Any) -> ir.Value:
        """A sum; over the first axis and others, the first one comes last, in a node of its own.

        onnxruntime then shares the sums between threads by that axis; in one node it takes up to three times
        as long on CPU, and longer on two threads than on one.
        """
        if isinstance(axes, list) and 0 in axes and len(axes) > 1:
            x = self.node("ReduceSum", [x, [axis for axis in axes if axis]], **attributes)[0]
            axes = [0]
        return self.node("ReduceSum", [x, axes], **attributes)[0]

    def constant(self, data: Any, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer holding ``data``; equal ones are shared.

        Args:
            data: A number, a list of numbers or an array. Python floats take ``dtype``, all else keeps its
                own type (int64 for Python integers).
            dtype: Type of Python floats; float32 when None.
        """
        array = np.asarray(data)
        if not isinstance(data, (np.ndarray, np.generic)) and array.dtype.kind == "f" and array.size:
            array = array.astype((dtype or ir.DataType.FLOAT).numpy())
        elif not isinstance(data, (np.ndarray, np.generic)) and array.dtype.kind != "b":
            array = array.astype(np.int64)
        digest = hashlib.sha1(array.tobytes()).hexdigest()[:12]
        shape = "x".join(map(str, array.shape)) or "scalar"
        scope = "" if self.graph is self.root else f"{self.prefix}/"
        name = f"{scope}const/{array.dtype.name}/{shape}/{digest}"
        if name not in self.graph.initializers:
            value = ir.val(name, const_value=ir.tensor(array, name=name))
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def fresh(self, stem: str) -> str:
        """A name that no value of the graph has."""
        while True:
            self._count += 1
            name = f"{self.prefix}/{stem}_{self._count}"
            if name not in self._taken:
                return name

    def reshape_like(self, x: ir.Value, like: ir.Value) -> ir.Value:
        """``x`` in the shape of ``like``, which has as many elements."""
        dims = dims_of(like)
        if dims is not None and sum(not isinstance(d, int) for d in dims) <= 1 and 0 not in dims:
            return self.Reshape(x, [d if isinstance(d, int) else -1 for d in dims])
        return self.Reshape(x, self.Shape(like), allowzero=1)

    def expand_like(self, x: ir.Value, like: ir.Value) -> ir.Value:
        """``x`` broadcast to the shape of ``like``."""
        return self.Expand(x, self.shape_of(like))

    def shape_of(self, x: ir.Value) -> ir.Value:
        """The shape of ``x`` as an int64 vector; a constant where it is static."""
        dims = dims_of(x)
        if dims is not None and all(isinstance(d, int) for d in dims):
            return self.constant([int(d) for d in dims if isinstance(d, int)])
        return self.Shape(x)

    def zeros_like(self, x: ir.Value) -> ir.Value:
        """Zeros of the shape and type of ``x``."""
        return self.zeros(self.shape_of(x), x)

    def zeros(self, shape: ir.Value, like: ir.Value) -> ir.Value:
        """Zeros of a shape, an int64 vector, and of the type of ``like``."""
        dtype = like.dtype or ir.DataType.FLOAT
        zeros = self.ConstantOfShape(shape, value=ir.tensor(np.zeros(1, dtype.numpy())))
        zeros.type = ir.TensorType(dtype)
        return zeros

    def indicator(self, x: ir.Value, inclusive: bool = False) -> ir.Value:
        """1 where ``x`` is positive (``inclusive``: or zero), 0 where it is not, in the type of ``x``.

        For float32 and float64 this is one HardSigmoid so steep that every normal number saturates it, which
        onnxruntime runs several times faster on CPU than Sign, or Greater with Where.
        """
        if x.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            return self.HardSigmoid(x, alpha=1e38, beta=float(inclusive))
        assert x.dtype is not None
        positive = self.GreaterOrEqual(x, 0.0) if inclusive else self.Greater(x, 0.0)
        return self.Cast(positive, to=x.dtype.value)

    def _result_type(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any]
    ) -> ir.DataType | None:
        if op_type in _INT64:
            return ir.DataType.INT64
        if op_type in _BOOL:
            return ir.DataType.BOOL
        if op_type in _UNTYPED:
            return None
        stated = attributes.get("to", attributes.get("dtype"))
        if stated is not None:
            return ir.DataType(stated)
        if op_type == "ConstantOfShape":
            return attributes["value"].dtype if "value" in attributes else ir.DataType.FLOAT
        source = inputs[_TYPED_BY.get(op_type, 0)] if inputs else None
        return source.dtype if source is not None else None


Dim = int | str | None
"""A dimension: its size, the name of a symbolic one, or None when nothing is known."""


def dims_of(x: ir.Value) -> list[Dim] | None:
    """The dimensions of a value, or None when even the rank is unknown."""
    if x.shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in x.shape]


BATCH = 32
"""What a symbolic dimension, mostly the batch, counts for when sizes are compared."""


def estimated_size(x: ir.Value) -> float:
    """About how many elements a value has; infinity when even the rank is unknown."""
    dims = dims_of(x)
    return math.inf if dims is None else math.prod(d if isinstance(d, int) else BATCH for d in dims)


def constant_of(x: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The data of a value that is an initializer or a Constant node, None for all others."""
    if x is None or ir.convenience.get_const_tensor(x) is None:
        return None
    return tensor_of(x)


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value, or ``default`` when the node does not carry it."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def operator_of(node: ir.Node) -> str:
    """The operator's name, with its domain unless that is the default one."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def describe(node: ir.Node) -> str:
    """A node for messages: operator and name."""
    return f"{operator_of(node)} node {node.name or name_of(node.outputs[0])!r}"
