"""The same training on all sides: loss curves of real frameworks on real data, beside torch in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxaccel import models
from onnxaccel.compare.results import Candidate, Settings
from onnxaccel.compare.sources import Asked, Opened, open_source
from onnxaccel.compare.training import Trained, train
from onnxaccel.data import batches
from onnxaccel.graph.model import Model
from onnxaccel.runtime.measure import Limits
from tests.converters.real_caffe import needs_caffe

STEPS = 12
"""Before rounding has grown to where a rectifier or a maximum tips over, in each float32 kernel otherwise."""

DATA = {"mlp": "mnist#0:8000", "cifar_cnn": "cifar10/train"}
HELD_OUT = {"mlp": "mnist#8000:8200", "cifar_cnn": "cifar10/test"}

SOME = ("PyTorch eager", "TensorFlow function", "Caffe", "onnxaccel cpu")
"""Each framework's first way to train; the others compile for long."""


EVERY = (*SOME, "PyTorch compile", "TensorFlow XLA")


def settings(**plan: Any) -> Settings:
    return Settings(2, "fp32", [1], "data", 1, 0.02, 0, {"max_steps": STEPS, "epochs": 2, **plan})


def opened(source: str, data: str, folder: Path, **asked: Any) -> list[Opened]:
    found, several, failures = open_source(source, Asked(data=data, train=True, **asked), folder)
    assert found.failure is None and not failures
    return several


def ran(trained: Trained) -> dict[str, Candidate]:
    for candidate in trained.candidates:
        assert candidate.training is not None and candidate.training.failure is None, candidate
    return {candidate.name: candidate for candidate in trained.candidates}


def in_float64(name: str, data: str, graph: Path, plan: dict[str, Any]) -> list[float]:
    """The loss curve of torch in float64: a loop of its own over the data's own batches."""
    sample = batches(data, Model.load(graph), 1)
    shape = next(iter(sample))[0]
    module = models.build(name, "pytorch", 0, next(iter(shape.values())).shape[1:]).double().train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizer = kind[plan.pop("optimizer", "sgd")](module.parameters(), **plan)
    losses = []
    for epoch in range(2):
        loader = batches(data, Model.load(graph), 64, seed=0, epoch=epoch, loss="cross_entropy")
        with loader.starting_at(0) as rest:
            for _, (feed, target) in zip(range(STEPS // 2), rest, strict=False):
                x = torch.from_numpy(next(iter(feed.values()))).double()
                loss = torch.nn.functional.cross_entropy(module(x), torch.from_numpy(target))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def reference_models(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[Opened]]]:
    yield {
        name: opened(f"models:{name}", f"{shared}/data/{DATA[name]}", tmp_path_factory.mktemp(name))
        for name in DATA
    }


def agree(
    name: str, models_: list[Opened], shared: Path, plan: dict[str, Any], only: Sequence[str] = ()
) -> dict[str, Candidate]:
    """Train on all sides; every loss curve is torch's in float64 but for rounding."""
    data, held_out = (f"{shared}/data/{table[name]}" for table in (DATA, HELD_OUT))
    given = settings(dropout=False, **plan)
    found = ran(train(models_, data, held_out, given, only=only, limits=Limits(300)))
    assert len(found) == len(only or EVERY)
    graph = models_[0].trainable
    assert graph is not None
    exact = in_float64(name, data, graph, dict(plan))
    for side, candidate in found.items():
        assert candidate.training is not None
        apart = np.abs(np.subtract(candidate.training.losses, exact)) / np.abs(exact)
        print(f"{name}, {plan}, {side}: {apart.max():.1e} from torch in float64")
        assert apart.max() < 1e-5, side
        assert candidate.training.difference is not None and candidate.training.difference < 2e-5 * max(exact)
    return found


@needs_caffe
@pytest.mark.parametrize("name", DATA)
def test_loss_curves_agree_across_the_frameworks(
    name: str, reference_models: dict[str, list[Opened]], shared: Path
) -> None:
    found = agree(name, reference_models[name], shared, {"lr": 0.02, "momentum": 0.9}, SOME)
    for side in found.values():
        result = side.training
        assert result is not None
        assert result.accuracy is not None and result.steps_per_second is not None
        assert result.memory and result.startup and result.first_step
        assert result.seconds_to_loss == pytest.approx(STEPS / result.steps_per_second)  # of a falling loss
    accuracies = [side.training.accuracy for side in found.values() if side.training is not None]
    assert max(accuracies) - min(accuracies) <= 0.005  # one sample of 200 on the edge


@needs_caffe
@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(
    "plan",
    [
        {"lr": 0.02, "momentum": 0.9},
        {"lr": 0.02, "momentum": 0.9, "nesterov": True},
        {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.01},
    ],
    ids=["momentum", "nesterov", "decay"],
)
def test_every_way_to_train_agrees(
    name: str, plan: dict[str, Any], reference_models: dict[str, list[Opened]], shared: Path
) -> None:
    agree(name, reference_models[name], shared, plan)
