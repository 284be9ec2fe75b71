"""A small convolutional network for CIFAR-10: conv 32, pool, conv 64, pool, dense 64, dropout 0.25, dense 10.

The convolutions are 3x3 with padding 1, so that every pooling window is whole: Caffe rounds pooled sizes up
where TensorFlow and PyTorch round them down.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from onnxaccel.models.reference import Reference, Shape, reference

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


def caffe(input_shape: Shape = (3, 32, 32), classes: int = 10) -> str:
    """The Caffe layers: blob "data" to blob "score"."""

    def stage(index: int, bottom: str, channels: int) -> str:
        return f"""
layer {{ name: "conv{index}" type: "Convolution" bottom: "{bottom}" top: "conv{index}"
  convolution_param {{ num_output: {channels} kernel_size: 3 pad: 1
    weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu{index}" type: "ReLU" bottom: "conv{index}" top: "conv{index}" }}
layer {{ name: "pool{index}" type: "Pooling" bottom: "conv{index}" top: "pool{index}"
  pooling_param {{ pool: MAX kernel_size: 2 stride: 2 }} }}"""

    return f"""{stage(1, "data", CHANNELS[0])}{stage(2, "pool1", CHANNELS[1])}
layer {{ name: "fc1" type: "InnerProduct" bottom: "pool2" top: "fc1"
  inner_product_param {{ num_output: {WIDTH} weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu3" type: "ReLU" bottom: "fc1" top: "fc1" }}
layer {{ name: "dropout" type: "Dropout" bottom: "fc1" top: "fc1"
  dropout_param {{ dropout_ratio: {DROPOUT} }} }}
layer {{ name: "fc2" type: "InnerProduct" bottom: "fc1" top: "score"
  inner_product_param {{ num_output: {classes} weight_filler {{ type: "xavier" }} }} }}
"""


reference("cifar_cnn")(
    Reference(
        "CNN for CIFAR-10: conv 32, pool, conv 64, pool, dense 64, dropout 0.25, dense 10",
        (3, 32, 32),
        _shapes,
        pytorch,
        tensorflow,
        caffe,
        lambda shape: {"fc1": _pooled(shape)},
    ),
)
