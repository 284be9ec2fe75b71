"""ResNet-18 (He et al. 2015) for small images: a 3x3 stem of stride 1 and no pooling before the first stage.

The names are torchvision's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from onnxaccel.models.prototxt import Layers
from onnxaccel.models.reference import HE, Inputs, Reference, Shape, norm_shapes, reference

WIDTHS = (64, 128, 256, 512)
STAGES = ("layer1", "layer2", "layer3", "layer4")
BLOCKS = 2
"""Residual blocks of each stage."""


class _Block(NamedTuple):
    name: str
    inputs: int
    outputs: int
    stride: int

    @property
    def projects(self) -> bool:
        """Whether the shortcut changes the shape."""
        return self.stride != 1 or self.inputs != self.outputs


def _blocks() -> Iterator[_Block]:
    inputs = WIDTHS[0]
    for stage, outputs in zip(STAGES, WIDTHS, strict=True):
        for index in range(BLOCKS):
            stride = 2 if stage != STAGES[0] and not index else 1
            yield _Block(f"{stage}.{index}", inputs, outputs, stride)
            inputs = outputs


def _shapes(input_shape: Shape, classes: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}

    def add(convolution: str, norm: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{convolution}.weight"] = (outputs, inputs, kernel, kernel)
        shapes.update(norm_shapes(norm, outputs))

    add("conv1", "bn1", input_shape[0], WIDTHS[0], 3)
    for block in _blocks():
        name, inputs, outputs, _ = block
        add(f"{name}.conv1", f"{name}.bn1", inputs, outputs, 3)
        add(f"{name}.conv2", f"{name}.bn2", outputs, outputs, 3)
        if block.projects:
            add(f"{name}.downsample.0", f"{name}.downsample.1", inputs, outputs, 1)
    return shapes | {"fc.weight": (classes, WIDTHS[-1]), "fc.bias": (classes,)}


def pytorch(input_shape: Shape = (3, 32, 32), classes: int = 10) -> Any:
    """The torch module: [N, C, H, W] to logits [N, classes]."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, projects: bool) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.downsample = nn.Sequential()
            if projects:
                self.downsample.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
                self.downsample.append(nn.BatchNorm2d(outputs))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn1(self.conv1(x)).relu()
            total: torch.Tensor = self.bn2(self.conv2(y)) + self.downsample(x)
            return total.relu()

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(input_shape[0], WIDTHS[0], 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(WIDTHS[0])
            for stage in STAGES:
                self.add_module(stage, nn.Sequential())
            for block in _blocks():
                stage, _, index = block.name.partition(".")
                self.get_submodule(stage).add_module(index, Block(*block[1:], block.projects))
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(WIDTHS[-1], classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn1(self.conv1(x)).relu()
            for stage in STAGES:
                x = self.get_submodule(stage)(x)
            return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]

    return ResNet()


def tensorflow(input_shape: Shape = (3, 32, 32), classes: int = 10) -> Any:
    """The Keras model: [N, H, W, C] to logits [N, classes]."""
    import keras
    from keras import layers

    from onnxaccel.models.tensorflow import convolution, norm

    channels, height, width = input_shape
    data = keras.Input((height, width, channels), name="data")
    x = layers.ReLU()(norm(convolution(data, "conv1", WIDTHS[0]), "bn1"))
    for block in _blocks():
        name, _, outputs, stride = block
        y = layers.ReLU()(norm(convolution(x, f"{name}.conv1", outputs, stride=stride), f"{name}.bn1"))
        y = norm(convolution(y, f"{name}.conv2", outputs), f"{name}.bn2")
        if block.projects:
            x = convolution(x, f"{name}.downsample.0", outputs, 1, stride)
            x = norm(x, f"{name}.downsample.1")
        x = layers.ReLU()(layers.Add()([y, x]))
    score = layers.Dense(classes, name="fc")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(data, score, name="resnet18")


def caffe(net: Layers, input_shape: Shape, classes: int) -> None:
    """The Caffe layers: blob "data" to blob "score"."""

    def convolution(name: str, norm: str, bottom: str, outputs: int, kernel: int = 3, stride: int = 1) -> str:
        blob = net.convolution(name, bottom, outputs, kernel, stride=stride, pad=kernel // 2, bias=False)
        return net.norm(norm, blob)

    x = net.relu("relu1", convolution("conv1", "bn1", "data", WIDTHS[0]))
    for block in _blocks():
        name, _, outputs, stride = block
        y = convolution(f"{name}.conv1", f"{name}.bn1", x, outputs, stride=stride)
        y = convolution(f"{name}.conv2", f"{name}.bn2", net.relu(f"{name}.relu1", y), outputs)
        if block.projects:
            x = convolution(f"{name}.downsample.0", f"{name}.downsample.1", x, outputs, 1, stride)
        x = net.relu(f"{name}.relu2", net.add("Eltwise", f"{name}.sum", [y, x], f"{name}.sum"))
    net.dense("fc", net.global_pool("avgpool", x), classes, top="score")


reference("resnet18")(
    Reference(
        "ResNet-18 for small images: 3x3 stem, four stages of two residual blocks, batch normalization",
        Inputs("image", (3, 32, 32)),
        _shapes,
        pytorch,
        tensorflow,
        caffe,
        scale=HE,
    )
)
