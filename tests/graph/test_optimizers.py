"""Every optimizer equals torch's, or its paper's, loss by loss; groups of parameters go their own ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.errors import TrainingError
from onnxaccel.graph.model import Model
from onnxaccel.graph.optimizers import NO_DECAY_ON_BIAS_AND_NORM, Group, Optimizer, create, optimizer
from onnxaccel.graph.parameters import role_of, trainable
from onnxaccel.graph.training import training_step
from tests.graph.test_training import real_batches, torch_curve

Native = Callable[[Any], torch.optim.Optimizer]


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023, line by line."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            (b1, b2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                c = b1 * m + (1 - b1) * p.grad
                p.copy_(p - lr * (torch.sign(c) + decay * p))
                m.copy_(b2 * m + (1 - b2) * p.grad)


class LAMB(torch.optim.Optimizer):
    """Algorithm 2 of You et al. 2020, line by line, with phi the identity."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        b1, b2, eps = 0.9, 0.999, 1e-6
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                t = state["t"] = state.get("t", 0) + 1
                m, v = state.get("m", torch.zeros_like(p)), state.get("v", torch.zeros_like(p))
                state["m"] = m = b1 * m + (1 - b1) * p.grad
                state["v"] = v = b2 * v + (1 - b2) * p.grad**2
                r = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
                u = r + group["weight_decay"] * p
                ratio = p.norm() / u.norm() if p.norm() > 0 and u.norm() > 0 else 1.0
                p.copy_(p - group["lr"] * ratio * u)


def native(kind: type[torch.optim.Optimizer], **settings: Any) -> Native:
    return lambda parameters: kind(parameters, **settings)


SETTINGS: list[tuple[str, Any, dict[str, Any]]] = [
    ("sgd", torch.optim.SGD, {"lr": 0.05}),
    ("sgd", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 1e-2}),
    ("sgd", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    ("adam", torch.optim.Adam, {"lr": 1e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 1e-2}),
    ("adam", torch.optim.Adam, {"lr": 1e-2, "betas": (0.9, 0.6), "amsgrad": True}),
    ("adamw", torch.optim.AdamW, {"lr": 1e-2, "betas": (0.9, 0.6), "amsgrad": True, "weight_decay": 0.1}),
    ("nadam", torch.optim.NAdam, {"lr": 2e-3}),
    ("nadam", torch.optim.NAdam, {"lr": 2e-3, "momentum_decay": 0.0, "weight_decay": 1e-2}),
    (
        "nadam",
        torch.optim.NAdam,
        {"lr": 2e-3, "momentum_decay": 0.5, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    ("radam", torch.optim.RAdam, {"lr": 1e-3}),
    ("radam", torch.optim.RAdam, {"lr": 1e-3, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("radam", torch.optim.RAdam, {"lr": 0.1, "betas": (0.9, 0.5)}),  # never rectified
    ("rmsprop", torch.optim.RMSprop, {"lr": 1e-3}),
    ("rmsprop", torch.optim.RMSprop, {"lr": 1e-3, "alpha": 0.9, "centered": True, "weight_decay": 1e-2}),
    ("rmsprop", torch.optim.RMSprop, {"lr": 1e-4, "momentum": 0.9, "centered": True, "eps": 1e-3}),
    ("adagrad", torch.optim.Adagrad, {"lr": 1e-2}),
    (
        "adagrad",
        torch.optim.Adagrad,
        {"lr": 1e-2, "lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 1e-2},
    ),
    ("adadelta", torch.optim.Adadelta, {"lr": 1.0}),
    ("adadelta", torch.optim.Adadelta, {"lr": 2.0, "rho": 0.8, "eps": 1e-4, "weight_decay": 1e-2}),
    ("lion", Lion, {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.1}),
    ("lamb", LAMB, {"lr": 1e-2, "weight_decay": 0.01}),
]
IDS = [f"{name}-{number}" for number, (name, _, _) in enumerate(SETTINGS)]
OF_TORCH = sorted(
    {(name, kind) for name, kind, _ in SETTINGS if kind.__module__.startswith("torch")}, key=str
)


@pytest.fixture(scope="module")
def data(shared: Path) -> list[tuple[Any, Any]]:
    return real_batches(str(shared / "data/mnist"), (784,))


@pytest.fixture(scope="module")
def model(data: Any) -> Model:
    return oa.convert(models.build("mlp", "pytorch"), torch.from_numpy(data[0][0]), trainable=True)


def follows(model: Model, data: Any, ours: Optimizer, theirs: Native) -> None:
    """Our float32 curve is at most 10 times as far from torch's float64 curve as torch's float32 curve is."""
    trainer = oa.Trainer(model, optimizer=ours, ep="cpu")
    curve = np.array([trainer.step(x, y) for x, y in data])
    exact = torch_curve(models.build("mlp", "pytorch").double(), theirs, data)
    single = torch_curve(models.build("mlp", "pytorch"), theirs, data)
    difference, stray = float(np.abs(curve - exact).max()), float(np.abs(single - exact).max())
    print(f"{ours}: largest difference of the loss {difference:.1e}; of torch in float32 {stray:.1e}")
    assert curve[-1] != pytest.approx(curve[0], rel=1e-2)  # it has moved
    assert difference < 10 * stray


@pytest.mark.parametrize(("name", "kind", "settings"), SETTINGS, ids=IDS)
def test_curve_equals_torch(name: str, kind: Any, settings: dict[str, Any], model: Model, data: Any) -> None:
    follows(model, data, create(name, settings), native(kind, **settings))


def test_every_optimizer_is_in_the_table() -> None:
    assert {name for name in optimizer if not name.startswith("caffe")} == {row[0] for row in SETTINGS}


@pytest.mark.parametrize(("name", "kind"), OF_TORCH)
def test_defaults_are_torch_s(name: str, kind: Any) -> None:
    theirs = kind([torch.zeros(1)]).defaults
    for setting, value in vars(optimizer.get(name)()).items():  # type: ignore[misc]
        if setting in theirs and not (name == "sgd" and setting == "lr"):
            assert value == theirs[setting], setting


def test_groups_follow_torch_s_parameter_groups(model: Model, data: Any) -> None:
    """Another rate for one layer, another decay for another, another momentum for a third, none on biases."""
    groups = (
        *NO_DECAY_ON_BIAS_AND_NORM,
        ("fc1.*", {"lr_mult": 0.1}),
        ("fc2.weight", {"lr": 0.02, "momentum": 0.5}),
        Group.of("fc3.bias", momentum=0.0, weight_decay=0.2),
    )
    ours = create("sgd", lr=0.05, momentum=0.9, weight_decay=0.1, groups=groups)

    def theirs(parameters: Any) -> torch.optim.Optimizer:
        w1, b1, w2, b2, w3, b3 = parameters
        return torch.optim.SGD(
            [
                {"params": [w1], "lr": 0.005},
                {"params": [b1], "lr": 0.005, "weight_decay": 0.0},
                {"params": [w2], "lr": 0.02, "momentum": 0.5},
                {"params": [b2], "weight_decay": 0.0},
                {"params": [w3]},
                {"params": [b3], "momentum": 0.0, "weight_decay": 0.2},
            ],
            lr=0.05,
            momentum=0.9,
            weight_decay=0.1,
        )

    follows(model, data, ours, theirs)
    names = set(training_step(model, "cross_entropy", ours).carried)
    assert "fc2.bias/momentum_buffer" in names and "fc3.bias/momentum_buffer" not in names


def test_parameters_of_equal_settings_get_equal_optimizers() -> None:
    base = create("adamw", groups=[("*.bias", {"weight_decay": 0})])
    assert base.for_parameter("a.weight") == base.for_parameter("b.weight") == (create("adamw"), 1.0)
    assert base.for_parameter("a.bias") == (create("adamw", weight_decay=0), 1.0)


def test_roles() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.batch = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.group, self.layer = nn.GroupNorm(2, 4), nn.LayerNorm([4, 6, 6])
            self.rnn, self.head = nn.LSTM(36, 5, batch_first=True), nn.Linear(20, 1)
            self.shift = nn.Parameter(torch.ones(1, 4, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(self.group(self.batch(self.conv(x)))) + self.shift
            return self.head(self.rnn(x.flatten(2))[0].flatten(1))

    found = oa.convert(Net(), torch.randn(2, 3, 8, 8), trainable=True)
    roles = {p.name: role_of(p) for p in trainable(found)}
    print(roles)
    norms = {f"{n}.{s}" for n in ("batch", "group", "layer") for s in ("weight", "bias")}
    assert {n for n in roles if roles[n] == "norm"} | {n for n in norms if roles[n] == "bias"} == norms
    assert {n for n, role in roles.items() if role is None} == {
        n for n in roles if n in ("conv.weight", "head.weight") or ("rnn" in n and "weight" in n)
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create("best"), "unknown optimizer 'best'; choose one of adadelta"),
        (lambda: create("sgd", betas=(0.9, 0.9)), "optimizer 'sgd' has no betas; it has lr, groups"),
        (lambda: create("adam", betas=0.9), "Adam: betas must be 2 numbers, it is 0.9"),
        (lambda: create("adam", betas=(0.9, 1.0)), "Adam: betas must stay below 1"),
        (lambda: create("adam", lr=-1), "Adam: lr must not be negative"),
        (lambda: create("adam", lr=float("nan")), "Adam: lr must not be negative"),
        (lambda: create("adam", amsgrad=1), "Adam: amsgrad must be true or false"),
        (lambda: create("sgd", momentum="high"), "SGD: momentum must be a number"),
        (lambda: create("sgd", nesterov=True), "nesterov needs a momentum"),
        (
            lambda: create("sgd", groups=[("*", {"beta": 1})]),
            r"'\*': SGD has no beta; it has dampening",
        ),
        (
            lambda: create("sgd", groups=[("*", {"momentum": -1})]),
            r"'\*': SGD: momentum must not be neg",
        ),
        (lambda: create("sgd", groups=[("*", {"lr_mult": "x"})]), r"group '\*': lr_mult must be a number"),
        (lambda: create("sgd", groups=[("*", {"lr": 1, "lr_mult": 1})]), r"group '\*': give lr_mult alone"),
    ],
)
def test_bad_settings_are_said(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        make()


def test_a_pattern_that_matches_nothing_is_said(model: Model) -> None:
    with pytest.raises(TrainingError, match=r"'fc9\.\*' matches no parameter; there are fc1.weight"):
        oa.Trainer(model, optimizer=create("sgd", groups=[("fc9.*", {"lr_mult": 0})]), ep="cpu")


@pytest.mark.parametrize(
    ("settings", "inside"),
    [
        ({}, 3),
        ({"weight_decay": 1e-2}, 3),
        ({"momentum": 0.9}, 3),
        ({"momentum": 0.9, "weight_decay": 1e-2}, 3),
        ({"momentum": 0.9, "nesterov": True}, 0),
    ],
)
def test_sgd_writes_into_the_products_of_dense_layers(settings: dict[str, Any], inside: int) -> None:
    """The updates themselves are compared with torch above; this is about where they are written."""
    module = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 40))
    model = oa.convert(module, torch.zeros(2, 40), trainable=True)
    step = training_step(model, "mse", create("sgd", settings))
    products = [n for n in step.model.graph if n.op_type == "Gemm" and n.name and n.name.startswith("step")]
    assert sum(len(n.inputs) == 3 for n in products) == inside
