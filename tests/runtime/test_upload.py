"""Batches in buffers of their own, as on a GPU: the same steps, addresses that stay, the next on its way."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
import pytest
import torch

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.errors import ModelError, TrainingError
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.model import Model
from onnxaccel.graph.optimizers import AdamW
from onnxaccel.graph.recipe import Recipe
from onnxaccel.graph.training import TrainingStep, training_step
from onnxaccel.runtime import engines, stepper
from onnxaccel.runtime.providers import Provider, resolve
from onnxaccel.runtime.session import Session
from onnxaccel.runtime.stepper import GRAPHS, Stepper
from onnxaccel.runtime.upload import Placed, Uploads

SIZES = (8, 8, 8, 3, 8, 8, 3, 8, 8, 8)


@functools.lru_cache
def model() -> Model:
    module = models.build("mlp", "pytorch", input_shape=(16,))
    return oa.convert(module, torch.zeros(2, 16), trainable=True)


def step(**settings: Any) -> TrainingStep:
    return training_step(model(), "cross_entropy", AdamW(1e-2), Recipe(**settings))


def data(sizes: tuple[int, ...] = SIZES) -> list[tuple[dict[str, Any], Any]]:
    rng = np.random.default_rng(0)
    (name,) = model().input_names()
    return [({name: rng.standard_normal((n, 16), np.float32)}, rng.integers(0, 10, n)) for n in sizes]


def unchanged(y: Any) -> Any:
    return y


def losses(trained: Stepper, accumulate: int = 1) -> list[float]:
    found = []
    for number, (feed, target) in enumerate(trained.ahead(data(), unchanged)):
        first, last = number % accumulate == 0, number % accumulate == accumulate - 1
        found.append(trained.run(feed, target, 1e-2, first, last)[0])
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_from_buffers_that_stay_are_the_same_steps(accumulate: int) -> None:
    plain, kept = (
        Stepper(step(accumulate=accumulate), resolve("cpu"), uploads=uploads) for uploads in (False, True)
    )
    assert losses(kept, accumulate) == losses(plain, accumulate)
    for name, value in plain.state().items():
        np.testing.assert_array_equal(kept.state()[name], value)
    ((feed, target),) = data((5,))  # a batch that was not announced
    assert kept.run(feed, target, 1e-2)[0] == plain.run(feed, target, 1e-2)[0]


def test_a_cuda_graph_belongs_to_one_set_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU takes the run option and ignores it; what CUDA would replay is checked by its addresses."""
    monkeypatch.setattr(Provider, "captures", property(lambda self: True))
    trained = Stepper(step(), resolve("cpu"), uploads=True)
    seen: dict[str, tuple[int, ...]] = {}
    for feed, target in trained.ahead(data((8,) * 6 + (3,) * 2 + (8,) * 7), unchanged):
        assert isinstance(feed, Placed)
        bound = trained._bound(0, feed.place)
        assert bound.options is not None
        before, after = (trained._buffers[n] for n in (trained._current[0], 1 - trained._current[0]))
        values = [*feed.place.values.values(), *before.values(), *after.values()]
        addresses = tuple(value.data_ptr() for value in values)
        number = bound.options.get_run_config_entry("gpu_graph_id")
        assert seen.setdefault(number, addresses) == addresses
        trained.run(feed, target, 1e-2)
        assert bound.captured
    assert len(seen) == len(set(seen.values())) == 4  # two by two: places and buffers go in step
    assert "-1" not in seen and "0" not in seen


def test_batches_of_many_shapes_are_not_captured_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Provider, "captures", property(lambda self: True))
    trained = Stepper(step(), resolve("cpu"), uploads=True)
    for feed, target in data(tuple(range(1, GRAPHS + 5))):
        trained.run(feed, target, 1e-2)
    numbers = [
        b.options.get_run_config_entry("gpu_graph_id") for b in trained._bindings.values() if b.options
    ]
    assert numbers == [*(str(n + 1) for n in range(GRAPHS)), *["-1"] * 4]


def test_the_next_batch_is_written_while_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, written = Uploads("cpu", 0), [threading.Event() for _ in SIZES]
    write = uploads.write

    def noted(arrays: Any, turn: int = 0) -> Any:
        place = write(arrays, turn)
        next(event for event in written if not event.is_set()).set()
        return place

    monkeypatch.setattr(uploads, "write", noted)
    for number, (feed, _) in enumerate(uploads.ahead(data(), unchanged)):
        assert number + 1 == len(SIZES) or written[number + 1].wait(10)
        for name, array in feed.items():  # and leaves the one in use as it is
            assert isinstance(feed, Placed)
            np.testing.assert_array_equal(feed.place.values[name].numpy(), array)


def test_what_is_wrong_with_a_batch_is_said_when_its_turn_comes() -> None:
    def check(y: Any) -> Any:
        if len(y) == 3:
            raise TrainingError("a label is out of range")
        return y

    batches = iter(Uploads("cpu", 0).ahead(data(), check))
    assert [len(next(batches)[1]) for _ in range(3)] == [8, 8, 8]
    with pytest.raises(TrainingError, match="out of range"):
        next(batches)


def test_a_training_of_epochs_from_buffers_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    arrays = rng.standard_normal((50, 16), np.float32), rng.integers(0, 10, 50)
    found = []
    for uploads in (False, True):
        monkeypatch.setattr(engines, "Stepper", functools.partial(Stepper, uploads=uploads))
        trainer = oa.Trainer(model(), ep="cpu")
        history = trainer.fit(arrays, arrays, epochs=3, batch_size=16)
        found.append((history.epochs[-1].val_loss, trainer.model().weights()))
    (loss, weights), (other, others) = found
    assert loss == other
    for name, value in weights.items():
        np.testing.assert_array_equal(others[name], value)


def test_numbers_drawn_anew_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph would repeat them."""
    monkeypatch.setattr(Provider, "captures", property(lambda self: True))
    graph = model().copy()
    assert stepper._open(graph, resolve("cpu"), 0, True)[1] is True
    drawn = Builder(graph.graph).RandomNormalLike(graph.inputs[0])
    graph.graph.outputs.append(drawn)
    assert stepper._open(graph, resolve("cpu"), 0, True)[1] is False


def test_a_graph_that_cannot_be_captured_runs_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def session(*arguments: Any, capture: bool = False) -> Session:
        if capture:
            raise ModelError("all compute graph nodes have not been partitioned to CUDAExecutionProvider")
        return Session(*arguments)

    monkeypatch.setattr(Provider, "captures", property(lambda self: True))
    monkeypatch.setattr(stepper, "Session", session)
    assert stepper._open(model(), resolve("cpu"), 0, True)[1] is False
    assert "not captured as a CUDA graph: all compute graph nodes" in caplog.text
