"""What every loss is: settings, the target it takes, and its value and first cotangent in a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.errors import ModelError
from onnxaccel.graph.builder import Builder, Dim, attribute, dims_of
from onnxaccel.graph.model import Model
from onnxaccel.graph.settings import Settings, made
from onnxaccel.registry import Registry

loss: Registry[type[Loss]] = Registry("loss")
"""Losses by the name that the command line takes: ``@loss("mse")``."""

TARGET = "onnxaccel.target"
"""Name of the graph input that holds the target; the prefix keeps it apart from a model's own names."""

VALUES, LABELS, SEQUENCES, NOTHING = "values", "labels", "sequences", "nothing"
"""Kinds of targets: floats shaped like the prediction; class numbers; padded rows of class numbers; none."""


@dataclass(frozen=True)
class Written:
    """One loss, written into a graph.

    Attributes:
        value: The mean loss over the batch, a scalar.
        at: The value of the model that the gradient starts from (the logits, say).
        gradient: d value / d at, shaped like ``at``.
        weight: What ``value`` is the mean over, a scalar: the number of its terms, or the sum of their
            weights. Two batches' losses and gradients, each times its weight, add up to the whole's.
        scores: What predictions are read from: the class scores [N, C, positions...], or the prediction.
    """

    value: ir.Value
    at: ir.Value
    gradient: ir.Value
    weight: ir.Value
    scores: ir.Value


@dataclass(frozen=True)
class Loss(Settings):
    """Settings of a loss."""

    kind: ClassVar[str] = VALUES
    """The kind of its target."""

    def prediction(self, model: Model) -> ir.Value:
        """The output that the loss is taken of: the first."""
        return model.outputs[0]

    def target(self, prediction: ir.Value) -> ir.Value | None:
        """The graph input that holds the target for this prediction; None for a loss that takes none.

        Raises:
            ModelError: The prediction does not fit the loss.
        """
        known_dims(prediction)
        return ir.val(TARGET, prediction.dtype, prediction.shape)

    def classes(self, prediction: ir.Value) -> int | None:
        """The number that class labels must stay below; None where there are none, or it is not known."""
        return None

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """Write the loss.

        Raises:
            ModelError: The prediction does not fit the loss.
        """
        raise NotImplementedError

    def misfits(self, labels: npt.NDArray[np.int64], classes: int | None) -> npt.NDArray[np.bool_]:
        """Which labels are of no class, of the ``classes`` that there are, and not ignored either."""
        return (labels < 0) | (labels >= (np.inf if classes is None else classes))

    def takes(self, classes: int | None) -> str:
        """Which labels the loss takes, for messages."""
        if classes is None:
            return "class labels start at 0"
        return f"the model has {classes} classes, 0 to {classes - 1}"

    @property
    def called(self) -> str:
        """The name that it is registered under."""
        names = [name for name in loss if loss.get(name) is type(self)]
        return names[0] if names else type(self).__name__

    def correct(self, op: Builder, scores: ir.Value, target: ir.Value) -> ir.Value | None:
        """The number of right predictions, a float scalar; None where there are no classes."""
        return None


def create(name: str, settings: Mapping[str, Any] | None = None, /, **more: Any) -> Loss:
    """The loss called ``name``, with its settings.

    Raises:
        TrainingError: There is no such loss, it has no such setting, or a setting is out of range.
    """
    return made(loss, name, {**(settings or {}), **more})


def as_loss(given: str | Loss) -> Loss:
    """A `Loss` from its name, with its defaults; a `Loss` is given back as it is."""
    return given if isinstance(given, Loss) else create(given)


def known_dims(prediction: ir.Value) -> list[Dim]:
    """The dimensions of a prediction; an unknown rank raises `ModelError`."""
    dims = dims_of(prediction)
    if dims is None:
        raise ModelError(f"the rank of output {prediction.name!r} is unknown; export with shapes")
    return dims


def before(prediction: ir.Value, operators: set[str], class_axis: int = 1) -> ir.Value | None:
    """What ``prediction`` was computed from, if by one of ``operators``, else None.

    Identity is looked through. A softmax counts only where it is over ``class_axis``.
    """
    node = prediction.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type not in operators or node.inputs[0] is None:
        return None
    rank = len(dims_of(node.inputs[0]) or [])
    if node.op_type != "Sigmoid" and not (rank and attribute(node, "axis", -1) % rank == class_axis % rank):
        return None
    return node.inputs[0]


def size_of(op: Builder, counted: ir.Value, like: ir.Value) -> ir.Value:
    """The number of elements of ``counted``, a scalar in the type of ``like``."""
    assert like.dtype is not None
    return op.Cast(op.Size(counted), to=like.dtype.value)
