"""The same training on all sides: loss curves of real frameworks on real data, beside torch in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxaccel import models
from onnxaccel.compare.results import Candidate, Settings
from onnxaccel.compare.sources import Asked, Opened, open_source
from onnxaccel.compare.training import Trained, caffe_net, curve, jobs, train
from onnxaccel.compare.training.batches import write as write_batches
from onnxaccel.compare.training.curve import Stored
from onnxaccel.compare.training.in_tensorflow import optimizer_of
from onnxaccel.compare.training.plan import Plan
from onnxaccel.data import batches
from onnxaccel.errors import ConversionError, TrainingError
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
    torchs = found["PyTorch eager"].training
    assert torchs is not None
    # as in tests/graph/test_loss_curves.py: what torch's own float32 strays, where that is more
    bound = max(1e-5, float((np.abs(np.subtract(torchs.losses, exact)) / np.abs(exact)).max()))
    for side, candidate in found.items():
        assert candidate.training is not None
        apart = np.abs(np.subtract(candidate.training.losses, exact)) / np.abs(exact)
        print(f"{name}, {plan}, {side}: {apart.max():.1e} from torch in float64")
        assert apart.max() <= bound, side
        assert candidate.training.difference is not None
        assert candidate.training.difference < 2 * bound * max(exact)
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


SAMPLES = {
    "exported program": ("{samples}/pytorch/digit_cnn/model.pt2", "mnist#0:2000", {}),
    "module by factory, batch normalization": (
        "{samples}/pytorch/cifar_resnet20/weights.th",
        "cifar10/train",
        {"factory": "sample_nets:cifar_resnet20"},
    ),
    "Keras 2 file with penalties": (
        "{samples}/tensorflow/tiny_resnet8/model.h5",
        "cifar10/train",
        {"preprocessing": {"scale": 1.0}},
    ),
    "Caffe's LeNet, rates by layer": (
        "{samples}/caffe/lenet/deploy.prototxt,{samples}/caffe/lenet/weights.caffemodel",
        "mnist#0:2000",
        {"preprocessing": {"scale": 0.00390625}},
    ),
}


@needs_caffe
@pytest.mark.slow
@pytest.mark.parametrize("case", SAMPLES.values(), ids=SAMPLES)
def test_models_of_each_framework_train_as_in_it(
    case: tuple[str, str, dict[str, Any]], shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, data, asked = case
    samples = shared / "samples"
    monkeypatch.chdir(samples / "pytorch")  # where the factory is
    several = opened(source.format(samples=samples), f"{shared}/data/{data}", tmp_path, **asked)
    given = settings(lr=1e-3, batch_size=32, dropout=False)
    found = ran(train(several, f"{shared}/data/{data}", None, given, limits=Limits(300)))
    losses = {name: side.training.losses for name, side in found.items() if side.training is not None}
    native = next(iter(losses.values()))
    for side, losses_ in losses.items():
        apart = np.abs(np.subtract(losses_, native)) / np.abs(native)
        print(f"{source}, {side}: {apart[:3].max():.1e} in 3 steps, {apart.max():.1e} in {STEPS}")
        # the third is the first with momentum in it; batch normalization makes more of each rounding
        assert apart[:3].max() < 1e-5, side


@dataclass(frozen=True)
class Refusal:
    """Settings that one side cannot train with, and words of the reason."""

    framework: str
    plan: dict[str, Any]
    words: str


REFUSALS = [
    Refusal("caffe", {"optimizer": "adamw"}, "Caffe has no adamw; compare with sgd or adam"),
    Refusal("caffe", {"loss": "mse"}, "divisor of mse"),
    Refusal("tensorflow", {"weight_decay": 0.1}, "outside of the momentum"),
    Refusal("tensorflow", {"optimizer": "adam", "weight_decay": 0.1}, "compare with adamw"),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case.framework} {case.plan}")
def test_what_a_framework_has_no_formula_for_is_a_reason(case: Refusal, tmp_path: Path) -> None:
    plan = Plan(**{"loss": "cross_entropy", **case.plan})
    with pytest.raises(ConversionError, match=case.words):
        if case.framework == "caffe":
            solver = caffe_net.solver_settings(plan, 0)
            caffe_net.write(tmp_path / "absent", tmp_path, ((1, 1), (1,)), plan, solver)
        else:
            optimizer_of({"optimizer": plan.optimizer, "settings": plan.settings})


WRONG = {
    "no such setting": ({"rate": 0.1}, "training has no rate; it has optimizer, lr"),
    "no such optimizer": ({"optimizer": "lion"}, "unknown optimizer 'lion' in a comparison"),
    "no such loss": ({"loss": "ctc"}, "unknown loss 'ctc' in a comparison"),
    "a negative rate": ({"lr": -1.0}, "lr must not be negative"),
    "no number": ({"momentum": "much"}, "momentum must be a number"),
    "no batch": ({"batch_size": 0}, "batch_size must be a whole number above 0"),
    "half an epoch": ({"epochs": 0.5}, "epochs must be a whole number above 0"),
}


@pytest.mark.parametrize(("given", "words"), WRONG.values(), ids=WRONG)
def test_settings_that_make_no_sense(given: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        Plan.of(given, (np.zeros((2, 3), np.float32), np.zeros(2, np.int64)))


def test_a_plan_takes_its_loss_from_the_data() -> None:
    x = np.zeros((2, 3), np.float32)
    assert Plan.of({}, (x, np.zeros(2, np.int64))).loss == "cross_entropy"
    assert Plan.of({}, (x, np.zeros((2, 4), np.float32))).loss == "mse"


def test_data_that_does_not_fit_is_every_sides_reason(reference_models: dict[str, list[Opened]]) -> None:
    wrong = np.zeros((4, 5), np.float32), np.zeros(4, np.int64)
    trained = train(reference_models["mlp"], wrong, None, settings())
    assert {candidate.name for candidate in trained.candidates} == set(EVERY)
    for candidate in trained.candidates:
        assert candidate.training is not None
        assert "takes [784]" in (candidate.training.failure or "")


def test_a_side_that_fails_leaves_the_others(reference_models: dict[str, list[Opened]], shared: Path) -> None:
    data = f"{shared}/data/{DATA['mlp']}"
    plan = settings(optimizer="adamw", weight_decay=0.0)
    trained = train(reference_models["mlp"], data, None, plan, only=("Caffe", "onnxaccel cpu"))
    caffe, ours = (candidate.training for candidate in trained.candidates)
    assert caffe is not None and ours is not None
    assert "Caffe has no adamw" in (caffe.failure or "")
    assert ours.failure is None and ours.difference == 0.0 and trained.target_loss is not None


def test_a_process_started_anew_takes_its_turn_and_does_not_train_again(
    reference_models: dict[str, list[Opened]], shared: Path, tmp_path: Path
) -> None:
    model, plan = reference_models["mlp"][0], Plan(loss="cross_entropy", epochs=2, max_steps=4)
    assert model.trainable is not None
    data = f"{shared}/data/{DATA['mlp']}"
    written = write_batches(Model.load(model.trainable), plan, data, None, 0, tmp_path)
    setup = dict(jobs.onnx(model, "cpu", jobs.Common(plan, written, 2, tmp_path)).setup)
    step, facts = curve.start(setup)
    assert len(facts["losses"]) == 4 and step() < facts["losses"][0]
    step, facts = curve.start(setup)
    assert not facts and step() == pytest.approx(np.log(10), rel=0.1)  # the loss of untrained weights


def test_a_loss_that_is_no_number_is_a_reason(
    reference_models: dict[str, list[Opened]], shared: Path
) -> None:
    data = f"{shared}/data/{DATA['mlp']}"
    trained = train(reference_models["mlp"], data, None, settings(lr=1e20), only=("onnxaccel cpu",))
    (ours,) = (candidate.training for candidate in trained.candidates)
    assert ours is not None and "lower the learning rate" in (ours.failure or "")
    assert trained.target_loss is None


def test_batches_are_the_loaders_own(
    reference_models: dict[str, list[Opened]], shared: Path, tmp_path: Path
) -> None:
    graph = reference_models["mlp"][0].trainable
    assert graph is not None
    model, data = Model.load(graph), f"{shared}/data/{DATA['mlp']}"
    plan = Plan(loss="cross_entropy", batch_size=64, epochs=2, max_steps=6)
    shared_batches = write_batches(model, plan, data, f"{shared}/data/mnist#8000:8100", 3, tmp_path)
    x, y = Stored(str(shared_batches.x)), Stored(str(shared_batches.y))
    assert len(x) == len(y) == 6 and shared_batches.per_epoch == 3
    for epoch in range(2):
        loader = batches(data, model, 64, seed=3, epoch=epoch, loss="cross_entropy")
        with loader.starting_at(0) as rest:
            for step, (feed, target) in zip(range(3), rest, strict=False):
                np.testing.assert_array_equal(x[3 * epoch + step], next(iter(feed.values())))
                np.testing.assert_array_equal(y[3 * epoch + step], target)
    assert shared_batches.held_out is not None
    assert [len(Stored(str(path))) for path in shared_batches.held_out] == [100, 100]
