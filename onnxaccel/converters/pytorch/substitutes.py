"""Functions that are traced in another form, since ONNX or torch's exporter has none for their own.

Channel and alpha dropout become products with plain dropout of a tensor of ones, which is the mask: 0 or 1 /
(1 - p) in training, 1 in inference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onnxaccel.converters.pytorch import recurrent

if TYPE_CHECKING:
    import torch
    from torch.overrides import TorchFunctionMode

ALPHA = -1.7580993408473766
"""-scale * alpha of SELU: what AlphaDropout puts in place of what it drops (Klambauer et al. 2017)."""


def substitutes() -> TorchFunctionMode:
    """A mode in which a module can be traced with the substitutes in place."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    table: dict[Callable[..., Any], Callable[..., Any]] = {
        functional.scaled_dot_product_attention: _attention,
        functional.dropout1d: _feature_dropout,
        functional.dropout2d: _feature_dropout,
        functional.dropout3d: _feature_dropout,
        functional.alpha_dropout: _alpha_dropout,
        functional.feature_alpha_dropout: _feature_alpha_dropout,
        torch.feature_dropout: _feature_dropout,
        torch.alpha_dropout: _alpha_dropout,
        torch.feature_alpha_dropout: _feature_alpha_dropout,
        functional.embedding_bag: _embedding_bag,
        functional.rrelu: _rrelu,
        torch.cdist: _cdist,
        torch.lstm: recurrent.stacked("lstm"),
        torch.gru: recurrent.stacked("gru"),
        torch.Tensor.data.__get__: torch.Tensor.detach,  # type: ignore[attr-defined]
    }

    class Substitutes(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            return table.get(func, func)(*args, **(kwargs or {}))

    return Substitutes()


def _attention(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Attention of [N, T, E] tensors, which the exporter takes as [N, heads, T, E] only."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if query.ndim != 3:
        return scaled_dot_product_attention(query, *args, **kwargs)

    def with_head(value: Any) -> Any:
        return value.unsqueeze(1) if isinstance(value, torch.Tensor) and value.ndim == 3 else value

    headed = [with_head(value) for value in args]
    named = {name: with_head(value) for name, value in kwargs.items()}
    return scaled_dot_product_attention(query.unsqueeze(1), *headed, **named).squeeze(1)


def _embedding_bag(
    input: torch.Tensor,
    weight: torch.Tensor,
    offsets: torch.Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: torch.Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> torch.Tensor:
    """Embeddings reduced over each bag: [N, T] -> [N, E], or [T] with the N offsets where bags begin."""
    import torch

    rows = torch.nn.functional.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)
    if offsets is None:
        member = torch.ones_like(input, dtype=torch.bool)
    else:
        ends = torch.cat([offsets[1:], torch.full_like(offsets[:1], 2**31)])
        if include_last_offset:
            offsets, ends = offsets[:-1], offsets[1:]
        place = torch.arange(input.shape[0], device=input.device)
        member = (place >= offsets[:, None]) & (place < ends[:, None])
        rows, input = rows[None], input[None]
    if padding_idx is not None:
        member = member & (input != padding_idx)
    if mode == "max":  # an empty bag gives zeros
        highest = torch.where(member[..., None], rows, float("-inf")).amax(-2)
        return torch.where(member.any(-1, keepdim=True), highest, 0.0)
    factor = member.to(rows.dtype)
    if per_sample_weights is not None:
        factor = factor * per_sample_weights
    total = torch.matmul(factor.unsqueeze(-2), rows).squeeze(-2)
    return total / member.sum(-1, keepdim=True).clamp(min=1) if mode == "mean" else total


def _rrelu(
    input: torch.Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> torch.Tensor:
    import torch

    slope = (lower + upper) / 2
    if training:  # refused later, as any random number but Dropout's
        return torch.where(input >= 0, input, input * torch.empty_like(input).uniform_(lower, upper))
    return torch.nn.functional.leaky_relu(input, slope)


def _cdist(x1: torch.Tensor, x2: torch.Tensor, p: float = 2.0, compute_mode: Any = None) -> torch.Tensor:
    """[..., P, M], [..., R, M] -> [..., P, R]."""
    import torch

    distance: torch.Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), ord=p, dim=-1)
    return distance


def _feature_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    return input * _mask(_channels(input), p) if training else input


def _alpha_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> torch.Tensor:
    return _alpha(input, _mask(input, p), p) if training else input


def _feature_alpha_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> torch.Tensor:
    return _alpha(input, _mask(_channels(input), p), p) if training else input


def _channels(x: torch.Tensor) -> torch.Tensor:
    """The first element of each channel: [N, C, 1, ...]."""
    for axis in range(2, x.ndim):
        x = x.narrow(axis, 0, 1)
    return x


def _mask(like: torch.Tensor, p: float) -> torch.Tensor:
    import torch

    return torch.dropout(torch.ones_like(like), p, True)


def _alpha(x: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """``a * (x or ALPHA) + b``, which keeps mean 0 and variance 1; x where the mask is 1, in inference."""
    import torch

    a = ((1 - p) * (1 + p * ALPHA**2)) ** -0.5
    b = -a * ALPHA * p
    dropped = torch.where(mask == 0, a * ALPHA + b, a * x + b)
    return torch.where(mask == 1, x, dropped)
