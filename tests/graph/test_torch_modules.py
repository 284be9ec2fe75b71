"""Gradients of exported torch modules against torch.autograd, with a symbolic batch, at two batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import onnxaccel as oa


class Of(nn.Module):
    """A function as a module, its first output the result."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        result = self.function(*self.parts, *inputs)
        return result[0] if isinstance(result, tuple) else result


def resize(size: Any = None, **settings: Any) -> nn.Module:
    return Of(lambda x: F.interpolate(x, size, **settings))


def sample(mode: str, padding: str, corners: bool) -> nn.Module:
    return Of(lambda x, g: F.grid_sample(x, g, mode, padding, corners))


def recurrent(kind: type[nn.Module], **settings: Any) -> nn.Module:
    return Of(lambda layer, x: layer(x), kind(3, 4, batch_first=True, **settings))


IMAGE, POINTS, WORDS = [(4, 7, 6)], [(4, 7, 6), (5, 3, 2)], [(5, 3)]
HEADS = [(2, 5, 4)] * 3
CASES: dict[str, tuple[nn.Module, list[tuple[int, ...]]]] = {
    "Conv1d dilated": (nn.Conv1d(4, 6, 3, dilation=2, padding=2), [(4, 9)]),
    "Conv2d grouped strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), IMAGE),
    "Conv2d depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), IMAGE),
    "Conv2d reflect": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), IMAGE),
    "Conv2d circular": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    "Conv3d": (nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), [(2, 4, 5, 4)]),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 2, 3, stride=2), [(4, 5)]),
    "ConvTranspose2d grouped": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        IMAGE,
    ),
    "ConvTranspose2d dilated": (nn.ConvTranspose2d(4, 2, 3, dilation=2), IMAGE),
    "interpolate nearest": (resize(scale_factor=2, mode="nearest"), IMAGE),
    "interpolate bilinear": (resize(scale_factor=1.5, mode="bilinear"), IMAGE),
    "interpolate bilinear aligned": (resize((9, 11), mode="bilinear", align_corners=True), IMAGE),
    "interpolate bicubic": (resize((9, 4), mode="bicubic"), IMAGE),
    "interpolate linear": (resize(13, mode="linear"), [(4, 7)]),
    "interpolate trilinear": (resize((5, 6, 7), mode="trilinear"), [(2, 3, 4, 5)]),
    **{
        f"grid_sample {mode} {padding} {corners}": (sample(mode, padding, corners), POINTS)
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for corners in (False, True)
    },
    "RNN": (recurrent(nn.RNN), WORDS),
    "RNN bidirectional relu": (recurrent(nn.RNN, bidirectional=True, nonlinearity="relu"), WORDS),
    "LSTM two layers": (recurrent(nn.LSTM, num_layers=2), WORDS),
    "LSTM bidirectional": (recurrent(nn.LSTM, bidirectional=True), WORDS),
    "GRU bidirectional": (recurrent(nn.GRU, bidirectional=True), WORDS),
    "MultiheadAttention": (
        Of(lambda m, x: m(x, x, x), nn.MultiheadAttention(8, 2, batch_first=True)),
        [(5, 8)],
    ),
    "scaled_dot_product_attention": (Of(F.scaled_dot_product_attention), HEADS),
    "scaled_dot_product_attention causal": (
        Of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        HEADS,
    ),
    "TransformerEncoderLayer": (
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True),
        [(5, 8)],
    ),
    "GroupNorm": (nn.GroupNorm(2, 4), IMAGE),
    "InstanceNorm2d": (nn.InstanceNorm2d(4, affine=True), IMAGE),
    "LayerNorm": (nn.LayerNorm([7, 6]), IMAGE),
    "cumulative": (Of(lambda x: torch.cumsum(x, 1) * torch.logcumsumexp(x, 1)), [(5, 3)]),
    "sorted": (Of(lambda x: torch.sort(x, dim=-1)[0] * torch.topk(x, 3)[0].sum(-1, keepdim=True)), [(4, 6)]),
    "einsum": (Of(lambda x, y: torch.einsum("bij,bkj->bik", x, y)), [(3, 4), (5, 4)]),
}
FAST = {"Conv2d circular", "grid_sample bicubic reflection False", "LSTM bidirectional", "einsum"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES], ids=str
)
def test_module(name: str) -> None:
    torch.manual_seed(0)
    module, shapes = CASES[name]
    module.eval()
    with torch.no_grad():  # parameters of equal value would become one initializer
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))

    def inputs(batch: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.randn(batch, *shape) * 0.7 for shape in shapes)

    example = inputs(3)
    batch = torch.export.Dim("batch")
    dynamic = {"inputs": tuple({0: batch} for _ in example)} if isinstance(module, Of) else ({0: batch},)
    exported = torch.onnx.export(
        module, example, dynamo=True, opset_version=20, dynamic_shapes=dynamic, verbose=False
    )
    assert exported is not None
    proto = exported.model_proto
    held = {i.name for i in proto.graph.initializer}
    names = [i.name for i in proto.graph.input if i.name not in held]
    parameters = {n: p for n, p in module.named_parameters() if n in held}
    backward = oa.gradient(proto, wrt=[*names, *parameters])
    backward.check()
    session = ort.InferenceSession(backward.to_proto().SerializeToString())
    for size in (3, 5):
        xs = [x.requires_grad_() for x in inputs(size)]
        module.zero_grad()
        y = module(*xs)
        seed = torch.randn_like(y)
        y.backward(seed)
        output = proto.graph.output[0].name
        feed = {n: x.detach().numpy() for n, x in zip(names, xs, strict=True)}
        found = dict(
            zip(
                backward.output_names(),
                session.run(None, {**feed, f"{output}_grad": seed.numpy()}),
                strict=True,
            )
        )
        _same(found[output], y, "result")
        for n, x in [*zip(names, xs, strict=True), *parameters.items()]:
            _same(found[f"{n}_grad"], x.grad, n)


def _same(found: np.ndarray[Any, Any], expected: torch.Tensor | None, what: str) -> None:
    assert expected is not None, f"{what}: torch has no gradient"
    reference = expected.detach().numpy()
    worst = float(np.abs(found - reference).max()) / (float(np.abs(reference).max()) + 1e-6)
    assert worst < 1e-4, f"{what}: relative difference {worst:.1e}"
