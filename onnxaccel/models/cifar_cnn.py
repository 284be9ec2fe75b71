"""A small network for CIFAR-10: conv 32, pool, conv 64, pool, dense 64, dropout 0.25, dense 10."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from onnxaccel.models.prototxt import Layers
from onnxaccel.models.reference import Inputs, Reference, Shape, reference

CHANNELS = (32, 64)
WIDTH = 64
DROPOUT = 0.25


def _pooled(input_shape: Shape) -> Shape:
    """Shape of the image after both poolings."""
    return CHANNELS[1], input_shape[1] // 4, input_shape[2] // 4


def _shapes(input_shape: Shape, classes: int) -> dict[str, Shape]:
    channels, height, width = _pooled(input_shape)
    return {
        "conv1.weight": (CHANNELS[0], input_shape[0], 3, 3),
        "conv1.bias": (CHANNELS[0],),
        "conv2.weight": (CHANNELS[1], CHANNELS[0], 3, 3),
        "conv2.bias": (CHANNELS[1],),
        "fc1.weight": (WIDTH, channels * height * width),
        "fc1.bias": (WIDTH,),
        "fc2.weight": (classes, WIDTH),
        "fc2.bias": (classes,),
    }


def pytorch(input_shape: Shape = (3, 32, 32), classes: int = 10) -> Any:
    """The torch module: [N, C, H, W] to logits [N, classes]."""
    from torch import nn

    channels, height, width = _pooled(input_shape)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(input_shape[0], CHANNELS[0], 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(CHANNELS[0], CHANNELS[1], 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(channels * height * width, WIDTH),
            relu3=nn.ReLU(),
            dropout=nn.Dropout(DROPOUT),
            fc2=nn.Linear(WIDTH, classes),
        )
    )


def tensorflow(input_shape: Shape = (3, 32, 32), classes: int = 10) -> Any:
    """The Keras model: [N, H, W, C] to logits [N, classes]."""
    import keras
    from keras import layers

    channels, height, width = input_shape
    return keras.Sequential(
        [
            keras.Input((height, width, channels), name="data"),
            layers.Conv2D(CHANNELS[0], 3, padding="same", activation="relu", name="conv1"),
            layers.MaxPooling2D(2),
            layers.Conv2D(CHANNELS[1], 3, padding="same", activation="relu", name="conv2"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(WIDTH, activation="relu", name="fc1"),
            layers.Dropout(DROPOUT),
            layers.Dense(classes, name="fc2"),
        ],
        name="cifar_cnn",
    )


def caffe(net: Layers, input_shape: Shape, classes: int) -> None:
    """The Caffe layers: blob "data" to blob "score"."""
    blob = "data"
    for index, channels in enumerate(CHANNELS, start=1):
        blob = net.relu(f"relu{index}", net.convolution(f"conv{index}", blob, channels, 3, pad=1))
        blob = net.max_pool(f"pool{index}", blob)
    blob = net.relu("relu3", net.dense("fc1", blob, WIDTH))
    net.add("Dropout", "dropout", [blob], blob, f"dropout_param {{ dropout_ratio: {DROPOUT} }}")
    net.dense("fc2", blob, classes, top="score")


reference("cifar_cnn")(
    Reference(
        "CNN for CIFAR-10: conv 32, pool, conv 64, pool, dense 64, dropout 0.25, dense 10",
        Inputs("image", (3, 32, 32), multiple=4, smallest=4),
        _shapes,
        pytorch,
        tensorflow,
        caffe,
        flattened=lambda shape: {"fc1": _pooled(shape)},
    )
)
