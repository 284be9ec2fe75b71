"""The networks of train_cpu.py, in torch and in Keras, and their batches."""

from __future__ import annotations

from typing import Any

import numpy as np

BATCH = {"mlp": 32, "cifar_cnn": 64, "resnet18": 32, "transformer": 32}
"""Samples per batch, by network: those that are measured."""

WIDTH, HEADS, LAYERS, LENGTH, WORDS, CLASSES = 128, 4, 2, 64, 1000, 10
STAGES = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))
"""Channels and stride of each block of ResNet-18 (He et al. 2015), in its form for 32 x 32 images."""


def batch_of(name: str) -> tuple[Any, Any]:
    """One batch of uniform images, vectors or words, and labels."""
    rng = np.random.default_rng(0)
    count = BATCH[name]
    labels = rng.integers(0, CLASSES, count)
    if name == "transformer":
        return rng.integers(0, WORDS, (count, LENGTH)), labels
    return rng.random((count, *((784,) if name == "mlp" else (3, 32, 32))), np.float32), labels


def in_torch(name: str) -> Any:
    """The torch module."""
    import torch

    from onnxaccel import models

    torch.manual_seed(0)
    if name in models.names():
        return models.build(name, "pytorch")
    return _torch_resnet() if name == "resnet18" else _torch_transformer()


def _torch_resnet() -> Any:
    from torch import nn
    from torch.nn.functional import relu

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            plain = stride == 1 and inputs == outputs
            self.skip = (
                nn.Identity()
                if plain
                else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            )

        def forward(self, x: Any) -> Any:
            return relu(self.body(x) + self.skip(x))

    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for outputs, stride in STAGES:
        layers.append(Block(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def _torch_transformer() -> Any:
    import torch
    from torch import nn

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, WIDTH)
            self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
            layer = nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.head(self.layers(self.words(x) + self.places).mean(1))

    return Classifier()


def in_keras(name: str) -> Any:
    """The Keras model: the same layers, images as [N, H, W, C]."""
    import keras

    from onnxaccel import models

    keras.utils.set_random_seed(0)
    if name in models.names():
        return models.build(name, "tensorflow")
    return _keras_resnet() if name == "resnet18" else _keras_transformer()


def _keras_resnet() -> Any:
    from keras import Input, Model, layers

    def conv(x: Any, channels: int, size: int, stride: int) -> Any:
        x = layers.Conv2D(channels, size, stride, "same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    x = image = Input((32, 32, 3))
    x = layers.ReLU()(conv(x, 64, 3, 1))
    for channels, stride in STAGES:
        body = conv(layers.ReLU()(conv(x, channels, 3, stride)), channels, 3, 1)
        x = x if stride == 1 and x.shape[-1] == channels else conv(x, channels, 1, stride)
        x = layers.ReLU()(layers.Add()([body, x]))
    return Model(image, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def _keras_transformer() -> Any:
    import keras
    from keras import Input, Model, layers

    words = Input((LENGTH,), dtype="int64")
    places = layers.Embedding(LENGTH, WIDTH)(keras.ops.arange(LENGTH))
    x = layers.Embedding(WORDS, WIDTH)(words) + places
    for _ in range(LAYERS):
        normal = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(normal, normal)
        normal = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, "gelu")(normal))
    return Model(words, layers.Dense(CLASSES)(keras.ops.mean(x, axis=1)))
