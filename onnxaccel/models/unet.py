"""U-Net (Ronneberger et al. 2015) with three poolings, batch normalization and padded convolutions.

Each pixel gets a class.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from onnxaccel.models.prototxt import Layers
from onnxaccel.models.reference import HE, Inputs, Reference, Shape, norm_shapes, reference

WIDTHS = (16, 32, 64, 128)
"""Channels of each level, the finest first."""

LEVELS = range(len(WIDTHS))


def _pairs(channels: int) -> dict[str, tuple[int, int]]:
    """Input and output channels of every pair of convolutions: down the levels, and up again."""
    down = {f"level{i}": ((channels, *WIDTHS)[i], WIDTHS[i]) for i in LEVELS}
    return down | {f"join{i}": (2 * WIDTHS[i], WIDTHS[i]) for i in LEVELS[:-1]}


def _shapes(input_shape: Shape, classes: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, (inputs, outputs) in _pairs(input_shape[0]).items():
        for index, seen in enumerate((inputs, outputs), start=1):
            shapes[f"{name}.conv{index}.weight"] = (outputs, seen, 3, 3)
            shapes.update(norm_shapes(f"{name}.norm{index}", outputs))
    for i in LEVELS[:-1]:
        shapes[f"up{i}.weight"] = (WIDTHS[i + 1], WIDTHS[i], 2, 2)
        shapes[f"up{i}.bias"] = (WIDTHS[i],)
    return shapes | {"score.weight": (classes, WIDTHS[0], 1, 1), "score.bias": (classes,)}


def pytorch(input_shape: Shape = (3, 32, 32), classes: int = 10) -> Any:
    """The torch module: [N, C, H, W] to logits [N, classes, H, W]."""
    import torch
    from torch import nn

    def pair(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                norm1=nn.BatchNorm2d(outputs),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                norm2=nn.BatchNorm2d(outputs),
                relu2=nn.ReLU(),
            )
        )

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, channels in _pairs(input_shape[0]).items():
                self.add_module(name, pair(*channels))
            for i in LEVELS[:-1]:
                self.add_module(f"up{i}", nn.ConvTranspose2d(WIDTHS[i + 1], WIDTHS[i], 2, 2))
            self.pool = nn.MaxPool2d(2)
            self.score = nn.Conv2d(WIDTHS[0], classes, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen = []
            for i in LEVELS:
                x = self.get_submodule(f"level{i}")(self.pool(x) if i else x)
                seen.append(x)
            for i in reversed(LEVELS[:-1]):
                x = torch.cat([seen[i], self.get_submodule(f"up{i}")(x)], 1)
                x = self.get_submodule(f"join{i}")(x)
            return self.score(x)  # type: ignore[no-any-return]

    return UNet()


def tensorflow(input_shape: Shape = (3, 32, 32), classes: int = 10) -> Any:
    """The Keras model: [N, H, W, C] to logits [N, H, W, classes]."""
    import keras
    from keras import layers

    from onnxaccel.models.tensorflow import convolution, norm

    channels, height, width = input_shape
    pairs = _pairs(channels)

    def pair(x: Any, name: str) -> Any:
        for index in (1, 2):
            x = convolution(x, f"{name}.conv{index}", pairs[name][1])
            x = layers.ReLU()(norm(x, f"{name}.norm{index}"))
        return x

    data = x = keras.Input((height, width, channels), name="data")
    seen = []
    for i in LEVELS:
        x = pair(layers.MaxPooling2D(2)(x) if i else x, f"level{i}")
        seen.append(x)
    for i in reversed(LEVELS[:-1]):
        x = layers.Conv2DTranspose(WIDTHS[i], 2, strides=2, name=f"up{i}")(x)
        x = pair(layers.Concatenate()([seen[i], x]), f"join{i}")
    return keras.Model(data, layers.Conv2D(classes, 1, name="score")(x), name="unet")


def caffe(net: Layers, input_shape: Shape, classes: int) -> None:
    """The Caffe layers: blob "data" to blob "score"."""
    pairs = _pairs(input_shape[0])

    def pair(x: str, name: str) -> str:
        for index in (1, 2):
            x = net.convolution(f"{name}.conv{index}", x, pairs[name][1], 3, pad=1, bias=False)
            net.relu(f"{name}.relu{index}", net.norm(f"{name}.norm{index}", x))
        return x

    x, seen = "data", []
    for i in LEVELS:
        x = pair(net.max_pool(f"pool{i}", x) if i else x, f"level{i}")
        seen.append(x)
    for i in reversed(LEVELS[:-1]):
        x = net.deconvolution(f"up{i}", x, WIDTHS[i], 2, stride=2)
        x = pair(net.add("Concat", f"cat{i}", [seen[i], x], f"cat{i}"), f"join{i}")
    net.convolution("score", x, classes, 1)


reference("unet")(
    Reference(
        "U-Net with three poolings: a class for each pixel; transposed convolutions, batch normalization",
        Inputs("image", (3, 32, 32), multiple=8, smallest=8),
        _shapes,
        pytorch,
        tensorflow,
        caffe,
        targets="pixels",
        scale=HE,
    )
)
