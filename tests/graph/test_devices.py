"""The graphs made for CUDA: right wherever they run, and of operators that onnxruntime has there."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.graph.devices import narrow
from onnxaccel.graph.losses import as_loss
from onnxaccel.graph.model import Model
from onnxaccel.graph.optimizers import SGD, AdamW
from onnxaccel.graph.recipe import Recipe
from onnxaccel.graph.training import TrainingStep, training_step
from onnxaccel.runtime import providers
from onnxaccel.runtime.stepper import Stepper
from tests.graph.test_training import batch_norm_cnn

# onnxruntime 1.31's docs/OperatorKernels.md: kernels of the CUDA provider for float32 at opset 18
KERNELS = frozenset(
    """Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Compress Concat
    ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace Div Dropout Einsum Elu Equal Erf
    Exp Expand Flatten Floor Gather GatherElements GatherND Gemm GlobalAveragePool GlobalMaxPool
    Greater GreaterOrEqual GridSample HardSigmoid HardSwish Identity InstanceNormalization IsInf
    IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Min
    Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round
    ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Size Slice Softmax Softplus
    Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Trilu Unsqueeze
    Where Xor""".split()
)


def mobile() -> nn.Module:
    """Depthwise and strided convolutions, Clip, and two poolings that overlap."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16, momentum=1.0), nn.Hardswish(),
        nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(16, 24, 1), nn.Dropout(0.2), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 10),
    )  # fmt: skip


def transformer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, activation="gelu", batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(16 * 6, 10))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: models.build("mlp", "pytorch", input_shape=(64,)), (64,)),
    "cifar_cnn": (lambda: models.build("cifar_cnn", "pytorch"), (3, 32, 32)),
    "batch_norm_cnn": (batch_norm_cnn, (3, 32, 32)),
    "mobile": (mobile, (3, 32, 32)),
    "transformer": (transformer, (6, 16)),
}


@lru_cache
def converted(name: str) -> Model:
    build, shape = NETS[name]
    return oa.convert(build(), torch.randn(2, *shape), trainable=True)


def batches(name: str, count: int = 4) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    shape = NETS[name][1]
    return [(rng.standard_normal((8, *shape), np.float32), rng.integers(0, 10, 8)) for _ in range(count)]


def stepped(step: TrainingStep, data: list[tuple[Any, Any]]) -> tuple[list[float], dict[str, Any]]:
    stepper = Stepper(step, providers.resolve("cpu"))
    losses = [stepper.run({step.inputs[0]: x}, y, 0.01)[0] for x, y in data]
    return losses, stepper.state()


@pytest.mark.parametrize("name", NETS)
def test_steps_for_cuda_compute_what_steps_for_the_cpu_do(name: str) -> None:
    model, data = converted(name), batches(name)
    loss = as_loss("cross_entropy")
    steps = [training_step(model, loss, SGD(0.01), seed=1, device=device) for device in ("cpu", "cuda")]
    (one, before), (two, after) = (stepped(step, data) for step in steps)
    np.testing.assert_allclose(two, one, rtol=2e-5)
    start = steps[0].initial
    for key, value in before.items():
        moved = float(np.abs(value.astype(np.float64) - start[key]).max()) or 1.0
        np.testing.assert_allclose(after[key], value, rtol=0, atol=1e-3 * moved + 1e-7, err_msg=key)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_steps_for_cuda_have_kernels_there(name: str, split: bool) -> None:
    recipe = Recipe(clip_norm=1.0, ema=0.9)
    step = training_step(converted(name), "cross_entropy", AdamW(1e-3), recipe, split=split, device="cuda")
    for model in filter(None, (step.model, step.update)):
        assert {node.op_type for node in model.graph} <= KERNELS
        for node in model.graph:
            if node.op_type == "BatchNormalization":  # refused in training mode
                assert "training_mode" not in node.attributes or not node.attributes["training_mode"].value


def test_input_gradients_on_cuda_are_cudnns_own() -> None:
    operators = {}
    for device in ("cpu", "cuda"):
        step = training_step(converted("cifar_cnn"), "cross_entropy", SGD(0.1), device=device)
        operators[device] = [node.op_type for node in step.model.graph]
    assert "ConvTranspose" not in operators["cpu"] and "ConvTranspose" in operators["cuda"]
    assert operators["cuda"].count("Conv") < operators["cpu"].count("Conv")


@pytest.mark.parametrize(
    ("channels", "size", "cut"),
    [((3, 64), 32, 9), ((64, 64), 32, 0), ((128, 128), 16, 0), ((512, 512), 4, 9)],
)
def test_weight_gradients_on_cuda_copy_little(channels: tuple[int, int], size: int, cut: int) -> None:
    """Images shifted where channels are few beside the plane, else one product over all positions."""
    head = nn.Linear(channels[1], 10)
    module = nn.Sequential(nn.Conv2d(*channels, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    model = oa.convert(module, torch.zeros(2, channels[0], size, size), trainable=True, verify=False)
    step = training_step(model, "cross_entropy", SGD(0.1), device="cuda")
    operators = [node.op_type for node in step.model.graph]
    assert operators.count("Slice") == cut  # what each kernel position saw
    assert operators.count("MatMul") == 1


@pytest.mark.parametrize("name", ["batch_norm_cnn", "transformer"])
def test_bfloat16_on_cuda_meets_only_kernels_that_are_there(name: str) -> None:
    step = training_step(converted(name), "cross_entropy", SGD(0.1), Recipe(precision="bf16"), device="cuda")
    narrow(step.model, "cuda", ir.DataType.BFLOAT16)
    low = {
        node.op_type
        for node in step.model.graph
        for value in (*node.inputs, *node.outputs)
        if value is not None and value.dtype == ir.DataType.BFLOAT16
    }
    assert {"Gemm", "MatMul"} & low
    assert not low & {"AveragePool", "MaxPool", "Pad", "HardSigmoid", "ConvTranspose", "Conv", "ReduceMean"}
