"""A text classifier after Vaswani et al. 2017: two encoder layers over tokens and sinusoidal positions.

Each layer normalizes before attention and before its two dense layers (Xiong et al. 2020), which trains
without warm-up. The mean over the positions is classified. There is no Dropout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.models.reference import Inputs, Reference, Shape, reference

VOCABULARY = 1000
WIDTH = 64
HEADS = 4
HIDDEN = 128
DEPTH = 2


def positions(length: int) -> npt.NDArray[np.float32]:
    """``sin(p / 10000^(2i / width))`` and the cosines beside them, [length, width]."""
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, WIDTH, 2) / WIDTH)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, WIDTH).astype(np.float32)


def _shapes(input_shape: Shape, classes: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"embedding.weight": (VOCABULARY, WIDTH)}

    def dense(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (WIDTH,)

    for index in range(DEPTH):
        layer = f"layers.{index}"
        shapes[f"{layer}.self_attn.in_proj_weight"] = (3 * WIDTH, WIDTH)
        shapes[f"{layer}.self_attn.in_proj_bias"] = (3 * WIDTH,)
        dense(f"{layer}.self_attn.out_proj", WIDTH, WIDTH)
        dense(f"{layer}.linear1", WIDTH, HIDDEN)
        dense(f"{layer}.linear2", HIDDEN, WIDTH)
        norm(f"{layer}.norm1")
        norm(f"{layer}.norm2")
    norm("norm")
    dense("fc", WIDTH, classes)
    return shapes


def pytorch(input_shape: Shape = (32,), classes: int = 10) -> Any:
    """The torch module: tokens [N, length] int64 to logits [N, classes]."""
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.register_buffer("positions", torch.from_numpy(positions(*input_shape)), persistent=False)
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    WIDTH, HEADS, HIDDEN, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(DEPTH)
            )
            self.norm = nn.LayerNorm(WIDTH)
            self.fc = nn.Linear(WIDTH, classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embedding(x) * math.sqrt(WIDTH) + self.positions
            for layer in self.layers:
                x = layer(x)
            return self.fc(self.norm(x).mean(1))  # type: ignore[no-any-return]

    return Encoder()


def tensorflow(input_shape: Shape = (32,), classes: int = 10) -> Any:
    """The Keras model: tokens [N, length] int64 to logits [N, classes]."""
    import keras
    from keras import layers

    def norm(x: Any, name: str) -> Any:
        return layers.LayerNormalization(epsilon=1e-5, name=name)(x)

    data = keras.Input(input_shape, dtype="int64", name="data")
    x = layers.Embedding(VOCABULARY, WIDTH, name="embedding")(data)
    x = x * math.sqrt(WIDTH) + positions(*input_shape)
    for index in range(DEPTH):
        name = f"layers.{index}"
        y = norm(x, f"{name}.norm1")
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"{name}.self_attn")(y, y)
        y = norm(x, f"{name}.norm2")
        y = layers.Dense(HIDDEN, activation="gelu", name=f"{name}.linear1")(y)
        x = x + layers.Dense(WIDTH, name=f"{name}.linear2")(y)
    x = layers.GlobalAveragePooling1D()(norm(x, "norm"))
    return keras.Model(data, layers.Dense(classes, name="fc")(x), name="transformer_encoder")


reference("transformer_encoder")(
    Reference(
        "Text classifier: two Transformer encoder layers of width 64, 4 heads; 1000 tokens",
        Inputs("tokens", (32,), vocabulary=VOCABULARY),
        _shapes,
        pytorch,
        tensorflow,
        caffe=None,
    )
)
