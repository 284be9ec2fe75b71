"""Models with several inputs, fed by arrays of their names: trained, evaluated, refused where they misfit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel.errors import DataError
from onnxaccel.graph.model import Model

COUNT = 60


class Two(nn.Module):
    """Tokens and numbers, side by side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.numbers = nn.Embedding(11, 8), nn.Linear(5, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.tokens(tokens).mean(1), self.numbers(numbers).relu()], 1))


def data() -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(0)
    x = {"tokens": rng.integers(0, 11, (COUNT, 4)), "numbers": rng.standard_normal((COUNT, 5), np.float32)}
    return x, rng.integers(0, 3, COUNT)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    example = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 5)
    return oa.convert(Two(), example, trainable=True).save(tmp_path_factory.mktemp("two") / "two.onnx")


def test_training_on_named_arrays_equals_torch(model: Path) -> None:
    """The data set's own order, batches of 16 and a shorter one: the same losses and weights."""
    x, y = data()
    trainer = oa.Trainer(model, optimizer=oa.optimizers.SGD(0.1), ep="cpu")
    history = trainer.fit((x, y), (x, y), epochs=2, batch_size=16, steps_per_epoch=4)
    module = Two()
    native = torch.optim.SGD(module.parameters(), 0.1)
    order = np.arange(2 * 4 * 16) % COUNT
    for start in range(0, len(order), 16):
        some = order[start : start + 16]
        native.zero_grad()
        scores = module(*(torch.from_numpy(x[name][some]) for name in ("tokens", "numbers")))
        nn.functional.cross_entropy(scores, torch.from_numpy(y[some])).backward()
        native.step()
    found = trainer.model().weights()
    for name, value in module.named_parameters():
        np.testing.assert_allclose(found[name], value.detach().numpy(), atol=2e-6)
    with torch.no_grad():
        scores = module(*(torch.from_numpy(x[name]) for name in ("tokens", "numbers")))
        loss = nn.functional.cross_entropy(scores, torch.from_numpy(y)).item()
    assert history.epochs[-1].val_loss == pytest.approx(loss, rel=1e-5)
    assert oa.evaluate(trainer.model(), (x, y)).loss == pytest.approx(loss, rel=1e-5)


def test_an_archive_feeds_the_inputs_by_name_or_in_order(model: Path, tmp_path: Path) -> None:
    x, y = data()
    names = Model.load(model).input_names()
    assert names == ["tokens", "numbers"]
    np.savez(tmp_path / "named.npz", y=y, numbers=x["numbers"], tokens=x["tokens"], note=np.zeros(3))
    np.savez(tmp_path / "ordered.npz", x=x["tokens"], x2=x["numbers"], y=y)
    parts = {f"{name}_{part}": array for part in ("train", "test") for name, array in {**x, "y": y}.items()}
    np.savez(tmp_path / "parts.npz", **parts)
    expected = oa.evaluate(model, (x, y))
    for spec in ("named.npz", "ordered.npz", "parts.npz#train", "parts.npz#test"):
        found = oa.evaluate(model, str(tmp_path / spec))
        assert (found.loss, found.accuracy) == (expected.loss, expected.accuracy)
    part = oa.evaluate(model, f"{tmp_path}/named.npz#10:30")
    some = {name: array[10:30] for name, array in x.items()}
    assert part.loss == oa.evaluate(model, (some, y[10:30])).loss


def test_the_command_line_trains_on_it(model: Path, tmp_path: Path) -> None:
    x, y = data()
    np.savez(tmp_path / "d.npz", **x, y=y)
    command = [
        sys.executable,
        "-m",
        "onnxaccel",
        "train",
        str(model),
        "--data",
        f"{tmp_path}/d.npz",
        "--json",
    ]
    done = subprocess.run([*command, "-o", f"{tmp_path}/o.onnx"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    losses = [epoch["loss"] for epoch in json.loads(done.stdout)["epochs"]]
    assert losses[-1] < losses[0]


def test_a_model_with_one_input_takes_its_samples_alone(tmp_path: Path) -> None:
    x, y = data()
    single = oa.convert(nn.Linear(5, 3), torch.zeros(2, 5), trainable=True)
    np.savez(tmp_path / "more.npz", x=x["numbers"], y=y, weight=np.ones(COUNT))
    assert oa.evaluate(single, f"{tmp_path}/more.npz").loss == oa.evaluate(single, (x["numbers"], y)).loss


WRONG = {
    "one array": (lambda x, y: (x["numbers"], y), r"2 inputs \(tokens, numbers\), the data one array"),
    "other names": (
        lambda x, y: ({"tokens": x["tokens"], "more": x["numbers"]}, y),
        "the data tokens, more;",
    ),
    "too few": (lambda x, y: ({"tokens": x["tokens"]}, y), "the data tokens;"),
    "none": (lambda x, y: ({}, y), "there are no samples, x is empty"),
    "lengths": (lambda x, y: ({**x, "numbers": x["numbers"][1:]}, y), "numbers: 59 samples but 60 targets"),
    "shape": (lambda x, y: ({**x, "numbers": x["numbers"][:, 1:]}, y), r"numbers: a sample has shape \[4\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_that_does_not_fit_is_refused(case: str, model: Path) -> None:
    change, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        oa.evaluate(model, change(*data()))
