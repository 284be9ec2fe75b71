"""The multilayer perceptron of the field's first lesson: 784-64-128-10 with ReLU, for MNIST."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Any

from onnxaccel.models.prototxt import Layers
from onnxaccel.models.reference import Inputs, Reference, Shape, reference

HIDDEN = (64, 128)


def _shapes(input_shape: Shape, classes: int) -> dict[str, Shape]:
    widths = (math.prod(input_shape), *HIDDEN, classes)
    shapes: dict[str, Shape] = {}
    for index, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        shapes[f"fc{index}.weight"] = (fan_out, fan_in)
        shapes[f"fc{index}.bias"] = (fan_out,)
    return shapes


def pytorch(input_shape: Shape = (784,), classes: int = 10) -> Any:
    """The torch module: [N, features] to logits [N, classes]."""
    from torch import nn

    features = math.prod(input_shape)
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(features, HIDDEN[0]),
            relu1=nn.ReLU(),
            fc2=nn.Linear(HIDDEN[0], HIDDEN[1]),
            relu2=nn.ReLU(),
            fc3=nn.Linear(HIDDEN[1], classes),
        )
    )


def tensorflow(input_shape: Shape = (784,), classes: int = 10) -> Any:
    """The Keras model: [N, features] to logits [N, classes]."""
    import keras

    return keras.Sequential(
        [
            keras.Input((math.prod(input_shape),), name="data"),
            keras.layers.Dense(HIDDEN[0], activation="relu", name="fc1"),
            keras.layers.Dense(HIDDEN[1], activation="relu", name="fc2"),
            keras.layers.Dense(classes, name="fc3"),
        ],
        name="mlp",
    )


def caffe(net: Layers, input_shape: Shape, classes: int) -> None:
    """The Caffe layers: blob "data" to blob "score"."""
    blob = net.relu("relu1", net.dense("fc1", "data", HIDDEN[0]))
    blob = net.relu("relu2", net.dense("fc2", blob, HIDDEN[1]))
    net.dense("fc3", blob, classes, top="score")


reference("mlp")(
    Reference(
        "MLP 784-64-128-10, ReLU, for MNIST",
        Inputs("vector", (784,)),
        _shapes,
        pytorch,
        tensorflow,
        caffe,
    )
)
