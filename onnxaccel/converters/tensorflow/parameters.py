"""Which constants of a frozen graph are parameters, and BatchNormalization found again in one.

The rule: a float constant is a parameter where it is, directly or through operators that move or cast it,

- the kernel of a matrix product or a convolution,
- what BiasAdd adds, or a vector that Add adds to the result of one of these,
- a BatchNormalization's scale, offset, and (not trained by gradient, but kept up) mean and variance,
- the table that Gather looks rows up in.

All else (scale factors, thresholds, normalisation of the input) stays constant unless it is named.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from onnxaccel.converters.tensorflow.operators import MARK
from onnxaccel.errors import ConversionError

_KERNELS = {
    "MatMul": (0, 1),
    "BatchMatMulV2": (0, 1),
    "Conv2D": (1,),
    "Conv3D": (1,),
    "DepthwiseConv2dNative": (1,),
    "Conv2DBackpropInput": (1,),
    "Conv3DBackpropInputV2": (1,),
    "Einsum": (0, 1),
}
"""Inputs that may be kernels, by operator."""

_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_TABLES = ("Gather", "GatherV2", "ResourceGather")
_MOVES = ("Identity", "Reshape", "Transpose", "Cast", "ExpandDims", "Squeeze", "ReadVariableOp", "Enter")


def find_parameters(graph_def: Any, named: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The constants that are parameters, in the order of the graph.

    Args:
        graph_def: The graph.
        named: Names or patterns (``dense*``) that replace the rule.

    Returns:
        Names of all parameters, and of those that a gradient trains.

    Raises:
        ConversionError: A name fits no float constant.
    """
    nodes = {node.name: node for node in graph_def.node}
    floats = [n.name for n in graph_def.node if n.op == "Const" and n.attr["dtype"].type in (1, 2, 14, 19)]
    if named:
        chosen: list[str] = []
        for pattern in named:
            found = fnmatch.filter(floats, pattern)
            if not found:
                raise ConversionError(
                    f"--parameters {pattern}: there is no such float constant, but {', '.join(floats[:8])}"
                )
            chosen += found
        return chosen, chosen
    trained: set[str] = set()
    kept: set[str] = set()

    def constant(name: str) -> str | None:
        node = nodes.get(_node(name))
        while node is not None and node.op in _MOVES and node.input:
            node = nodes.get(_node(node.input[0]))
        return node.name if node is not None and node.op == "Const" else None

    def product(name: str) -> bool:
        node = nodes.get(_node(name))
        while node is not None and node.op in _MOVES and node.input:
            node = nodes.get(_node(node.input[0]))
        return node is not None and node.op in _KERNELS

    for node in graph_def.node:
        inputs = [name for name in node.input if not name.startswith("^")]
        operands: Iterable[str] = [inputs[i] for i in _KERNELS.get(node.op, ()) if i < len(inputs)]
        if node.op == "BiasAdd":
            operands = inputs[1:2]
        elif node.op in ("Add", "AddV2") and any(product(name) for name in inputs):
            operands = inputs
        elif node.op in _TABLES:
            operands = inputs[:1]
        elif node.op in _NORMS:
            operands = inputs[1:3]
            kept |= {name for x in inputs[3:5] if (name := constant(x)) is not None}
        trained |= {name for x in operands if (name := constant(x)) is not None}
    every = [n for n in floats if n in (trained | kept) and _size(nodes[n]) > 0]
    return every, [name for name in every if name in trained - kept]


def loop_constants(graph_def: Any) -> set[str]:
    """The constants that a loop reads: through Enter in TF1's graphs, as operands of While in others."""
    nodes = {node.name: node for node in graph_def.node}
    found, pending = set(), []
    for node in graph_def.node:
        if node.op in ("Enter", "While", "StatelessWhile"):
            pending += list(node.input)
    while pending:
        node = nodes.get(_node(pending.pop()))
        if node is not None and node.op == "Const":
            found.add(node.name)
        elif node is not None and node.op in _MOVES:
            pending += list(node.input)
    return found


def _size(node: Any) -> int:
    return int(np.prod([d.size for d in node.attr["value"].tensor.tensor_shape.dim]))


def _node(name: str) -> str:
    return name.split(":")[0].lstrip("^")


def mark_batch_norms(graph_def: Any) -> None:
    """Find BatchNormalization where it was traced as ``x s + (beta - mean s)``, s = gamma / sqrt(var + eps).

    That is how Keras 3 traces it; the last Add becomes a mark (see `operators`), whose scale, offset, mean
    and variance are the graph's own.
    """
    nodes = {node.name: node for node in graph_def.node}

    def op(name: str, *kinds: str) -> Any:
        node = nodes.get(_node(name))
        while node is not None and node.op in ("Identity", "Cast") and node.op not in kinds and node.input:
            node = nodes.get(_node(node.input[0]))
        return node if node is not None and node.op in kinds else None

    def root(name: str) -> str | None:
        node = op(name, "Placeholder", "Const")
        return None if node is None else str(node.name)

    for node in list(graph_def.node):
        found = _batch_norm(node, op, root)
        if found is None:
            continue
        x, scale, offset, mean, var, epsilon = found
        shapes = [d.size for d in nodes[mean].attr["shape"].shape.dim]
        if len(shapes) != 1:
            continue
        names = []
        for role, value, fill in (("scale", scale, 1.0), ("offset", offset, 0.0)):
            if value is None:
                value = f"{node.name}/{role}"
                extra = graph_def.node.add(name=value, op="Const")
                _fill(extra, np.full(shapes, fill, np.float32))
            names.append(value)
        _become_mark(
            graph_def, node, [x, *names, mean, var], {"kind": "batch_norm", "epsilon": epsilon, "axis": -1}
        )


def _become_mark(graph_def: Any, node: Any, inputs: list[str], settings: dict[str, Any]) -> None:
    """A mark, and in the place of ``node`` what tells its shape."""
    dtype, shapes = node.attr["T"].type, node.attr["_output_shapes"].list.shape
    mark = graph_def.node.add(name=f"{node.name}/PyFunc", op="PyFunc")
    mark.input.extend(inputs)
    mark.attr["token"].s = (MARK + json.dumps(settings)).encode()
    mark.attr["Tin"].list.type.extend([dtype] * len(inputs))
    mark.attr["Tout"].list.type.append(dtype)
    shape = type(node.attr["shape"].shape)(unknown_rank=True)
    if shapes:
        shape.CopyFrom(shapes[0])
    node.op = "EnsureShape"
    del node.input[:]
    node.input.append(mark.name)
    node.ClearField("attr")
    node.attr["T"].type = dtype
    node.attr["shape"].shape.CopyFrom(shape)


def _batch_norm(node: Any, op: Any, root: Any) -> tuple[Any, ...] | None:
    """x, scale, offset, mean, variance and epsilon of the pattern that ends in ``node``."""
    if node.op != "AddV2" or len(node.input) < 2:
        return None
    scaled, rest = op(node.input[0], "Mul"), op(node.input[1], "Sub", "Mul")
    if scaled is None or rest is None:
        return None
    for x, factor in (scaled.input[:2], scaled.input[1::-1]):
        gamma, inverse = None, op(factor, "Rsqrt")
        product = op(factor, "Mul")
        if inverse is None and product is not None:
            for a, b in (product.input[:2], product.input[1::-1]):
                if (found := op(a, "Rsqrt")) is not None and root(b) is not None:
                    inverse, gamma = found, root(b)
        total = op(inverse.input[0], "AddV2") if inverse is not None else None
        if total is None:
            continue
        var = root(total.input[0])
        epsilon = op(total.input[1], "Const")
        beta = root(rest.input[0]) if rest.op == "Sub" else None
        shift = op(rest.input[-1], "Mul") if rest.op == "Sub" else rest
        if shift is None or var is None or epsilon is None:
            continue
        means = [root(name) for name in shift.input[:2]]
        if rest.op == "Mul":  # without an offset: (-mean) s
            negated = [op(name, "Neg") for name in shift.input[:2]]
            means = [root(found.input[0]) for found in negated if found is not None]
        mean = next((name for name in means if name is not None), None)
        if mean is not None and (rest.op == "Mul" or beta is not None):
            import tensorflow as tf

            return x, gamma, beta, mean, var, float(tf.make_ndarray(epsilon.attr["value"].tensor))
    return None


def _fill(node: Any, array: Any) -> None:
    import tensorflow as tf

    node.attr["dtype"].type = tf.as_dtype(array.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array))
