"""LSTM and GRU layers, traced as operators of their own.

torch.export runs through a recurrent layer step by step, so that the length of its sequence is fixed. Here
each layer is one operator that it does not look into, with dropout between stacked ones; torch.onnx's own
translation of a layer writes it as ONNX LSTM or GRU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onnxaccel.errors import ConversionError

if TYPE_CHECKING:
    import torch


@functools.cache
def _layer(kind: str) -> Any:
    """The operator of one layer: (input, state, weights, ...) -> (output, new state...)."""
    import torch

    states = 2 if kind == "lstm" else 1
    schema = (
        "(Tensor input, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, float dropout, "
        f"bool train, bool bidirectional, bool batch_first) -> (Tensor{', Tensor' * states})"
    )

    def shapes(input: torch.Tensor, hx: list[torch.Tensor], *settings: Any) -> tuple[torch.Tensor, ...]:
        width = hx[0].shape[0] * hx[0].shape[2]
        return (input.new_empty(*input.shape[:2], width), *(torch.empty_like(state) for state in hx))

    torch.library.define(f"onnxaccel::{kind}", schema)
    torch.library.register_fake(f"onnxaccel::{kind}", shapes)
    return getattr(torch.ops.onnxaccel, kind).default


def stacked(kind: str) -> Callable[..., tuple[torch.Tensor, ...]]:
    """A function to trace instead of ``torch.lstm`` or ``torch.gru``."""
    import torch

    original = getattr(torch, kind)

    def call(*args: Any) -> tuple[torch.Tensor, ...]:
        if not isinstance(args[3], bool):  # of a packed sequence
            raise ConversionError(
                "a packed sequence has no ONNX form; run the layer on the padded sequence, without "
                "pack_padded_sequence"
            )
        x, hx, weights, biases, layers, dropout, train, bidirectional, batch_first = args
        if x.ndim != 3:
            return original(*args)  # type: ignore[no-any-return]
        states = list(hx) if kind == "lstm" else [hx]
        ways = 2 if bidirectional else 1
        share = len(weights) // layers
        if share != ways * (4 if biases else 2):
            raise ConversionError("an LSTM with proj_size has no ONNX operator; project by a Linear after it")
        lasts = []
        for index in range(layers):
            if index and dropout and train:
                x = torch.dropout(x, dropout, True)
            own = [state.narrow(0, index * ways, ways) for state in states]
            part = weights[index * share : (index + 1) * share]
            x, *last = _layer(kind)(x, own, part, biases, 1, 0.0, train, bidirectional, batch_first)
            lasts.append(last)
        return (x, *(torch.cat(state) for state in zip(*lasts, strict=True)))

    return call


def translations() -> dict[Any, Callable[..., Any]]:
    """torch.onnx's translations of the operators."""
    from onnxscript.function_libs.torch_lib.ops import core

    def gru(input: Any, hx: Any, *settings: Any) -> Any:
        return core.aten_gru(input, hx[0], *settings)

    return {_layer("lstm"): core.aten_lstm, _layer("gru"): gru}
