"""What `fit` measures, chooses by, logs and shows."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import nn

import onnxaccel as oa
from onnxaccel.errors import ModelError, TrainingError
from onnxaccel.graph.model import Model
from onnxaccel.graph.schedules import Cosine
from onnxaccel.runtime.checkpoint import BEST, Checkpoints
from onnxaccel.runtime.history import Epoch, Monitor

TRAIN, VAL = "sklearn:digits#0:300", "sklearn:digits#1500:"


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return oa.convert(module, torch.zeros(2, 64), trainable=True)


def trainer(model: Model, lr: float = 5e-3) -> oa.Trainer:
    return oa.Trainer(model, optimizer=oa.optimizers.AdamW(lr), ep="cpu")


def scores_and_labels(model: Model) -> tuple[Any, Any]:
    from onnxaccel.data import batches
    from onnxaccel.runtime.session import Session

    session = Session(model)
    parts = [(next(iter(session.run(feed).values())), y) for feed, y in batches(VAL, model, 64)]
    return np.concatenate([p for p, _ in parts]), np.concatenate([y for _, y in parts])


def test_metrics_equal_scikit_learn(model: Model) -> None:
    trained = trainer(model)
    trained.fit(TRAIN, epochs=1)
    found = oa.evaluate(trained.model(), VAL, ep="cpu", metrics=["top5", "confusion"])
    scores, labels = scores_and_labels(trained.model())
    assert found.accuracy == pytest.approx(sklearn_metrics.accuracy_score(labels, scores.argmax(1)))
    assert found.metrics["top5"] == pytest.approx(
        sklearn_metrics.top_k_accuracy_score(labels, scores, k=5, labels=np.arange(10))
    )
    np.testing.assert_array_equal(
        found.metrics["confusion"], sklearn_metrics.confusion_matrix(labels, scores.argmax(1))
    )
    during = trained.evaluate(VAL, metrics=["top5"])
    assert during.metrics == {"top5": found.metrics["top5"]}


def test_mean_absolute_error_equals_scikit_learn() -> None:
    torch.manual_seed(0)
    regression = oa.convert(nn.Linear(10, 1), torch.zeros(2, 10), trainable=True)
    found = oa.evaluate(regression, "sklearn:diabetes", ep="cpu", metrics=["mae"])
    from onnxaccel.data import batches
    from onnxaccel.runtime.session import Session

    (feed, y), *_ = batches("sklearn:diabetes", regression, 1000)
    (predicted,) = Session(regression).run(feed).values()
    assert found.metrics["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(y, predicted), rel=1e-6)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [(["best"], "unknown metric 'best'; choose one of confusion, mae, top5"), (["mae"], "class labels")],
)
def test_metrics_that_do_not_fit_are_refused(model: Model, metrics: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        oa.evaluate(model, VAL, ep="cpu", metrics=metrics)


def epochs_of(*losses: float) -> list[Epoch]:
    return [Epoch(0.0, None, loss, -loss, 0.0, {"top5": -loss, "mae": loss}) for loss in losses]


@pytest.mark.parametrize(
    ("settings", "losses", "best", "over"),
    [
        ({}, [], None, False),
        ({}, [3, 2, 2.5], 1, False),
        ({"patience": 1}, [3, 2, 2.5], 1, True),
        ({"patience": 2}, [3, 2, 2.5], 1, False),
        ({"patience": 2}, [3, 2, 2.5, 2.0], 1, True),
        ({"patience": 2, "min_delta": 0.6}, [3, 2.5, 2.45], 0, True),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.4], 2, False),
        ({"quantity": "val_accuracy"}, [3, 1, 2], 1, False),
        ({"quantity": "top5"}, [3, 1, 2], 1, False),
        ({"quantity": "mae"}, [3, 1, 2], 1, False),
    ],
)
def test_the_best_epoch(settings: dict[str, Any], losses: list[float], best: int | None, over: bool) -> None:
    monitor, epochs = Monitor(**settings), epochs_of(*losses)
    assert monitor.best(epochs) == best and monitor.is_over(epochs) is over


def test_what_nothing_measures_is_refused() -> None:
    with pytest.raises(
        TrainingError, match="nothing measures 'f1' to choose by; there is loss, val_accuracy"
    ):
        Monitor("f1").best(epochs_of(1.0))


def test_early_stopping_gives_the_best_weights_also_after_a_resume(model: Model, tmp_path: Path) -> None:
    """A rate that is far too high after a while: the validation loss rises again."""
    fit: dict[str, Any] = {"epochs": 30, "early_stopping": 3}
    stopped = trainer(model, 0.03)
    history = stopped.fit(TRAIN, VAL, **fit)
    losses = [e.val_loss for e in history.epochs]
    best = int(np.argmin(losses))
    assert len(losses) == best + 4 < 30
    assert stopped.evaluate(VAL).loss == pytest.approx(losses[best], rel=1e-6)
    folder = tmp_path / "c"
    trainer(model, 0.03).fit(TRAIN, VAL, epochs=best + 2, checkpoint_folder=folder)
    assert (folder / BEST).exists()
    resumed = trainer(model, 0.03)
    again = resumed.fit(TRAIN, VAL, **fit, checkpoint_folder=folder, resume=True)
    assert [e.val_loss for e in again.epochs] == losses
    for name, value in stopped.model().weights().items():
        np.testing.assert_array_equal(resumed.model().weights()[name], value)
    kept = Checkpoints(folder).best()
    assert kept is not None
    for name in stopped.parameters:
        np.testing.assert_array_equal(kept[name], stopped.model().weights()[name])


def test_tensorboard_reads_what_was_logged(model: Model, tmp_path: Path) -> None:
    logged = trainer(model)
    ticks = []
    history = logged.fit(
        TRAIN,
        VAL,
        epochs=2,
        schedule=Cosine(warmup=3),
        metrics=["top5"],
        logdir=tmp_path / "logs",
        on_tick=ticks.append,
    )
    program = (
        "import json, sys\n"
        "sys.modules['tensorflow'] = None\n"  # TensorBoard's own reader, in its form without TensorFlow
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        f"events = EventAccumulator({str(tmp_path / 'logs')!r}).Reload()\n"
        "tags = events.Tags()['scalars']\n"
        "print(json.dumps({t: [(e.step, e.value) for e in events.Scalars(t)] for t in tags}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    for tag, values in {
        "train/loss": [e.loss for e in history.epochs],
        "train/accuracy": [e.accuracy for e in history.epochs],
        "val/loss": [e.val_loss for e in history.epochs],
        "val/accuracy": [e.val_accuracy for e in history.epochs],
        "val/top5": [e.metrics["top5"] for e in history.epochs],
    }.items():
        assert [step for step, _ in found[tag]] == [5, 10]
        np.testing.assert_allclose([value for _, value in found[tag]], values, rtol=1e-6)
    assert [step for step, _ in found["train/learning_rate"]] == list(range(1, 11))
    np.testing.assert_allclose(
        [value for _, value in found["train/learning_rate"]], [tick.lr for tick in ticks], rtol=1e-6
    )
    assert len(found["train/batch_loss"]) == 10


def test_the_progress_line_is_for_terminals_alone(model: Model, tmp_path: Path) -> None:
    path = model.save(tmp_path / "m.onnx")
    words = ["train", path, "--data", TRAIN, "--epochs", "2", "--ep", "cpu", "-o", tmp_path / "o.onnx"]
    command = [sys.executable, "-m", "onnxaccel", *map(str, words)]
    silent = subprocess.run(command, capture_output=True, text=True, check=True)
    assert silent.stderr == ""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the program's end of the terminal is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).split("epoch ")[-1]
    assert re.search(r"^2/2 .* batch 5/5 loss \d\.\d{4} [\d,]+ samples/s 0:00:00 left", last), last
