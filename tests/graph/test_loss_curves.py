"""Loss curves of ten kinds of network against torch: the same weights, batches and optimizer, over 30 steps.

The reference is torch in float64. Rounding grows from step to step in any float32 training, and jumps where
a rectifier tips over. So the bound is 1e-5 relative, or what torch's own float32 training strays from its
float64 one (by its oneDNN kernels or by its own), whichever is more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import onnxaccel as oa
from onnxaccel.graph import optimizers

STEPS, BATCH, CLASSES, WORDS = 30, 16, 5, 40


def images(channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(BATCH, channels, size, size)


def words(length: int = 12) -> torch.Tensor:
    return torch.randint(0, WORDS, (BATCH, length))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.skip(x))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.adds else self.body(x)


class UNet(nn.Module):
    """Two levels: one comes back up by a transposed convolution, the other by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(24, 16, 2, 2)
        self.join = nn.Sequential(nn.Conv2d(32, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.one(x)
        two = self.two(functional.max_pool2d(one, 2))
        three = self.three(functional.max_pool2d(two, 2))
        two = self.join(torch.cat([self.up(three), two], 1))
        wide = functional.interpolate(two, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(torch.cat([wide, one], 1)).mean((2, 3))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 12)
        self.rnn = kind(12, 16, batch_first=True, **settings)
        self.head = nn.Linear(32 if settings.get("bidirectional") else 16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.words(x))[0].mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.words(x)).mean(1))


class Decoder(nn.Module):
    """A decoder of GPT's kind: positions, causal attention, the output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.places = nn.Embedding(12, 16)
        self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.mix = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU("tanh"), nn.Linear(32, 16))
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.words(x) + self.places(torch.arange(12))
        for qkv, mix, mlp, norm in zip(self.qkv, self.mix, self.mlp, self.norms, strict=False):
            q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in qkv(norm(h)).chunk(3, -1))
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + mix(attended.transpose(1, 2).flatten(2))
            h = h + mlp(h)
        return (self.norms[2](h) @ self.words.weight.T)[:, -1]


def sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


Net = tuple[Callable[[], nn.Module], Callable[[], torch.Tensor], str]

NETS: dict[str, Net] = {
    "mlp": (
        lambda: sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, CLASSES)),
        images,
        "cross_entropy",
    ),
    "cnn": (
        lambda: sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(216, CLASSES),
        ),
        images,
        "cross_entropy",
    ),
    "resnet": (
        lambda: sequential(
            Residual(3, 16, 1),
            Residual(16, 24, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, CLASSES),
        ),
        images,
        "cross_entropy",
    ),
    "mobilenet": (
        lambda: sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            InvertedResidual(8, 8, 1),
            InvertedResidual(8, 12, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, CLASSES),
        ),
        images,
        "cross_entropy",
    ),
    "unet": (UNet, images, "cross_entropy"),
    "lstm": (lambda: Recurrent(nn.LSTM, bidirectional=True), words, "cross_entropy"),
    "gru": (lambda: Recurrent(nn.GRU, num_layers=2), words, "cross_entropy"),
    "transformer_encoder": (Encoder, words, "cross_entropy"),
    "gpt_decoder": (Decoder, words, "cross_entropy"),
    "autoencoder": (
        lambda: sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.ELU(),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.Tanh(),
            nn.ConvTranspose2d(12, 8, 4, 2, 1),
            nn.ELU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
            nn.Sigmoid(),
        ),
        images,
        "mse",
    ),
}


def curve(module: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]], loss: str) -> Any:
    """The losses of torch's own training, in the module's precision."""
    step = torch.optim.SGD(module.train().parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    dtype = next(module.parameters()).dtype
    measure = functional.cross_entropy if loss == "cross_entropy" else functional.mse_loss
    losses = []
    for x, y in data:
        found = module(x.to(dtype) if x.is_floating_point() else x)
        value = measure(found, y.to(dtype) if y.is_floating_point() else y)
        step.zero_grad()
        value.backward()
        step.step()
        losses.append(value.item())
    return np.array(losses)


@pytest.mark.parametrize("name", NETS)
def test_loss_curve_equals_torch(name: str) -> None:
    make, draw, loss = NETS[name]

    def fresh() -> nn.Module:
        torch.manual_seed(1)
        return make()

    torch.manual_seed(2)
    inputs = [draw() for _ in range(STEPS)]
    data = [(x, x if loss == "mse" else torch.randint(0, CLASSES, (BATCH,))) for x in inputs]
    trainer = oa.Trainer(
        oa.convert(fresh(), inputs[0], trainable=True),
        loss=loss,
        optimizer=optimizers.SGD(0.05, momentum=0.9, weight_decay=1e-4),
        ep="cpu",
    )
    ours = np.array([trainer.step(x.numpy(), y.numpy()) for x, y in data])
    exact = curve(fresh().double(), data, loss)
    with torch.backends.mkldnn.flags(enabled=False):
        native = curve(fresh(), data, loss)
    stray = max(float(np.abs(other / exact - 1).max()) for other in (curve(fresh(), data, loss), native))
    difference = float(np.abs(ours / exact - 1).max())
    print(
        f"{name}: largest relative difference of the loss {difference:.1e}; of torch in float32 {stray:.1e}"
    )
    assert difference < max(1e-5, stray)
