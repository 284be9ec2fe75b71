"""Every loss equals torch's: value and gradient, over 20 steps, in float32 against torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import onnxaccel as oa
from onnxaccel.errors import AccelError, DataError, ModelError, TrainingError
from onnxaccel.graph.losses import Output, create, loss
from onnxaccel.graph.model import Model
from onnxaccel.graph.optimizers import SGD

STEPS = 20
CLASSES = 4
WEIGHTS = (0.5, 2.0, 1.0, 0.25)
Maker = Callable[[np.random.Generator], np.ndarray[Any, Any]]


def dense(*last: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES), *last)


class Tokens(nn.Module):
    """Scores [N, positions, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(x.reshape(-1, 3, 2))))


class Pixels(nn.Module):
    """Scores [N, C, 2, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, CLASSES, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.reshape(-1, 1, 2, 3))


def labels(*shape: int, ignore: int | None = None, share: float = 0.3) -> Maker:
    def make(rng: np.random.Generator) -> np.ndarray[Any, Any]:
        y = rng.integers(0, CLASSES, (8, *shape))
        return y if ignore is None else np.where(rng.random(y.shape) < share, ignore, y)

    return make


def normal(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return rng.normal(size=(8, CLASSES)).astype(np.float32)


def shares(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return rng.random((8, CLASSES)).astype(np.float32)


def flags(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return rng.integers(0, 2, (8, CLASSES)).astype(np.float32)


def distribution(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    y = rng.random((8, CLASSES)) * (rng.random((8, CLASSES)) < 0.7)
    y[:, 0] += 0.1
    return (y / y.sum(1, keepdims=True)).astype(np.float32)


def tensor(values: Any) -> Any:
    return torch.tensor(values, dtype=torch.float64)


def cosine(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return functional.cosine_embedding_loss(y, t, torch.ones(len(y)))


def last_axis(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(y.movedim(-1, 1), t, ignore_index=-1)


class Frames(nn.Module):
    """Scores [N, T, C] of six times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(1, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(x.reshape(-1, 6, 1))))


class TimeMajor(Frames):
    """Log-probabilities [T, N, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).transpose(0, 1).log_softmax(2)


def sequences(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Sequences of up to three labels, repetitions among them, for the blank 0."""
    y = rng.integers(1, CLASSES, (8, 3))
    return np.where(np.arange(3) < rng.integers(0, 4, (8, 1)), y, -1)


def impossible(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Some sequences that six times cannot give."""
    y = rng.integers(1, CLASSES, (8, 5))
    y[::2] = 1
    return y


def ctc(y: torch.Tensor, t: torch.Tensor, **settings: Any) -> torch.Tensor:
    lengths = (t >= 0).sum(1)
    log_p = y.transpose(0, 1).log_softmax(2) if len(y) == len(t) else y
    return functional.ctc_loss(log_p, t.clamp(min=1), torch.full((len(t),), 6), lengths, **settings)


@dataclass
class Case:
    name: str
    theirs: Callable[..., torch.Tensor]
    target: Maker
    settings: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    net: Callable[[], nn.Module] = field(default_factory=dense)


F = functional
SOFT = {"label_smoothing": 0.1}
CASES = [
    Case("cross_entropy", F.cross_entropy, labels()),
    Case("cross_entropy", F.cross_entropy, labels(), SOFT, SOFT),
    Case("cross_entropy", F.cross_entropy, labels(ignore=-100), {"ignore_index": -100}),
    Case("cross_entropy", F.cross_entropy, labels(), {"weight": WEIGHTS}, {"weight": tensor(WEIGHTS)}),
    Case(
        "cross_entropy",
        F.cross_entropy,
        labels(ignore=255),
        {"weight": WEIGHTS, "ignore_index": 255, **SOFT},
        {"weight": tensor(WEIGHTS), "ignore_index": 255, **SOFT},
    ),
    Case("cross_entropy", F.cross_entropy, labels(2, 3), net=Pixels),
    Case(
        "cross_entropy",
        F.cross_entropy,
        labels(2, 3, ignore=2),
        {"weight": WEIGHTS, "ignore_index": 2, **SOFT},
        {"weight": tensor(WEIGHTS), "ignore_index": 2, **SOFT},
        Pixels,
    ),
    Case("cross_entropy", last_axis, labels(3, ignore=-1), {"axis": -1, "ignore_index": -1}, net=Tokens),
    Case(
        "nll", F.nll_loss, labels(), {"weight": WEIGHTS}, {"weight": tensor(WEIGHTS)}, dense(nn.LogSoftmax(1))
    ),
    Case("nll", F.nll_loss, labels(ignore=1), {"ignore_index": 1}, {"ignore_index": 1}),
    Case("nll", F.nll_loss, labels(2, 3), net=Pixels),
    Case("multi_margin", F.multi_margin_loss, labels()),
    Case(
        "multi_margin",
        F.multi_margin_loss,
        labels(),
        {"p": 2, "margin": 0.5, "weight": WEIGHTS},
        {"p": 2, "margin": 0.5, "weight": tensor(WEIGHTS)},
    ),
    Case("mse", F.mse_loss, normal),
    Case("l1", F.l1_loss, normal),
    Case("huber", F.huber_loss, normal),
    Case("huber", F.huber_loss, normal, {"delta": 0.3}, {"delta": 0.3}),
    Case("smooth_l1", F.smooth_l1_loss, normal, {"beta": 0.3}, {"beta": 0.3}),
    Case("smooth_l1", F.smooth_l1_loss, normal, {"beta": 0.0}, {"beta": 0.0}),
    Case("bce_with_logits", F.binary_cross_entropy_with_logits, shares),
    Case(
        "bce_with_logits",
        F.binary_cross_entropy_with_logits,
        flags,
        {"pos_weight": WEIGHTS},
        {"pos_weight": tensor(WEIGHTS)},
    ),
    Case(
        "bce_with_logits",
        F.binary_cross_entropy_with_logits,
        shares,
        {"pos_weight": 3.0},
        {"pos_weight": tensor(3.0)},
    ),
    Case("bce", F.binary_cross_entropy, shares, net=dense(nn.Sigmoid())),
    Case("bce", F.binary_cross_entropy, flags, net=dense(nn.Softmax(1))),
    Case("kl_div", F.kl_div, distribution, net=dense(nn.LogSoftmax(1))),
    Case(
        "kl_div",
        F.kl_div,
        lambda rng: np.log(shares(rng)),
        {"log_target": True, "batchmean": True},
        {"log_target": True, "reduction": "batchmean"},
        dense(nn.LogSoftmax(1)),
    ),
    Case("hinge", lambda y, t: torch.clamp(1 - t * y, min=0).mean(), lambda rng: 2 * flags(rng) - 1),
    Case("cosine", cosine, normal),
    Case("ctc", ctc, sequences, net=Frames),
    Case("ctc", ctc, sequences, {"time_major": True}, net=TimeMajor),
    Case("ctc", ctc, impossible, {"zero_infinity": True}, {"zero_infinity": True}, Frames),
]


def model_of(net: nn.Module) -> Model:
    return oa.convert(net, torch.zeros(2, 6), trainable=True)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{c.name}-{i}" for i, c in enumerate(CASES)])
def test_curve_equals_torch(number: int) -> None:
    """The bound: rounding in float32, 2^-24 relative to the terms' size, 20 steps long, times ten."""
    case = CASES[number]
    rng = np.random.default_rng(number)
    torch.manual_seed(0)
    net = case.net()
    trainer = oa.Trainer(model_of(net), create(case.name, case.settings), SGD(0.3), ep="cpu")
    net.double()
    given = case.given or {k: v for k, v in case.settings.items() if k == "ignore_index"}
    given = {} if case.theirs is last_axis else given
    step = torch.optim.SGD(net.parameters(), 0.3)
    losses = []
    for _ in range(STEPS):
        x, y = rng.normal(size=(8, 6)).astype(np.float32), case.target(rng)
        t = torch.from_numpy(y)
        value = case.theirs(
            net(torch.from_numpy(x).double()), t.double() if t.is_floating_point() else t, **given
        )
        step.zero_grad()
        value.backward()
        step.step()
        losses.append((trainer.step(x, y), value.item()))
    ours, theirs = np.array(losses).T
    print(f"{case.name}: largest difference {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.2f}")
    assert np.ptp(theirs) > 1e-3  # the curve is not flat
    np.testing.assert_allclose(
        ours, theirs, rtol=0, atol=10 * STEPS * 2.0**-24 * max(1, np.abs(theirs).max())
    )
    trained = trainer.model().weights()
    for name, parameter in net.state_dict().items():
        np.testing.assert_allclose(trained[name], parameter.numpy(), rtol=1e-4, atol=1e-5)


CAFFE_S = {"caffe_euclidean", "caffe_sigmoid_cross_entropy"}
"""Compared with a real Caffe, in tests/converters/test_caffe_training.py."""


def test_every_loss_is_in_the_table() -> None:
    assert {name for name in loss} == {case.name for case in CASES} | {"output"} | CAFFE_S


class WithLoss(nn.Module):
    """A model that computes its own loss from x and y."""

    def __init__(self) -> None:
        super().__init__()
        self.body = dense()()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.body(x)
        return scores, functional.mse_loss(scores, y)


def test_the_model_s_own_output_is_a_loss() -> None:
    torch.manual_seed(0)
    net = WithLoss()
    example = (torch.zeros(3, 6), torch.zeros(3, CLASSES))
    model = oa.convert(net, example, trainable=True)
    name = model.output_names()[1]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)).astype(np.float32), rng.normal(size=(40, CLASSES)).astype(np.float32)
    trainer = oa.Trainer(model, Output(name), SGD(0.3), ep="cpu")
    step = torch.optim.SGD(net.parameters(), 0.3)
    for _ in range(5):
        value = net(torch.from_numpy(x), torch.from_numpy(y))[1]
        step.zero_grad()
        value.backward()
        step.step()
        assert trainer.step([x, y]) == pytest.approx(value.item(), rel=1e-5)
    before = trainer.evaluate((x, y)).loss  # data sets feed the second input with their targets
    trainer.fit((x, y), epochs=2, batch_size=8)
    assert trainer.evaluate((x, y)).loss < before
    with pytest.raises(ModelError, match="needs an output of one number"):
        oa.Trainer(model, "output", ep="cpu")
    with pytest.raises(ModelError, match="no output 'cost'; it has"):
        oa.Trainer(model, Output("cost"), ep="cpu")


def test_a_batch_that_is_ignored_whole_changes_nothing() -> None:
    trainer = oa.Trainer(model_of(dense()()), create("cross_entropy", ignore_index=-1), SGD(0.3), ep="cpu")
    start = trainer.model().weights()
    assert trainer.step(np.ones((2, 6), np.float32), np.array([-1, -1])) == 0.0
    for name, value in trainer.model().weights().items():
        np.testing.assert_array_equal(value, start[name])


def test_accuracy_leaves_out_what_is_ignored() -> None:
    net = Pixels()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 6)).astype(np.float32), labels(2, 3, ignore=9)(rng)
    y = np.concatenate([y, y[:2]])
    predicted = net(torch.from_numpy(x)).argmax(1).numpy()
    counted = y != 9
    found = oa.evaluate(model_of(net), (x, y), loss=create("cross_entropy", ignore_index=9), batch_size=100)
    assert found.accuracy == pytest.approx((predicted == y)[counted].mean())
    found = oa.evaluate(model_of(net), (x, y % 4), loss="cross_entropy", batch_size=3)
    assert found.accuracy == pytest.approx((predicted == y % 4).mean())
    tokens, z = Tokens(), rng.integers(0, CLASSES, (10, 3))
    predicted = tokens(torch.from_numpy(x)).argmax(-1).numpy()
    found = oa.evaluate(
        model_of(tokens), (x, z), loss=create("cross_entropy", axis=-1), metrics=["confusion"]
    )
    assert found.accuracy == pytest.approx((predicted == z).mean())
    assert np.trace(found.metrics["confusion"]) == (predicted == z).sum()


def bad_data(name: str, y: Any, net: type[nn.Module] | None = None, **settings: Any) -> Callable[[], Any]:
    x = np.zeros((len(y), 6), np.float32)
    model = model_of((net or dense())())
    return lambda: oa.evaluate(model, (x, np.asarray(y)), loss=create(name, settings), ep="cpu")


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (TrainingError, lambda: create("best"), "unknown loss 'best'; choose one of bce"),
        (TrainingError, lambda: create("mse", delta=1), "loss 'mse' has no delta; it has no settings"),
        (TrainingError, lambda: create("cross_entropy", label_smoothing=2), "must not exceed 1"),
        (TrainingError, lambda: create("cross_entropy", weight="all"), "weight must be one or more numbers"),
        (TrainingError, lambda: create("huber", delta=0.0), "delta must be above 0"),
        (TrainingError, lambda: create("multi_margin", p=3), "p is 1 or 2"),
        (ModelError, bad_data("cross_entropy", [0], weight=(1.0, 2.0)), "2 class weights, the model has 4"),
        (ModelError, bad_data("cross_entropy", [0], axis=2), "or the axis of the classes"),
        (
            DataError,
            bad_data("cross_entropy", [0, 4]),
            "sample 1 has label 4, the model has 4 classes, 0 to 3",
        ),
        (DataError, bad_data("cross_entropy", [-100]), "sample 0 has label -100"),
        (
            DataError,
            bad_data("cross_entropy", [0.5]),
            "no class labels; loss cross_entropy takes one whole number",
        ),
        (DataError, bad_data("nll", np.zeros((2, 3)), Pixels), r"takes \[2, 3\] whole numbers per sample"),
        (DataError, bad_data("ctc", [[1, 0], [1, -1]], Frames), "sample 0 has label 0, labels are below 4"),
        (DataError, bad_data("ctc", [1, 2], Frames), "no class labels; loss ctc takes"),
        (ModelError, bad_data("ctc", [[1, 2]]), r"CTC needs an output of shape \[N, T, classes\]"),
        (DataError, bad_data("huber", np.zeros((2, 3))), "loss huber compares them element by element"),
    ],
)
def test_what_does_not_fit_is_said(error: type[AccelError], make: Callable[[], Any], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_step_without_a_target_is_said() -> None:
    trainer = oa.Trainer(model_of(dense()()), ep="cpu")
    with pytest.raises(TrainingError, match="loss cross_entropy compares with a target"):
        trainer.step(np.zeros((2, 6), np.float32))
