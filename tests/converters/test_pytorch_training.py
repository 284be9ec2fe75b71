"""The trainable form trains as torch does, and trained weights come back into the module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel.errors import MissingWeights, ModelError
from onnxaccel.runtime.session import Session

torch = pytest.importorskip("torch")
nn = torch.nn
torch.set_num_threads(2)

STEPS = 10


class ConvNet(nn.Module):
    """BatchNorm with its own momentum, a frozen BatchNorm, groups, tied, frozen and unused weights."""

    def __init__(self) -> None:
        super().__init__()
        # no bias: before a BatchNorm its gradient is rounding noise, which AdamW would blow up
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8, momentum=0.2)
        self.grouped, self.frozen_norm = nn.Conv2d(8, 8, 3, 2, groups=2, bias=False), nn.BatchNorm2d(8)
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.unused = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        nn.init.normal_(self.frozen_norm.running_mean)

    def train(self, mode: bool = True) -> ConvNet:
        super().train(mode)
        self.frozen_norm.eval()
        return self

    def forward(self, x: Any) -> Any:
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        x = torch.relu(self.frozen_norm(self.grouped(x))).mean((2, 3))
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Sentence(nn.Module):
    """Embedding, attention written out, a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.project = nn.Embedding(50, 8), nn.Linear(8, 24)
        self.recurrent, self.head = nn.RNN(8, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, ids: Any) -> Any:
        query, key, value = self.project(self.table(ids)).chunk(3, -1)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.head(self.recurrent(attended)[0][:, -1])


class Recurrent(nn.Module):
    """Two layers, both ways."""

    def __init__(self, kind: type[Any]) -> None:
        super().__init__()
        self.layer = kind(5, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(x)[0][:, -1])


class Shared(nn.Module):
    """One block in two places, a scalar parameter, running statistics that are the last batch's."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6, momentum=0.3), nn.Tanh())
        self.first, self.second = block, block
        self.last_batch, self.scale = nn.BatchNorm1d(6, momentum=1.0), nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(6, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.last_batch(x + self.scale * self.second(self.first(x))))


SGD = (
    lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    lambda: oa.optimizers.SGD(0.05, momentum=0.9, weight_decay=1e-3),
)
ADAMW = (
    lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.01),
    lambda: oa.optimizers.AdamW(1e-3, weight_decay=0.01),
)


@pytest.mark.parametrize("optimizers", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    ("build", "batch"),
    [
        (ConvNet, lambda: torch.randn(16, 3, 12, 12)),
        (Sentence, lambda: torch.randint(0, 50, (16, 6))),
        (Shared, lambda: torch.randn(16, 6)),
        (lambda: Recurrent(nn.LSTM), lambda: torch.randn(16, 6, 5)),
        (lambda: Recurrent(nn.GRU), lambda: torch.randn(16, 6, 5)),
    ],
)
def test_training_equals_torch_and_comes_back(
    tmp_path: Path, build: type[Any], batch: Callable[[], Any], optimizers: tuple[Any, Any]
) -> None:
    torch.manual_seed(0)
    module = build().train()
    start = copy.deepcopy(module)
    model = oa.convert(module, batch()[:2], trainable=True)
    trainer = oa.Trainer(model, loss="cross_entropy", optimizer=optimizers[1](), ep="cpu")
    optimizer = optimizers[0]([p for p in module.parameters() if p.requires_grad])
    for _ in range(STEPS):
        x, y = batch(), torch.randint(0, 10, (16,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        assert trainer.step(x.numpy(), y.numpy()) == pytest.approx(loss.item(), rel=1e-5)

    path = trainer.export(tmp_path / "trained.onnx")
    returned = oa.pytorch.load_trained(start, path)
    assert returned is start
    module.eval(), start.eval()
    x = batch()
    with torch.no_grad():
        trained_by_torch, brought_back = module(x).numpy(), start(x).numpy()
    in_onnxruntime = Session(oa.Model.load(path)).run({model.input_names()[0]: x.numpy()})["output"]
    scale = np.abs(trained_by_torch).max()
    assert np.abs(brought_back - in_onnxruntime).max() <= 1e-5 * scale
    assert (
        np.abs(brought_back - trained_by_torch).max() <= 1e-3 * scale
    )  # 10 steps of AdamW, which divides noise
    for name, buffer in module.named_buffers():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(start.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


def test_only_what_fits_is_brought_back(tmp_path: Path) -> None:
    module, example = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3)
    trainable = oa.convert(module, example, trainable=True)
    narrow = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    before = copy.deepcopy(narrow.state_dict())
    with pytest.raises(MissingWeights, match=r"'1.weight' has shape \[2, 4\]"):
        oa.pytorch.load_trained(narrow, trainable)
    assert all(torch.equal(before[k], v) for k, v in narrow.state_dict().items())
    with pytest.raises(MissingWeights, match=r"no parameter '1\.weight'"):
        oa.pytorch.load_trained(nn.Sequential(nn.Linear(3, 4)), trainable)
    with pytest.raises(ModelError, match="trainable=True"):
        oa.pytorch.load_trained(module, oa.convert(module, example))
    with pytest.raises(ModelError, match="no such file"):
        oa.pytorch.load_trained(module, tmp_path / "none.onnx")


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_dropout_in_training_draws_from_torchs_distribution(layer: type[Any]) -> None:
    """On inputs that are all equal, a dropout has two values: the one it drops to and the one it keeps."""
    from onnxaccel.graph.builder import Builder
    from onnxaccel.graph.normalize import normalize
    from onnxaccel.graph.training_form import to_training_form

    dropout, x = layer(0.3), torch.full((64, 50, 4, 4), 1.5)
    model = oa.convert(nn.Sequential(nn.Identity(), dropout), x[:2], trainable=True)
    normalize(model)
    (draws,) = to_training_form(model, Builder(model.graph, prefix="step"), seed=1)
    model.graph.inputs.append(draws.old)
    feed = {model.input_names()[0]: x.numpy(), model.input_names()[1]: draws.start}
    actual = Session(model).run(feed)["output"]

    values = np.unique(dropout.train()(x).numpy().round(5))
    np.testing.assert_allclose(np.unique(actual.round(5)), values, atol=2e-5)
    dropped = np.isclose(actual, values.min(), atol=2e-5).reshape(64, 50, -1)
    assert dropped.mean() == pytest.approx(0.3, abs=0.04)
    whole_channels = np.isin(dropped.mean(-1), (0.0, 1.0)).all()
    assert whole_channels == (layer in (nn.Dropout2d, nn.FeatureAlphaDropout))


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x).detach())


class WithoutGradient(Detached):
    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            x = torch.tanh(self.first(x))
        return self.second(x)


class Item(Detached):
    def forward(self, x: Any) -> Any:
        x = self.first(x)
        return self.second(x * x.sum().item())


class Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return gradient


class StraightThrough(Detached):
    def forward(self, x: Any) -> Any:
        return self.second(self.first(x) + Sign.apply(self.first(x)))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Detached(), "stops a gradient"),
        (WithoutGradient(), "stops a gradient"),
        (Item(), "stops a gradient"),
        (StraightThrough(), "Sign is an autograd.Function with a gradient of its own"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)), "stops a gradient"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, momentum=None)), "momentum=None"),
        (nn.Sequential(nn.Conv1d(3, 4, 1), nn.InstanceNorm1d(4, track_running_stats=True)), "InstanceNorm"),
        (nn.Sequential(nn.Embedding(9, 4, scale_grad_by_freq=True), nn.Linear(4, 2)), "scale_grad_by_freq"),
    ],
)
def test_what_onnx_would_train_otherwise_is_refused(module: Any, message: str) -> None:
    example = {"InstanceNorm": torch.randn(2, 3, 5), "scale_grad_by_freq": torch.randint(0, 9, (2, 3))}
    x = example.get(message, torch.randn(2, 3))
    oa.convert(module, x)
    with pytest.raises(oa.AccelError, match=message):
        oa.convert(module, x, trainable=True)


def test_a_stopped_gradient_of_no_parameter_is_no_obstacle() -> None:
    module = Detached()
    module.first.requires_grad_(False)
    assert oa.convert(module, torch.randn(2, 3), trainable=True).metadata.trainable == [
        "second.weight",
        "second.bias",
    ]


def test_the_padding_row_of_an_embedding_gets_no_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(9, 4, padding_idx=2), nn.Flatten(), nn.Linear(20, 3))
    with torch.no_grad():
        module[0].weight[2] = 1.0  # a row of zeros would hide a gradient that is multiplied with it
    x, y = torch.randint(0, 9, (6, 5)), torch.randint(0, 3, (6,))
    x[:, 0] = 2
    oa.convert(module, x, trainable=True).save(tmp_path / "m.onnx")
    trainer = oa.Trainer(tmp_path / "m.onnx", optimizer=oa.optimizers.SGD(0.1), ep="cpu")
    step = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(3):
        trainer.step(x.numpy(), y.numpy())
        step.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        step.step()
    trained = trainer.model().weights()
    for name, value in module.state_dict().items():
        np.testing.assert_allclose(trained[name], value.numpy(), rtol=1e-5, atol=1e-6)
