"""MobileNetV2 (Sandler et al. 2018) for small images: the stem and the second stage have stride 1.

The paper's Dropout before the classifier is left out, so that trainings can be compared step by step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

from onnxaccel.models.prototxt import Layers
from onnxaccel.models.reference import HE, Inputs, Reference, Shape, norm_shapes, reference

STEM, HEAD = 32, 1280
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Of each stage the expansion, the channels, the number of blocks, and the stride of the first."""


class _Unit(NamedTuple):
    """A convolution, its normalization, and a rectifier clipped at 6 where it has one."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    depthwise: bool = False
    clipped: bool = True


class _Block(NamedTuple):
    """Units in a row, and whether their input is added to their output."""

    name: str
    units: list[_Unit]
    adds: bool = False


def _blocks(channels: int) -> Iterator[_Block]:
    yield _Block("stem", [_Unit("full", channels, STEM, 3)])
    inputs, number = STEM, 0
    for expansion, outputs, blocks, first in STAGES:
        for stride in (first, *[1] * (blocks - 1)):
            number += 1
            wide = expansion * inputs
            units = [_Unit("expand", inputs, wide, 1)] if expansion > 1 else []
            units.append(_Unit("depthwise", wide, wide, 3, stride, depthwise=True))
            units.append(_Unit("project", wide, outputs, 1, clipped=False))
            yield _Block(f"block{number}", units, adds=stride == 1 and inputs == outputs)
            inputs = outputs
    yield _Block("head", [_Unit("full", inputs, HEAD, 1)])


def _shapes(input_shape: Shape, classes: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for block in _blocks(input_shape[0]):
        for unit in block.units:
            name, seen = f"{block.name}.{unit.name}", 1 if unit.depthwise else unit.inputs
            shapes[f"{name}.conv.weight"] = (unit.outputs, seen, unit.kernel, unit.kernel)
            shapes.update(norm_shapes(f"{name}.norm", unit.outputs))
    return shapes | {"fc.weight": (classes, HEAD), "fc.bias": (classes,)}


def pytorch(input_shape: Shape = (3, 32, 32), classes: int = 10) -> Any:
    """The torch module: [N, C, H, W] to logits [N, classes]."""
    import torch
    from torch import nn

    def layers(unit: _Unit) -> nn.Module:
        conv = nn.Conv2d(
            unit.inputs,
            unit.outputs,
            unit.kernel,
            unit.stride,
            unit.kernel // 2,
            groups=unit.inputs if unit.depthwise else 1,
            bias=False,
        )
        parts = OrderedDict[str, nn.Module](conv=conv, norm=nn.BatchNorm2d(unit.outputs))
        return nn.Sequential(parts | {"relu": nn.ReLU6()} if unit.clipped else parts)

    class Residual(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x
            for unit in self:
                y = unit(y)
            return x + y

    net = OrderedDict[str, nn.Module]()
    for block in _blocks(input_shape[0]):
        units = OrderedDict((unit.name, layers(unit)) for unit in block.units)
        net[block.name] = Residual(units) if block.adds else nn.Sequential(units)
    net |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(HEAD, classes)}
    return nn.Sequential(net)


def tensorflow(input_shape: Shape = (3, 32, 32), classes: int = 10) -> Any:
    """The Keras model: [N, H, W, C] to logits [N, classes]."""
    import keras
    from keras import layers

    from onnxaccel.models.tensorflow import convolution, norm

    channels, height, width = input_shape
    data = x = keras.Input((height, width, channels), name="data")
    for block in _blocks(channels):
        y = x
        for unit in block.units:
            name = f"{block.name}.{unit.name}"
            y = convolution(y, f"{name}.conv", unit.outputs, unit.kernel, unit.stride, unit.depthwise)
            y = norm(y, f"{name}.norm")
            y = layers.ReLU(max_value=6.0)(y) if unit.clipped else y
        x = layers.Add()([x, y]) if block.adds else y
    score = layers.Dense(classes, name="fc")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(data, score, name="mobilenet_v2")


def caffe(net: Layers, input_shape: Shape, classes: int) -> None:
    """The Caffe layers: blob "data" to blob "score"."""
    x = "data"
    for block in _blocks(input_shape[0]):
        y = x
        for unit in block.units:
            name, group = f"{block.name}.{unit.name}", unit.inputs if unit.depthwise else 1
            y = net.convolution(
                f"{name}.conv",
                y,
                unit.outputs,
                unit.kernel,
                stride=unit.stride,
                pad=unit.kernel // 2,
                group=group,
                bias=False,
            )
            net.norm(f"{name}.norm", y)
            if unit.clipped:
                net.relu(f"{name}.relu", y, "ReLU6")
        x = net.add("Eltwise", f"{block.name}.sum", [x, y], f"{block.name}.sum") if block.adds else y
    net.dense("fc", net.global_pool("pool", x), classes, top="score")


reference("mobilenet_v2")(
    Reference(
        "MobileNetV2 for small images: 17 inverted residual blocks, depthwise convolutions, ReLU6",
        Inputs("image", (3, 32, 32)),
        _shapes,
        pytorch,
        tensorflow,
        caffe,
        scale=HE,
    )
)
