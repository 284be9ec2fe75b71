"""Fine-tuning: parameters that stay as they are, and a new classifier on an old body."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import ModelError
from onnxaccel.graph.autodiff import is_float
from onnxaccel.graph.builder import attribute, constant_of, describe, dims_of, operator_of
from onnxaccel.graph.model import Model, name_of, tensor_of
from onnxaccel.graph.normalize import normalize
from onnxaccel.graph.parameters import trainable

_AFTER = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"}
) | {"Transpose", "Relu", "Dropout", "GlobalAveragePool", "AveragePool", "ReduceMean"}
"""Operators between the classifier and the output that keep one channel per class."""

_FORM = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze"})


def freeze(model: Model, patterns: Sequence[str]) -> Model:
    """A copy of the model in which training leaves some parameters as they are.

    A BatchNormalization none of whose parameters is trained any more, and one of which the patterns match,
    stays in inference form: it uses its running statistics and keeps them.

    Args:
        model: A normalised model; not changed.
        patterns: Shell patterns over the names of initializers: ``features.*``, ``*.bias``.

    Raises:
        ModelError: A pattern matches no parameter.
    """
    model = model.copy()
    parameters = [name_of(value) for value in trainable(model)]
    names = [name for name, value in model.graph.initializers.items() if is_float(value)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = get_close_matches(pattern, names, 1, 0.0)
            raise ModelError(
                f"--freeze {pattern!r} matches no parameter; there is {close[0] if close else 'none'}"
            )
    matched = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    kept = [name for name in parameters if name not in matched]
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            own = {x.name for x in node.inputs[1:] if x is not None}
            if own & matched and not own & set(kept):
                node.name = node.name or name_of(node.outputs[0])
                model.metadata.frozen.append(node.name)
    model.metadata.trainable = kept
    return model


@dataclass(frozen=True)
class Head:
    """The last layer of a classifier.

    Attributes:
        node: The Gemm, MatMul or Conv.
        weight: Its weights.
        axis: The axis of the weights that runs over the classes.
        bias: Its bias, part of the node or added after it, or None.
        classes: The number of classes.
        tail: The nodes after it up to the output, in order.
        form: The nodes that bring the bias into its form, from the last to the first.
    """

    node: ir.Node
    weight: ir.Value
    axis: int
    bias: ir.Value | None
    classes: int
    tail: list[ir.Node]
    form: list[ir.Node]


def replace_head(model: Model, classes: int, seed: int = 0) -> Model:
    """A copy of the model whose last layer has freshly drawn weights for another number of classes.

    The weights are drawn as the source framework draws them: from U(-1/sqrt(n), 1/sqrt(n)), weights and bias,
    over n inputs (torch's Linear and Conv2d, also for models of unknown source); from Glorot and Bengio's
    U(-sqrt(6/(n+m)), sqrt(6/(n+m))) with a bias of 0 (Keras); from U(-sqrt(3/n), sqrt(3/n)) with a bias of 0
    (Caffe's "xavier"). A Softmax after the layer stays.

    Args:
        model: The model; not changed.
        classes: The new number of classes.
        seed: Seed of the new weights.

    Raises:
        ModelError: There is no single layer that ends in the output's classes.
    """
    model = model.copy()
    normalize(model)
    head = find_head(model)
    rng = np.random.default_rng([seed, classes])
    old = tensor_of(head.weight)
    shape = tuple(classes if axis == head.axis else size for axis, size in enumerate(old.shape))
    inputs = math.prod(shape) // classes
    framework = model.metadata.framework
    bound = {
        "tensorflow": math.sqrt(6 / (inputs + classes)),
        "caffe": math.sqrt(3 / inputs),
    }.get(framework or "", 1 / math.sqrt(inputs))
    _set(head.weight, rng.uniform(-bound, bound, shape).astype(old.dtype))
    if head.bias is not None:
        old = tensor_of(head.bias)
        if head.classes == 1 and old.ndim > 1:
            raise _no_head(model, f"the axis of the bias of {describe(head.node)} cannot be told")
        shape = tuple(classes if size == head.classes else size for size in old.shape)
        bias = np.zeros(shape) if framework in ("tensorflow", "caffe") else rng.uniform(-bound, bound, shape)
        _set(head.bias, bias.astype(old.dtype))
    if model.metadata.trainable is not None:
        new = [name_of(value) for value in (head.weight, head.bias) if value is not None]
        model.metadata.trainable += [name for name in new if name not in model.metadata.trainable]
    model.metadata.max_relative_error = None  # it is no longer the model that was compared
    _spread(model, head, classes)
    return model


def find_head(model: Model) -> Head:
    """The layer that `replace_head` replaces, in a normalised model.

    Raises:
        ModelError: There is none, or several.
    """
    node, bias, tail = _last_layer(model)
    weight = node.inputs[1]
    assert weight is not None
    axis = {"Conv": 0, "Gemm": 0 if attribute(node, "transB", 0) else 1}.get(operator_of(node), -1)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if bias is not None:
            raise _no_head(model, f"{describe(node)} has two biases")
        bias = node.inputs[2]
    turn = weight.producer()
    if turn is not None and turn.op_type == "Transpose" and turn.inputs[0] is not None and _is_own(weight):
        rank = len(dims_of(weight) or (0, 0))
        axis = list(attribute(turn, "perm", range(rank)[::-1]))[axis]
        weight = turn.inputs[0]
    form: list[ir.Node] = []
    while bias is not None and _is_own(bias) and (former := bias.producer()) is not None:
        if former.op_type not in _FORM or former.inputs[0] is None:
            break
        form.append(former)
        bias = former.inputs[0]
    for part in (weight, bias):
        if part is not None and not (part.is_initializer() and _is_own(part)):
            raise _no_head(model, f"{describe(node)} shares its weights or computes them")
    shape = tensor_of(weight).shape
    classes = shape[axis]
    if bias is not None and tensor_of(bias).size != classes:
        raise _no_head(model, f"the bias of {describe(node)} has not one element per class")
    return Head(node, weight, axis % len(shape), bias, classes, tail, form)


def _last_layer(model: Model) -> tuple[ir.Node, ir.Value | None, list[ir.Node]]:
    """The last layer with weights, a bias added after it, and the nodes from there to the output."""
    tail: list[ir.Node] = []
    bias: ir.Value | None = None
    value = model.outputs[0]
    while (node := value.producer()) is not None and operator_of(node) not in ("Gemm", "MatMul", "Conv"):
        variable = [x for x in node.inputs if x is not None and constant_of(x) is None]
        if len(variable) != 1:
            raise _no_head(model, f"{describe(node)} joins several values")
        if operator_of(node) == "Add" and bias is None:
            bias = next(x for x in node.inputs if x is not variable[0])
        elif operator_of(node) not in _AFTER:
            raise _no_head(model, f"{describe(node)} stands between it and the output")
        tail.insert(0, node)
        value = variable[0]
    if node is None:
        raise _no_head(model, "no Gemm, MatMul or Conv leads to the output")
    if attribute(node, "group", 1) != 1:
        raise _no_head(model, f"{describe(node)} has groups")
    after = _after(model, node)
    for beside in after[1:]:
        if beside not in tail and operator_of(beside) not in _AFTER | {"ArgMax", "TopK"}:
            raise _no_head(model, f"{describe(beside)} also reads what it computes")
    for output in model.outputs:
        if output.producer() not in after:
            raise _no_head(model, f"output {output.name!r} does not come from {describe(node)}")
    return node, bias, tail


def _is_own(value: ir.Value) -> bool:
    """Whether a value has one reader only."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _no_head(model: Model, reason: str) -> ModelError:
    return ModelError(
        f"--num-classes: the classifier before output {model.outputs[0].name!r} cannot be told: {reason}; "
        "change the last layer in the source framework, and convert again"
    )


def _after(model: Model, node: ir.Node) -> list[ir.Node]:
    """The node and all that depend on it, in the graph's order."""
    found, values = [node], set(node.outputs)
    for other in model.graph:
        if other is not node and any(x in values for x in other.inputs):
            found.append(other)
            values.update(other.outputs)
    return found


def _set(value: ir.Value, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)


def _spread(model: Model, head: Head, classes: int) -> None:
    """Bring the new number of classes into the shapes after the head.

    Raises:
        ModelError: A Reshape fixes the old one in a way that is not understood, or the shapes do not follow.
    """
    for node in [*head.form, *head.tail]:
        if node.op_type != "Reshape" or classes == head.classes:
            continue
        target = node.inputs[1]
        wanted = constant_of(target)
        if wanted is None or target is None:
            raise _no_head(model, f"{describe(node)} computes its shape")
        if (wanted == head.classes).sum() == 1:
            new = np.where(wanted == head.classes, classes, wanted)
            constant = ir.val(f"{node.outputs[0].name}/shape", const_value=ir.tensor(new))
            constant.const_value.name = constant.name  # type: ignore[union-attr]
            model.graph.register_initializer(constant)
            node.replace_input_with(1, constant)
        elif (wanted > 1).any():
            raise _no_head(model, f"{describe(node)} mixes the classes with other axes")
    for node in [*head.form, *_after(model, head.node)]:
        for value in node.outputs:
            value.shape = None
    model.infer_shapes()
    dims = dims_of(model.outputs[0])
    if dims is None or classes not in dims[1:]:
        raise _no_head(model, f"the output's shape becomes {dims}")
