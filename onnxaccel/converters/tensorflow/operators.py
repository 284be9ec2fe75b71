"""TensorFlow operators that tf2onnx lacks or maps wrongly, and the marks that we leave in a graph ourselves.

Each is one function, ``@operator("Expm1")``, that writes ONNX nodes and gives the values that take the place
of the node's outputs. A mark is a PyFunc node that is never run: its token says what stands there (see
`mark`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxaccel.errors import ConversionError
from onnxaccel.registry import Registry

Rule = Callable[["Writer"], "str | Sequence[str]"]

operator: Registry[Rule] = Registry("TensorFlow operator")
"""Rules by TensorFlow's operator name."""

marked: Registry[Rule] = Registry("mark")
"""Rules by the kind of a mark."""

MARK = "onnxaccel:"
"""What the token of a mark begins with."""


class Writer:
    """Writes ONNX nodes in the place of a node: ``op.Sub(op.Exp(op.x[0]), op.like(1, op.x[0]))``.

    Args:
        ctx: tf2onnx's graph.
        node: The node to replace.
        settings: What a mark was given.

    Attributes:
        x: Names of the node's inputs.
    """

    def __init__(self, ctx: Any, node: Any, settings: dict[str, Any] | None = None) -> None:
        self.ctx = ctx
        self.tf_node = node
        self.settings = settings or {}
        self.x: list[str] = list(node.input)

    def __getattr__(self, op_type: str) -> Callable[..., str]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.node(op_type, inputs, **attributes)[0]

    def node(self, op_type: str, inputs: Sequence[Any], outputs: int = 1, **attributes: Any) -> Sequence[str]:
        """Append a node; numbers and arrays among the inputs become constants, None is an absent input."""
        from tf2onnx import utils

        names = ["" if x is None else x if isinstance(x, str) else self.constant(x) for x in inputs]
        name = f"{self.tf_node.name.removesuffix('/PyFunc')}/{op_type}"  # a mark's scope is its layer
        if self.ctx.get_node_by_name(name) is not None:
            name = utils.make_name(name)
        made = self.ctx.make_node(op_type, names, attr=attributes, output_count=outputs, name=name)
        results: Sequence[str] = made.output
        return results

    def constant(self, data: Any) -> str:
        """A constant; Python integers are int64."""
        from tf2onnx import utils

        name: str = self.ctx.make_const(utils.make_name("const"), np.asarray(data)).output[0]
        return name

    def like(self, number: float, x: str) -> str:
        """A constant of the type of ``x``."""
        from tf2onnx import utils

        return self.constant(np.array(number, utils.map_onnx_to_numpy_type(self.ctx.get_dtype(x))))

    def shape(self, x: str) -> list[int] | None:
        """The shape of ``x``, -1 where it is not known."""
        found: list[int] | None = self.ctx.get_shape(x)
        return found

    def attribute(self, name: str) -> Any:
        """An attribute of the node."""
        return self.tf_node.get_attr_value(name)


def handlers() -> dict[str, Any]:
    """All rules in the form that tf2onnx takes."""

    def handler(rule: Rule) -> Callable[..., None]:
        def replace(ctx: Any, node: Any, name: str, args: Any, **_: Any) -> None:
            _replace(Writer(ctx, node), rule)

        return replace

    rules = {name: operator.get(name) for name in operator}
    return {name: (handler(rule), []) for name, rule in rules.items() if rule} | {"PyFunc": (_marked, [])}


def _replace(op: Writer, rule: Rule) -> None:
    ctx, node = op.ctx, op.tf_node
    outputs = list(node.output)
    types = [(ctx.get_shape(name), ctx.get_dtype(name)) for name in outputs]
    ctx.remove_node(node.name)
    results = rule(op)
    results = [results] if isinstance(results, str) else results
    for index, (result, output, (shape, dtype)) in enumerate(zip(results, outputs, types, strict=False)):
        name = node.name if index == 0 else f"{node.name}/{index}"
        ctx.make_node("Identity", [result], name=name, outputs=[output], shapes=[shape], dtypes=[dtype])


def mark(kind: str, inputs: Sequence[Any], outputs: Sequence[Any], **settings: Any) -> list[Any]:
    """Leave a mark in the graph being traced.

    Args:
        kind: A key of `marked`.
        inputs: Tensors.
        outputs: (shape, dtype) of each output; None in a shape is dynamic.
        **settings: What the rule is to know, as JSON can hold it.

    Returns:
        One tensor for each of ``outputs``.
    """
    import tensorflow as tf

    token = MARK + json.dumps({"kind": kind, **settings})
    results = tf.raw_ops.PyFunc(input=list(inputs), token=token, Tout=[dtype for _, dtype in outputs])
    return [tf.ensure_shape(result, shape) for result, (shape, _) in zip(results, outputs, strict=True)]


def _marked(ctx: Any, node: Any, name: str, args: Any, **_: Any) -> None:
    token = node.get_attr_value("token")
    token = token.decode() if isinstance(token, bytes) else token
    if not token.startswith(MARK):
        raise ConversionError(f"node {node.name!r} calls Python (tf.py_function), which has no ONNX form")
    settings = json.loads(token.removeprefix(MARK))
    rule = marked.get(settings.pop("kind"))
    assert rule is not None
    _replace(Writer(ctx, node, settings), rule)


@operator("Erfc")
def erfc(op: Writer) -> str:
    """``1 - erf(x)``, which Keras's exact gelu uses."""
    return op.Sub(op.like(1, op.x[0]), op.Erf(op.x[0]))


@operator("Expm1")
def expm1(op: Writer) -> str:
    """``exp(x) - 1``."""
    return op.Sub(op.Exp(op.x[0]), op.like(1, op.x[0]))


@operator("Log1p")
def log1p(op: Writer) -> str:
    """``log(1 + x)``."""
    return op.Log(op.Add(op.x[0], op.like(1, op.x[0])))


@operator("Inv")
def inv(op: Writer) -> str:
    """``1 / x``, under its old name."""
    return op.Reciprocal(op.x[0])


@operator("Xlogy")
def xlogy(op: Writer) -> str:
    """``x log(y)``, 0 where x is 0."""
    return _unless_zero(op, op.Mul(op.x[0], op.Log(op.x[1])))


@operator("Xlog1py")
def xlog1py(op: Writer) -> str:
    """``x log(1 + y)``, 0 where x is 0."""
    return _unless_zero(op, op.Mul(op.x[0], op.Log(op.Add(op.x[1], op.like(1, op.x[1])))))


@operator("Xdivy")
def xdivy(op: Writer) -> str:
    """``x / y``, 0 where x is 0."""
    return _unless_zero(op, op.Div(op.x[0], op.x[1]))


@operator("MulNoNan")
def mul_no_nan(op: Writer) -> str:
    """``x y``, 0 where y is 0 whatever x is."""
    zero = op.like(0, op.x[1])
    return op.Where(op.Equal(op.x[1], zero), zero, op.Mul(op.x[0], op.x[1]))


def _unless_zero(op: Writer, value: str) -> str:
    zero = op.like(0, op.x[0])
    return op.Where(op.Equal(op.x[0], zero), zero, value)


@operator("TruncateMod")
def truncate_mod(op: Writer) -> str:
    """C's remainder: the sign of the dividend."""
    return op.Mod(op.x[0], op.x[1], fmod=1)


@operator("EuclideanNorm")
def euclidean_norm(op: Writer) -> str:
    """The root of the sum of squares over axes."""
    axes = op.Cast(op.x[1], to=7)
    if op.shape(op.x[1]) == []:
        axes = op.Unsqueeze(axes, [0])
    return op.ReduceL2(op.x[0], axes, keepdims=int(op.attribute("keep_dims")))


@operator("L2Loss")
def l2_loss(op: Writer) -> str:
    """Half the sum of squares."""
    return op.Mul(op.ReduceSumSquare(op.x[0], keepdims=0), op.like(0.5, op.x[0]))


@operator("Rank")
def rank(op: Writer) -> str:
    """The number of dimensions."""
    return op.Cast(op.Size(op.Shape(op.x[0])), to=6)


@operator("ShapeN")
def shapes(op: Writer) -> list[str]:
    """The shape of each input."""
    return [op.Cast(op.Shape(x), to=op.attribute("out_type")) for x in op.x]


@operator("CheckNumerics", "CheckNumericsV2", "Snapshot", "GuaranteeConst")
def unchanged(op: Writer) -> str:
    """Operators that pass their input on."""
    return op.Identity(op.x[0])


@operator("Bucketize")
def bucketize(op: Writer) -> str:
    """How many boundaries are not above x."""
    boundaries = np.array(op.attribute("boundaries"), np.float32)
    x = op.Unsqueeze(op.Cast(op.x[0], to=1), [-1])
    reached = op.Cast(op.GreaterOrEqual(x, boundaries), to=6)
    return op.ReduceSum(reached, [-1], keepdims=0)


@operator("ReverseV2")
def reverse(op: Writer) -> str:
    """The order of some axes turned around, as one Slice."""
    found = op.ctx.get_node_by_output(op.x[1])
    if found is None or not found.is_const():
        raise ConversionError("ReverseV2: its axes must be constant")
    axes = np.atleast_1d(found.get_tensor_value(as_list=False)).astype(np.int64)
    ends = np.full(len(axes), -(2**63 - 1), np.int64)
    return op.Slice(op.x[0], np.full(len(axes), -1, np.int64), ends, axes, np.full(len(axes), -1, np.int64))
