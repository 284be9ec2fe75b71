"""Which initializers of a model are parameters that training may change."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxaccel.errors import ModelError
from onnxaccel.graph.builder import operator_of
from onnxaccel.graph.model import Model

_WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RNN": (1, 2, 3),
    "Gather": (0,),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""Inputs that hold weights, by operator, in the rule for models that name no parameters."""

_THROUGH = frozenset({"Transpose", "Reshape", "Identity", "Cast", "Unsqueeze", "Squeeze", "Flatten"})


def trainable(model: Model) -> list[ir.Value]:
    """The parameters that training may change, in a fixed order.

    They are the names of ``metadata.trainable`` where the converter recorded them. In any other ONNX file
    they are the float initializers with at least two elements that reach a weight input of a layer, directly
    or through Transpose, Reshape, Squeeze, Unsqueeze, Flatten, Identity or Cast: weight and bias of
    convolutions, Gemm, MatMul and recurrent layers, scale and bias of normalisations (never their running
    statistics), slopes of PRelu, tables of Gather, and vectors added or multiplied.

    Raises:
        ModelError: A recorded name is not in the graph.
    """
    initializers = model.graph.initializers
    if model.metadata.trainable is not None:
        lost = [name for name in model.metadata.trainable if name not in initializers]
        if lost:
            raise ModelError(
                f"parameter {lost[0]!r} is no longer in the graph; convert the model again with --trainable"
            )
        return [initializers[name] for name in model.metadata.trainable]
    return [value for value in initializers.values() if _is_weight(value)]


def _is_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or tensor.size < 2:
        return False
    return any(index in _WEIGHT_INPUTS.get(operator_of(node), ()) for node, index in _readers(value))


_NORMS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"}
) | {"RMSNormalization", "com.microsoft::SkipLayerNormalization", "com.microsoft::GroupNorm"}
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


def role_of(value: ir.Value) -> str | None:
    """What a parameter does, for groups of parameters: "norm", "bias", or None for all others.

    "norm": scale or shift of a normalisation, also of one that is written out: a tensor with one axis longer
    than 1 at most that is multiplied. "bias": any other vector, a bias of a recurrent layer, or such a tensor
    that is added.
    """
    readers = [(operator_of(node), index) for node, index in _readers(value)]
    dims = list(value.shape) if value.shape is not None else []
    one_axis = sum(dim != 1 for dim in dims) <= 1
    if any(operator in _NORMS and index > 0 for operator, index in readers):
        return "norm"
    if one_axis and any(operator == "Mul" for operator, _ in readers):
        return "norm"
    if any(operator in _RECURRENT and index == 3 for operator, index in readers) or len(dims) <= 1:
        return "bias"
    return "bias" if one_axis and all(operator in ("Add", "Sub") for operator, _ in readers) else None


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that read a value, directly or through operators that only change its form."""
    for node, index in value.uses():
        if index == 0 and node.op_type in _THROUGH:
            yield from _readers(node.outputs[0])
        else:
            yield node, index
