"""LeNet as Caffe's examples train it on MNIST: conv 20, pool, conv 50, pool, dense 500, dense 10.

After LeCun et al. 1998, with a rectifier and max pooling.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from onnxaccel.models.prototxt import Layers
from onnxaccel.models.reference import Inputs, Reference, Shape, reference

CHANNELS = (20, 50)
WIDTH = 500


def _pooled(input_shape: Shape) -> Shape:
    """Shape of the image after both poolings."""
    return CHANNELS[1], input_shape[1] // 4 - 3, input_shape[2] // 4 - 3


def _shapes(input_shape: Shape, classes: int) -> dict[str, Shape]:
    channels, height, width = _pooled(input_shape)
    return {
        "conv1.weight": (CHANNELS[0], input_shape[0], 5, 5),
        "conv1.bias": (CHANNELS[0],),
        "conv2.weight": (CHANNELS[1], CHANNELS[0], 5, 5),
        "conv2.bias": (CHANNELS[1],),
        "ip1.weight": (WIDTH, channels * height * width),
        "ip1.bias": (WIDTH,),
        "ip2.weight": (classes, WIDTH),
        "ip2.bias": (classes,),
    }


def pytorch(input_shape: Shape = (1, 28, 28), classes: int = 10) -> Any:
    """The torch module: [N, C, H, W] to logits [N, classes]."""
    from torch import nn

    channels, height, width = _pooled(input_shape)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(input_shape[0], CHANNELS[0], 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(CHANNELS[0], CHANNELS[1], 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            ip1=nn.Linear(channels * height * width, WIDTH),
            relu1=nn.ReLU(),
            ip2=nn.Linear(WIDTH, classes),
        )
    )


def tensorflow(input_shape: Shape = (1, 28, 28), classes: int = 10) -> Any:
    """The Keras model: [N, H, W, C] to logits [N, classes]."""
    import keras
    from keras import layers

    channels, height, width = input_shape
    return keras.Sequential(
        [
            keras.Input((height, width, channels), name="data"),
            layers.Conv2D(CHANNELS[0], 5, name="conv1"),
            layers.MaxPooling2D(2),
            layers.Conv2D(CHANNELS[1], 5, name="conv2"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(WIDTH, activation="relu", name="ip1"),
            layers.Dense(classes, name="ip2"),
        ],
        name="lenet",
    )


def caffe(net: Layers, input_shape: Shape, classes: int) -> None:
    """The Caffe layers: blob "data" to blob "score"."""
    blob = net.max_pool("pool1", net.convolution("conv1", "data", CHANNELS[0], 5))
    blob = net.max_pool("pool2", net.convolution("conv2", blob, CHANNELS[1], 5))
    blob = net.relu("relu1", net.dense("ip1", blob, WIDTH))
    net.dense("ip2", blob, classes, top="score")


reference("lenet")(
    Reference(
        "LeNet for MNIST: conv 20, pool, conv 50, pool, dense 500, dense 10",
        Inputs("image", (1, 28, 28), multiple=4, smallest=16),
        _shapes,
        pytorch,
        tensorflow,
        caffe,
        flattened=lambda shape: {"ip1": _pooled(shape)},
    )
)
