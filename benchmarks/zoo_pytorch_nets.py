"""The architectures of the PyTorch zoo: plain torch, and transformers' with tiny random configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Tensors = tuple[Any, ...]


@dataclass(frozen=True)
class Net:
    """One architecture.

    Attributes:
        build: Makes the module.
        example: Makes its inputs, batch of 4.
        shapes: Dynamic dimensions besides the batch.
    """

    build: Callable[[], nn.Module]
    example: Callable[[], Tensors]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def image(channels: int = 3, size: int = 32) -> Callable[[], Tensors]:
    """Random images."""
    return lambda: (torch.randn(4, channels, size, size),)


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalization, no activation."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


class Head(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, 10]."""
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    """``activation(x + body(x))``, with a projection where shapes differ."""

    def __init__(
        self, body: nn.Module, shortcut: nn.Module | None = None, activation: nn.Module | None = None
    ):
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()
        self.activation = activation or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape, or that of the shortcut."""
        return self.activation(self.body(x) + self.shortcut(x))


def resnet() -> nn.Module:
    """ResNet (He et al. 2015), basic blocks."""
    layers: list[nn.Module] = [conv_bn(3, 16), nn.ReLU()]
    cin = 16
    for cout in (16, 32, 64):
        stride = 1 if cout == cin else 2
        body = nn.Sequential(conv_bn(cin, cout, 3, stride), nn.ReLU(), conv_bn(cout, cout))
        layers.append(Residual(body, conv_bn(cin, cout, 1, stride), nn.ReLU()))
        cin = cout
    return nn.Sequential(*layers, Head(64))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018): inverted residuals, depthwise convolutions, ReLU6."""
    layers: list[nn.Module] = [conv_bn(3, 16, 3, 2), nn.ReLU6()]
    for _ in range(2):
        wide = [conv_bn(16, 64, 1), nn.ReLU6(), conv_bn(64, 64, 3, 1, 64), nn.ReLU6(), conv_bn(64, 16, 1)]
        layers.append(Residual(nn.Sequential(*wide)))
    return nn.Sequential(*layers, Head(16))


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return x * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))))


def efficientnet() -> nn.Module:
    """EfficientNet's MBConv (Tan and Le 2019): SiLU, squeeze and excite."""
    body = [
        conv_bn(16, 32, 1),
        nn.SiLU(),
        conv_bn(32, 32, 5, 1, 32),
        nn.SiLU(),
        SqueezeExcite(32),
        conv_bn(32, 16, 1),
    ]
    return nn.Sequential(conv_bn(3, 16, 3, 2), nn.SiLU(), Residual(nn.Sequential(*body)), Head(16))


class Dense(nn.Module):
    """Concatenates its input and its output (Huang et al. 2017)."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(cin), nn.ReLU(), nn.Conv2d(cin, growth, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] -> [N, C + growth, H, W]."""
        return torch.cat([x, self.body(x)], 1)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015), one level: ConvTranspose and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] -> [N, 2, H, W]."""
        skip = F.relu(self.down(x))
        deep = F.relu(self.bottom(F.max_pool2d(skip, 2)))
        return self.out(torch.cat([skip, self.up(deep)], 1))


class Recurrent(nn.Module):
    """A recurrent layer over an embedding, classified by its last state."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 12)
        self.layer = kind(12, 16, batch_first=True, **options)
        self.head = nn.Linear(16 * (2 if options.get("bidirectional") else 1), 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[N, T] -> [N, 10]."""
        return self.head(self.layer(self.table(ids))[0][:, -1])


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021), one layer over 4x4 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(24), nn.LayerNorm(24)])
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, 32, 32] -> [N, 10]."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norms[1](x))).mean(1))


class Attention(nn.Module):
    """A transformer encoder over an embedding with learned positions."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.positions = nn.Parameter(torch.randn(1, 12, 16) * 0.1)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, **options),
            2,
            enable_nested_tensor=False,
        )
        self.head = nn.Linear(16, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[N, 12] -> [N, 10]."""
        return self.head(self.encoder(self.table(ids) + self.positions).mean(1))


class Seq2Seq(nn.Module):
    """``nn.Transformer`` with a causal mask: two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)
        self.body = nn.Transformer(16, 2, 1, 1, 32, 0.0, batch_first=True)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[N, S], [N, T] -> [N, T, 50]."""
        mask = torch.triu(torch.full((target.shape[1], target.shape[1]), float("-inf")), 1)
        return self.head(self.body(self.table(source), self.table(target), tgt_mask=mask, tgt_is_causal=True))


class SpatialTransformer(nn.Module):
    """grid_sample under a learned affine map (Jaderberg et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.locate, self.classify = nn.Linear(3 * 16 * 16, 6), nn.Linear(3 * 16 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, 16, 16] -> [N, 10]."""
        theta = self.locate(x.flatten(1)).view(-1, 2, 3)
        return self.classify(
            F.grid_sample(x, F.affine_grid(theta, list(x.shape), False), align_corners=False).flatten(1)
        )


class Conditional(nn.Module):
    """torch.cond on the input's sign."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 8] -> [N, 4]."""
        return torch.cond(x.sum() > 0, lambda v: self.one(v), lambda v: torch.tanh(self.other(v)), (x,))


def sequential(*layers: nn.Module) -> Callable[[], nn.Module]:
    """A builder of fresh copies of ``layers``."""
    import copy

    return lambda: copy.deepcopy(nn.Sequential(*layers))


def ids(length: int = 12, rows: int = 50) -> Callable[[], Tensors]:
    """Random token ids."""
    return lambda: (torch.randint(0, rows, (4, length)),)


PLAIN: dict[str, Net] = {
    "MLP": Net(sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 10)), lambda: (torch.randn(4, 20),)),
    "MLP, BatchNorm1d, SELU": Net(
        sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.SELU(), nn.Linear(32, 10)),
        lambda: (torch.randn(4, 20),),
    ),
    "LeNet": Net(
        sequential(
            nn.Conv2d(1, 6, 5),
            nn.Sigmoid(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Sigmoid(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 10),
        ),
        image(1, 28),
    ),
    "AlexNet, LRN": Net(
        sequential(nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2), Head(16)),
        image(),
    ),
    "VGG": Net(
        sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((4, 4)),
            nn.Flatten(),
            nn.Linear(512, 10),
        ),
        image(),
    ),
    "ResNet": Net(resnet, image()),
    "ResNet, any size": Net(resnet, image(), {"input": (-1, 3, -1, -1)}),
    "MobileNetV2": Net(mobilenet_v2, image()),
    "EfficientNet": Net(efficientnet, image()),
    "DenseNet": Net(
        sequential(nn.Conv2d(3, 8, 3), Dense(8, 4), Dense(12, 4), nn.AvgPool2d(2), Head(16)), image()
    ),
    "SqueezeNet, ELU": Net(
        sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ELU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(8, 10, 1), Head(10)
        ),
        image(),
    ),
    "GroupNorm, LeakyReLU": Net(
        sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.LeakyReLU(0.1), Head(16)), image()
    ),
    "InstanceNorm, PReLU, dilation": Net(
        sequential(
            nn.Conv2d(3, 16, 3, dilation=2), nn.InstanceNorm2d(16, affine=True), nn.PReLU(16), Head(16)
        ),
        image(),
    ),
    "U-Net": Net(UNet, image()),
    "Super-resolution, PixelShuffle": Net(
        sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.Hardswish(), nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2)
        ),
        image(1, 16),
    ),
    "Upsample, bilinear": Net(
        sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 2, 3)),
        image(3, 16),
    ),
    "Conv1d audio": Net(
        sequential(
            nn.Conv1d(1, 8, 9, 4),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        ),
        lambda: (torch.randn(4, 1, 256),),
    ),
    "Conv3d video": Net(
        sequential(
            nn.Conv3d(3, 8, 3), nn.ReLU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(8 * 3 * 7 * 7, 10)
        ),
        lambda: (torch.randn(4, 3, 8, 16, 16),),
    ),
    "MLP-Mixer": Net(Mixer, image()),
    "RNN": Net(lambda: Recurrent(nn.RNN), ids()),
    "LSTM": Net(lambda: Recurrent(nn.LSTM), ids()),
    "LSTM, two layers, both ways": Net(lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), ids()),
    "GRU": Net(lambda: Recurrent(nn.GRU), ids()),
    "Transformer encoder": Net(Attention, ids()),
    "Transformer encoder, pre-norm, GELU": Net(lambda: Attention(norm_first=True, activation="gelu"), ids()),
    "Transformer, two inputs": Net(Seq2Seq, lambda: (*ids()(), *ids(8)())),
    "grid_sample": Net(SpatialTransformer, image(3, 16)),
    "torch.cond": Net(Conditional, lambda: (torch.randn(4, 8),)),
}


def huggingface() -> dict[str, Net]:
    """Models of transformers, two narrow layers each, without dropout."""
    import transformers as t

    text = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    grouped = text | {
        "num_key_value_heads": 2,
        "attention_dropout": 0.0,
        "use_cache": False,
        "pad_token_id": None,
    }
    vision = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_labels": 10,
    }
    gpt = {
        "vocab_size": 99,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "use_cache": False,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    t5 = {
        "vocab_size": 99,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
    }
    whisper = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "dropout": 0.0,
        "num_mel_bins": 16,
        "max_source_positions": 24,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
    }
    sentence, pixels = ids(12, 99), image()
    any_length = {"input_ids": (-1, -1)}

    def masked() -> Tensors:
        mask = torch.ones(4, 12, dtype=torch.int64)
        mask[1, 8:] = 0
        return (*sentence(), {"attention_mask": mask})

    return {
        "BERT": Net(lambda: t.BertModel(t.BertConfig(**text, **off)), sentence),
        "BERT, mask, any length": Net(
            lambda: t.BertForSequenceClassification(t.BertConfig(**text, **off, num_labels=10)),
            masked,
            any_length | {"attention_mask": (-1, -1)},
        ),
        "RoBERTa": Net(lambda: t.RobertaModel(t.RobertaConfig(**text, **off)), sentence),
        "DistilBERT": Net(
            lambda: t.DistilBertModel(
                t.DistilBertConfig(
                    vocab_size=99,
                    dim=32,
                    n_layers=2,
                    n_heads=4,
                    hidden_dim=64,
                    dropout=0.0,
                    attention_dropout=0.0,
                )
            ),
            sentence,
        ),
        "ALBERT": Net(lambda: t.AlbertModel(t.AlbertConfig(**text, **off, embedding_size=16)), sentence),
        "ELECTRA": Net(lambda: t.ElectraModel(t.ElectraConfig(**text, **off, embedding_size=16)), sentence),
        "GPT-2": Net(lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt)), sentence),
        "T5 encoder": Net(lambda: t.T5EncoderModel(t.T5Config(**t5)), sentence),
        "Llama": Net(lambda: t.LlamaForCausalLM(t.LlamaConfig(**grouped)), sentence),
        "Llama, any length": Net(lambda: t.LlamaForCausalLM(t.LlamaConfig(**grouped)), sentence, any_length),
        "Mistral": Net(lambda: t.MistralForCausalLM(t.MistralConfig(**grouped)), sentence),
        "Qwen2": Net(lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**grouped)), sentence),
        "Whisper encoder": Net(
            lambda: t.models.whisper.modeling_whisper.WhisperEncoder(t.WhisperConfig(**whisper)),
            lambda: (torch.randn(4, 16, 48),),
        ),
        "ViT": Net(lambda: t.ViTForImageClassification(t.ViTConfig(**vision, **off)), pixels),
        "DeiT": Net(lambda: t.DeiTForImageClassification(t.DeiTConfig(**vision, **off)), pixels),
        "Swin": Net(
            lambda: t.SwinForImageClassification(
                t.SwinConfig(
                    image_size=32,
                    patch_size=2,
                    embed_dim=16,
                    depths=[2, 2],
                    num_heads=[2, 4],
                    window_size=4,
                    num_labels=10,
                    drop_path_rate=0.0,
                    **off,
                )
            ),
            pixels,
        ),
        "ConvNeXt": Net(
            lambda: t.ConvNextForImageClassification(
                t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=10)
            ),
            pixels,
        ),
        "RegNet": Net(
            lambda: t.RegNetForImageClassification(
                t.RegNetConfig(
                    embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, num_labels=10
                )
            ),
            pixels,
        ),
        "SegFormer": Net(
            lambda: t.SegformerForSemanticSegmentation(
                t.SegformerConfig(
                    hidden_sizes=[8, 16, 24, 32],
                    depths=[1, 1, 1, 1],
                    num_attention_heads=[1, 1, 2, 2],
                    decoder_hidden_size=16,
                    num_labels=3,
                    drop_path_rate=0.0,
                    classifier_dropout_prob=0.0,
                    **off,
                )
            ),
            image(3, 64),
        ),
    }
