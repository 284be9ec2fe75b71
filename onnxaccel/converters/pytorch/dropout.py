"""Dropout's variants written as products with plain dropout, the one form that ONNX has an operator for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.overrides import TorchFunctionMode

ALPHA = -1.7580993408473766
"""-scale * alpha of SELU: what AlphaDropout puts in place of what it drops (Klambauer et al. 2017)."""


def plain_dropout() -> TorchFunctionMode:
    """A mode in which channel and alpha dropout are traced as plain dropout of a tensor of ones.

    Dropout of ones is the mask: 0 or 1 / (1 - p) in training, 1 in inference.
    """
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    variants: dict[Callable[..., Any], Callable[..., torch.Tensor]] = {}
    for name in ("dropout1d", "dropout2d", "dropout3d"):
        variants[getattr(functional, name)] = _feature_dropout
    for home in (functional, torch):
        variants[home.alpha_dropout] = _alpha_dropout
        variants[home.feature_alpha_dropout] = _feature_alpha_dropout
    variants[torch.feature_dropout] = _feature_dropout

    class PlainDropout(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            return variants.get(func, func)(*args, **(kwargs or {}))

    return PlainDropout()


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
