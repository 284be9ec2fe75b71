"""The networks of train_cpu.py, in torch and in Keras, and their batches."""

from __future__ import annotations

from typing import Any

import numpy as np

BATCH = {"mlp": 32, "cifar_cnn": 64, "resnet18": 32, "transformer": 32}
"""Samples per batch, by network: those that are measured."""

WIDTH, HEADS, LAYERS, LENGTH, WORDS, CLASSES = 128, 4, 2, 64, 1000, 10


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
    return _torch_transformer()


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
    return _keras_transformer()


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
