"""Frozen parameters and new classifiers, on models of all three frameworks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.errors import ModelError
from onnxaccel.graph.finetune import find_head, freeze, replace_head
from onnxaccel.graph.model import Model
from onnxaccel.graph.normalize import normalize
from onnxaccel.runtime.session import Session


def batch_norm_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def conv_head() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def torch_model(module: nn.Module, *example: torch.Tensor) -> Model:
    return oa.convert(module, *example, trainable=True, verify=False)


IMAGE = torch.zeros(2, 3, 12, 12)

HEADS: dict[str, tuple[Callable[[Path], Model], set[str]]] = {
    "torch Linear": (lambda shared: torch_model(batch_norm_net(), IMAGE), {"8.weight", "8.bias"}),
    "torch Conv": (lambda shared: torch_model(conv_head(), IMAGE), {"2.weight", "2.bias"}),
    "torch Softmax": (
        lambda shared: torch_model(nn.Sequential(nn.Linear(5, 3), nn.Softmax(1)), torch.zeros(2, 5)),
        {"0.weight", "0.bias"},
    ),
    "Caffe SqueezeNet": (
        lambda shared: oa.convert(
            *(shared / f"samples/caffe/squeezenet11/{f}" for f in ("deploy.prototxt", "weights.caffemodel")),
            trainable=True,
            verify=False,
        ),
        {"conv10.weight", "conv10.bias"},
    ),
    "Keras Dense": (
        lambda shared: oa.convert(
            shared / "samples/tensorflow/tiny_resnet8/model.h5", trainable=True, verify=False
        ),
        {"dense/kernel", "dense/bias"},
    ),
    "Keras Conv2D": (
        lambda shared: oa.convert(
            shared / "samples/tensorflow/gender_mini_xception/model.hdf5", trainable=True, verify=False
        ),
        {"conv2d_7/kernel", "conv2d_7/bias"},
    ),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_new_head_has_the_classes_and_the_body_is_kept(case: str, shared: Path) -> None:
    make, names = HEADS[case]
    model = make(shared)
    new = replace_head(model, 7, seed=3)
    new.check()
    assert new.metadata.max_relative_error is None and names <= set(new.metadata.trainable or ())
    x = {
        i.name: np.random.default_rng(0).normal(size=[d if isinstance(d, int) else 2 for d in i.shape])
        for i in model.inputs
        if i.shape is not None
    }
    feed = {str(name): value.astype(np.float32) for name, value in x.items()}
    (found,) = Session(new).run(feed).values()
    (before,) = Session(model).run(feed).values()
    assert found.size == 2 * 7 and np.isfinite(found).all()
    flat = found.reshape(2, 7).astype(np.float64)
    if np.allclose(before.reshape(2, -1).sum(1), 1, atol=1e-5):  # the Softmax was kept
        np.testing.assert_allclose(flat.sum(1), 1, rtol=1e-5)
    old, weights = model.weights(), new.weights()
    assert {n for n in old.keys() & weights.keys() if not np.array_equal(old[n], weights[n])} == names
    head = find_head(new)
    inputs = weights[str(head.weight.name)].size // 7
    bound = {"tensorflow": math.sqrt(6 / (inputs + 7)), "caffe": math.sqrt(3 / inputs)}.get(
        str(model.metadata.framework), 1 / math.sqrt(inputs)
    )
    largest = float(np.abs(weights[str(head.weight.name)]).max())
    assert bound * 0.8 < largest <= bound * (1 + 1e-6)
    again, other = replace_head(model, 7, seed=3).weights(), replace_head(model, 7, seed=4).weights()
    name = str(head.weight.name)
    assert np.array_equal(again[name], weights[name]) and not np.array_equal(other[name], weights[name])


def test_new_weights_are_distributed_as_torch_draws_them() -> None:
    """Mean square of weights and bias against those of many fresh Linear layers."""
    model = torch_model(nn.Linear(40, 3), torch.zeros(2, 40))
    ours = [replace_head(model, 50, seed).weights() for seed in range(20)]
    theirs = [nn.Linear(40, 50).state_dict() for _ in range(20)]
    for name in ("weight", "bias"):
        a = np.mean([np.mean(w[name].astype(np.float64) ** 2) for w in ours])
        b = np.mean([np.mean(w[name].double().numpy() ** 2) for w in theirs])
        assert a == pytest.approx(b, rel=0.1), name  # 1000 biases: 3% standard deviation each


class Two(nn.Module):
    """Two layers whose results are added, or both given."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Linear(4, 5), nn.Linear(4, 5), both

    def forward(self, x: Any) -> Any:
        return (self.a(x), self.b(x)) if self.both else self.a(x) + self.b(x)


class Tied(nn.Module):
    """A classifier that shares its weights with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Any) -> Any:
        return self.head(self.embedding(x).mean(1))


@pytest.mark.parametrize(
    ("module", "x", "reason"),
    [
        (Two(False), torch.zeros(2, 4), "joins several values"),
        (Two(True), torch.zeros(2, 4), "output 'output_1' does not come from"),
        (Tied(), torch.zeros(2, 3, dtype=torch.int64), "shares its weights"),
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), torch.zeros(2, 4), "Tanh node .* stands between"),
        (nn.ReLU(), torch.zeros(2, 4), "no Gemm, MatMul or Conv"),
    ],
)
def test_heads_that_cannot_be_told_are_refused(module: nn.Module, x: torch.Tensor, reason: str) -> None:
    with pytest.raises(ModelError, match=f"--num-classes: the classifier .* cannot be told: .*{reason}"):
        replace_head(torch_model(module, x), 7)


def test_freezing_equals_torch() -> None:
    """A frozen body with its BatchNorm in eval mode, as torch users write it: the same curve of losses."""
    module = batch_norm_net()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 16, 3, 12, 12)).astype(np.float32)
    y = rng.integers(0, 4, (20, 16))
    module.train()
    for batch in x[:3]:  # running statistics that are not those of a fresh model
        module(torch.from_numpy(batch))
    model = torch_model(module, IMAGE)
    trainer = oa.Trainer(model, optimizer=oa.optimizers.SGD(0.1), ep="cpu", freeze=["0.*", "1.*", "3.bias"])
    assert trainer.parameters == ["3.weight", "4.weight", "4.bias", "8.weight", "8.bias"]
    ours = [trainer.step(a, b) for a, b in zip(x, y, strict=True)]
    module.train()
    module[1].eval()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith(("0.", "1.", "3.bias")))
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1)
    theirs = []
    for a, b in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(module(torch.from_numpy(a)), torch.from_numpy(b))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    after = trainer.model().weights()
    before = model.weights()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {*trainer.parameters, "4.running_mean", "4.running_var"}
    for name, value in module.state_dict().items():
        if name in after:
            np.testing.assert_allclose(after[name], value.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)
    # what was frozen in one training is not frozen in the exported model
    assert trainer.model().metadata == model.metadata


def test_patterns_without_a_match_are_refused() -> None:
    model = torch_model(batch_norm_net(), IMAGE)
    normalize(model)
    with pytest.raises(ModelError, match=r"--freeze '9\.\*' matches no parameter; there is "):
        freeze(model, ["9.*"])
    with pytest.raises(ModelError, match="no trainable parameter"):
        oa.Trainer(model, ep="cpu", freeze=["*"])


def test_fine_tuning_learns(shared: Path) -> None:
    """A body trained on digits 0 to 9 learns even and odd through a new head alone."""
    digits = "sklearn:digits#0:1500"
    from onnxaccel.data import as_dataset

    x, y = as_dataset(digits).take(np.arange(1500))
    x = (x.reshape(len(x), -1) / 16).astype(np.float32)
    model = torch_model(models.build("mlp", "pytorch", input_shape=(64,)), torch.zeros(2, 64))
    body = oa.Trainer(model, optimizer=oa.optimizers.AdamW(5e-3), ep="cpu")
    body.fit((x, y), epochs=5)
    tuned = oa.Trainer(
        body.model(), optimizer=oa.optimizers.AdamW(5e-3), ep="cpu", num_classes=2, freeze=["fc1.*", "fc2.*"]
    )
    assert tuned.parameters == ["fc3.weight", "fc3.bias"]
    first, *_, last = tuned.fit((x, y % 2), epochs=5).epochs
    assert last.accuracy is not None and last.accuracy > 0.9 and last.loss < first.loss / 2
    assert oa.evaluate(tuned.model(), (x, y % 2), ep="cpu").accuracy == pytest.approx(last.accuracy, abs=0.03)
