"""The forms that a convolution's gradients take by shape, each against torch.autograd in float64."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel.runtime.session import Session

Case = tuple[tuple[int, int], int, dict[str, Any], str]

# channels, image, further arguments of Conv2d, an operator that only the expected form has
CASES: list[Case] = [
    ((3, 8), 9, {"padding": 1}, "stack"),
    ((32, 32), 8, {"padding": 1, "groups": 32}, "channel"),
    ((8, 8), 9, {"padding": (2, 0), "groups": 8, "stride": 2}, "channel"),
    ((8, 16), 9, {"padding": 1, "groups": 8}, "stack"),
    ((32, 48), 8, {"padding": 1, "groups": 2}, "stack"),
    ((16, 24), 16, {"padding": 1}, "shifts"),
    ((16, 24), 16, {}, "shifts"),
    ((24, 16), 16, {"kernel_size": (3, 2), "padding": (2, 0)}, "shifts"),
    ((24, 16), 16, {"kernel_size": (2, 3), "padding": (0, 1)}, "shifts"),
    ((16, 16), 28, {"kernel_size": 3, "padding": 1, "dilation": 2}, "shifts"),
    ((16, 16), 30, {"kernel_size": 3, "padding": 2, "dilation": 2}, "shifts"),
    ((16, 16), 28, {"kernel_size": 2, "padding": 3}, "shifts"),
    ((20, 50), 12, {"kernel_size": 5}, "positions"),
    ((16, 24), 9, {"padding": 1, "stride": 2}, "positions"),
    ((16, 24), 9, {"kernel_size": 1}, "positions"),
    ((80, 16), 9, {"padding": 1}, "positions"),
    ((128, 72), 6, {}, "positions"),
    ((128, 72), 7, {"padding": 2, "dilation": 2}, "positions"),
    ((72, 128), 1, {"padding": 1}, "positions"),
    ((160, 144), 2, {"padding": 1}, "positions"),
    ((160, 144), 3, {"kernel_size": (3, 2), "padding": (1, 1)}, "positions"),
    ((256, 260), 2, {"kernel_size": 1}, "positions"),
]


@pytest.mark.parametrize(("channels", "size", "settings", "form"), CASES)
def test_gradients_equal_torch(
    channels: tuple[int, int], size: int, settings: dict[str, Any], form: str
) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(*channels, **{"kernel_size": 3, **settings})
    x = torch.randn(3, channels[0], size, size + 1 if size > 1 else 1)
    model = oa.convert(module, x, trainable=True)
    gradient = oa.gradient(model, ["weight", "x" if "x" in model.input_names() else model.input_names()[0]])

    module, x = module.double(), x.double().requires_grad_()
    y = module(x)
    seed = torch.randn_like(y)
    y.backward(seed)
    names = [*model.input_names(), *[f"{name}_grad" for name in model.output_names()]]
    found = Session(gradient).run(
        dict(
            zip(names, (x.detach().numpy().astype(np.float32), seed.numpy().astype(np.float32)), strict=True)
        )
    )
    assert module.weight.grad is not None and x.grad is not None
    for name, expected in (("weight", module.weight.grad), (model.input_names()[0], x.grad)):
        scale = float(expected.abs().max())
        np.testing.assert_allclose(found[f"{name}_grad"], expected.numpy(), rtol=0, atol=3e-6 * scale)

    operators = Counter(node.op_type for node in gradient.graph)
    positions = int(np.prod(module.kernel_size))
    assert (operators["Gemm"] == positions) == (form == "positions")
    one_product = form == "shifts" or (form == "stack" and module.groups == 1)
    assert (operators["MatMul"] == 1 and module.groups == 1) == one_product
    if one_product:
        assert (operators["Slice"] >= positions) == (form == "stack")
    assert (operators["Mul"] == positions) == (form == "channel")
    assert (operators["ConvTranspose"] == 1) == (
        module.groups > 1
        or module.stride != (1, 1)
        or positions == 4
        or x[0, 0].numel() > 1.25 * seed[0, 0].numel()
    )
