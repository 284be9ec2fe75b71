"""Values read in pieces and transposes between reshapes: cheaper spellings, the same gradients as torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel.graph.model import Model

Function = Callable[[torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """A function of ``scale * x``, so that what is read in pieces is no input of the graph."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(2.0 * x)


def packed(x: torch.Tensor) -> torch.Tensor:
    """As torch's MultiheadAttention takes query, key and value apart: axis to the front, then one by one."""
    qkv = x.unflatten(2, (3, 4)).unsqueeze(0).transpose(0, -2).squeeze(-2)
    return qkv[0] * qkv[1] + torch.sin(qkv[2])


def attention(x: torch.Tensor) -> torch.Tensor:
    heads = x.unflatten(2, (2, 6)).transpose(1, 2)
    return torch.nn.functional.scaled_dot_product_attention(heads, heads.sin(), heads.cos())


PIECES: dict[str, tuple[Function, int]] = {
    "two rows": (lambda x: x[:, 0] * x[:, 2], 1),
    "negative index": (lambda x: x[:, 0] * x[:, -1].exp(), 1),
    "all rows": (lambda x: sum((x[:, i] ** (i + 1) for i in range(5)), start=torch.zeros(12)), 1),
    "halves": (lambda x: x[..., :6] * x[..., 6:].cos(), 1),
    "a gap": (lambda x: x[..., :3] * x[..., 8:11], 1),
    "rows and a range": (lambda x: x[:, 0:2].sum(1) * x[:, 3], 1),
    "packed attention": (packed, 1),
    "the same row twice": (lambda x: x[:, 1] * x[:, 1].sin(), 0),
    "ranges that overlap": (lambda x: x[..., :8] * x[..., 4:].sin(), 0),
    "two axes": (lambda x: x[:, 0].sum() * x[:, 1] + x[..., :2].sum() * x[..., 5:].sum(), 2),
    "a step": (lambda x: x[..., ::2] * x[..., 1::2], 0),
}


def converted(function: Function) -> tuple[nn.Module, torch.Tensor, Model]:
    torch.manual_seed(0)
    module, x = Net(function), torch.randn(2, 5, 12)
    return module, x, oa.convert(module, x)


def gradients(function: Function) -> tuple[Any, Any, Counter[str]]:
    """The gradient by x from onnxaccel and from torch, and the operators of the first."""
    module, x, model = converted(function)
    grad = oa.gradient(model)
    x.requires_grad_()
    y = module(x)
    seed = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(seed)
    assert x.grad is not None
    names = grad.input_names()
    session = ort.InferenceSession(grad.to_proto().SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {names[0]: x.detach().numpy(), names[1]: seed.numpy()}
    (found,) = session.run([f"{names[0]}_grad"], feed)
    return found, x.grad.numpy(), Counter(node.op_type for node in grad.graph)


@pytest.mark.parametrize("name", PIECES)
def test_a_value_read_in_pieces_is_split_once(name: str) -> None:
    function, splits = PIECES[name]
    found, wanted, operators = gradients(function)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert operators["Split"] == splits
    if splits == 1:
        assert not operators["ScatterND"] and not operators["Pad"]


def test_packed_attention_moves_no_axes() -> None:
    _, _, operators = gradients(packed)
    assert operators["Transpose"] == 0 and operators["Concat"] == 1


def test_keys_are_transposed_where_they_are() -> None:
    """Then onnxruntime multiplies by them as they lie; between Reshapes it copies them."""
    found, wanted, operators = gradients(attention)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    plain = gradients(lambda x: x.unflatten(2, (2, 6)).transpose(1, 2))[2]
    assert operators["Reshape"] == plain["Reshape"]
