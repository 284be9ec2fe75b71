"""The command line as users run it: in processes of its own, by exit status and by what it prints."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.graph.model import Model

DIGITS = "sklearn:digits"


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxaccel", *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def document(*arguments: object) -> Any:
    """The one JSON document on standard output of a command that must succeed."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trainable MLP for 8x8 digits."""
    path = tmp_path_factory.mktemp("mlp") / "mlp.onnx"
    module = models.build("mlp", "pytorch", input_shape=(64,))
    oa.convert(module, torch.zeros(2, 64), trainable=True).save(path)
    return path


def test_train_evaluate_predict_report_what_they_promise(mlp: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained.onnx"
    data, held_out = f"{DIGITS}#0:1500", f"{DIGITS}#1500:"
    trained = document(
        "train", mlp, "--data", data, "--val", held_out, "--lr", 5e-3, "-o", out, "--ep", "cpu"
    )
    assert {"epochs", "steps", "samples_per_second", "provider", "engine"} <= set(trained)
    assert trained["steps"] == 5 * 24 and trained["provider"] == "cpu" and trained["engine"] == "graph"
    first, *_, last = trained["epochs"]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "seconds"} == set(first)
    assert last["loss"] < first["loss"] / 2
    found = document("evaluate", out, "--data", held_out)
    assert set(found) == {"loss", "accuracy", "samples", "samples_per_second", "provider"}
    assert found["samples"] == 297
    assert found["accuracy"] == pytest.approx(last["val_accuracy"])
    assert found["loss"] == pytest.approx(last["val_loss"], rel=1e-5)
    (prediction,) = document("predict", out, f"{DIGITS}#0:1")
    assert prediction["top"][0][0] == 0  # the first digit is a 0
    assert len(prediction["values"]) == 10


def test_settings_reach_the_training(mlp: Path, tmp_path: Path) -> None:
    """What the command line says is what the same settings in Python give, bit for bit."""
    out = tmp_path / "trained.onnx"
    options = [
        "--optimizer-option",
        "betas=0.9,0.98,amsgrad=true",
        "--weight-decay",
        0.1,
        "--no-decay-bias-norm",
    ]
    group = ["--group", "fc2.*:lr_mult=0.5,betas=0.8,0.9", "--loss-option", "label_smoothing=0.1"]
    group += ["--clip-norm", 0.5, "--accumulate", 2, "--ema", 0.9, "--precision", "bf16"]
    document("train", mlp, "--data", DIGITS, "--epochs", 1, *options, *group, "-o", out, "--ep", "cpu")
    groups = [
        *oa.optimizers.NO_DECAY_ON_BIAS_AND_NORM,
        ("fc2.*", {"lr_mult": 0.5, "betas": (0.8, 0.9)}),
    ]
    optimizer = oa.optimizers.AdamW(betas=(0.9, 0.98), amsgrad=True, weight_decay=0.1, groups=groups)
    loss = oa.losses.CrossEntropy(label_smoothing=0.1)
    recipe: dict[str, Any] = {"clip_norm": 0.5, "accumulate": 2, "ema": 0.9, "precision": "bf16"}
    trainer = oa.Trainer(mlp, loss, optimizer, ep="cpu", **recipe)
    trainer.fit(DIGITS, epochs=1)
    found = Model.load(out).weights()
    for name, value in trainer.model().weights().items():
        np.testing.assert_array_equal(found[name], value)


def test_convert_reports_what_it_promises(tmp_path: Path, shared: Path) -> None:
    out = tmp_path / "a.onnx"
    source = shared / "samples/tensorflow/kws_ds_cnn_s/model.pb"
    found = document("convert", source, "--inputs", "Mfcc:0", "-o", out)
    wanted = {"output", "source_format", "inputs", "outputs", "max_relative_error", "opset", "operators"}
    assert wanted <= set(found)
    assert found["max_relative_error"] <= 1e-4 and found["opset"] == 18 and found["output"] == str(out)
    assert Model.load(out).metadata.max_relative_error == found["max_relative_error"]


def test_gradient_inspect_models_and_doctor(mlp: Path, tmp_path: Path) -> None:
    found = document("gradient", mlp, "-o", tmp_path / "g.onnx", "--wrt", "parameters")
    assert [o["name"] for o in found["outputs"]][1:] == [
        f"{n}_grad" for n in Model.load(mlp).metadata.trainable or ()
    ]
    inspected = document("inspect", mlp)
    assert inspected["parameter_count"] == 64 * 64 + 64 + 64 * 128 + 128 + 128 * 10 + 10
    assert inspected["flops"] == 2 * (64 * 64 + 64 * 128 + 128 * 10)
    assert inspected["untrainable"] == {}
    assert {m["name"] for m in document("models", "list")} >= {"mlp", "cifar_cnn"}
    doctor = document("doctor")
    assert {p["name"]: p["usable"] for p in doctor["providers"]}["cpu"] is True
    for state in doctor["providers"]:
        assert state["usable"] or state["missing"]
    for verb in ("inspect", "doctor"):  # and the tables for people print
        assert run(verb, *([mlp] if verb == "inspect" else [])).returncode == 0


def _truncated(tmp: Path, mlp: Path) -> list[object]:
    path = tmp / "short.onnx"
    path.write_bytes(mlp.read_bytes()[:500])
    return ["evaluate", path, "--data", DIGITS]


def _foreign(tmp: Path, mlp: Path) -> list[object]:
    path = tmp / "model.pb"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return ["convert", path]


def _read_only(tmp: Path, mlp: Path) -> list[object]:
    return ["train", mlp, "--data", DIGITS, "-o", "/proc/trained.onnx"]


BAD: dict[str, tuple[Any, str]] = {
    "truncated model": (_truncated, "short.onnx: not a readable ONNX model"),
    "no model": (
        lambda tmp, mlp: ["evaluate", tmp / "none.onnx", "--data", DIGITS],
        "none.onnx: no such file",
    ),
    "random bytes": (_foreign, "model.pb: of no model format"),
    "no data": (lambda tmp, mlp: ["train", mlp, "--data", tmp / "none"], "none: no such file or folder"),
    "empty data": (lambda tmp, mlp: ["train", mlp, "--data", f"{DIGITS}#5:5"], "empty"),
    "wrong shape": (lambda tmp, mlp: ["train", mlp, "--data", "sklearn:wine"], "takes"),
    "unwritable": (_read_only, "/proc/trained.onnx: cannot be written"),
    "no folder": (lambda tmp, mlp: ["gradient", mlp, "-o", tmp / "a/b.onnx"], "does not exist"),
    "unknown optimizer": (
        lambda tmp, mlp: ["train", mlp, "--data", DIGITS, "--optimizer", "best"],
        "unknown optimizer 'best'; choose one of",
    ),
    "unknown loss": (
        lambda tmp, mlp: ["train", mlp, "--data", DIGITS, "--loss", "best"],
        "unknown loss 'best'",
    ),
    "no gpu": (
        lambda tmp, mlp: ["train", mlp, "--data", DIGITS, "--ep", "cuda"],
        r"execution provider 'cuda' is not usable here: .*pip",
    ),
    "unknown provider": (
        lambda tmp, mlp: ["evaluate", mlp, "--data", DIGITS, "--ep", "abacus"],
        "unknown execution provider 'abacus'",
    ),
    "unknown setting": (
        lambda tmp, mlp: ["train", mlp, "--data", DIGITS, "--optimizer-option", "beta=0.9"],
        "optimizer 'adamw' has no beta; it has lr",
    ),
    "group of nothing": (
        lambda tmp, mlp: ["train", mlp, "--data", DIGITS, "--group", "fc9.*:lr_mult=2"],
        r"group 'fc9\.\*' matches no parameter",
    ),
    "nothing to resume": (
        lambda tmp, mlp: ["train", mlp, "--data", DIGITS, "--checkpoint", tmp / "c", "--resume"],
        "no checkpoint in it",
    ),
    "unknown schedule": (
        lambda tmp, mlp: ["train", mlp, "--data", DIGITS, "--schedule", "best"],
        "unknown schedule 'best'; choose one of constant, cosine",
    ),
    "half a schedule": (
        lambda tmp, mlp: ["train", mlp, "--data", DIGITS, "--schedule", "step"],
        "schedule 'step' needs step_size; give it with --schedule-option step_size=",
    ),
    "nothing to freeze": (
        lambda tmp, mlp: ["train", mlp, "--data", DIGITS, "--freeze", "encoder.*"],
        r"--freeze 'encoder.\*' matches no parameter",
    ),
    "no metric": (
        lambda tmp, mlp: ["evaluate", mlp, "--data", DIGITS, "--metrics", "top5,best"],
        "unknown metric 'best'; choose one of confusion, mae, top5",
    ),
    "not finite": (
        lambda tmp, mlp: ["train", mlp, "--data", DIGITS, "--optimizer", "sgd", "--lr", "1e30"],
        r"the loss became (nan|inf) at step \d+; lower the learning rate.* First not finite: (?!not repr)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, mlp: Path, tmp_path: Path) -> None:
    make, message = BAD[case]
    arguments = make(tmp_path, mlp)
    before = sorted(tmp_path.rglob("*"))
    model_folder = sorted(mlp.parent.iterdir())
    done = run(*arguments, cwd=tmp_path)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1, done.stderr
    assert len(errors) == 1 and "Traceback" not in done.stderr
    assert re.search(message, errors[0]), errors[0]
    assert sorted(tmp_path.rglob("*")) == before and sorted(mlp.parent.iterdir()) == model_folder
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["frobnicate"],
        ["convert", "x", "--opset", "9"],
        ["train", "x", "--data", DIGITS, "--group", "lr=1"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


def test_debug_shows_where(tmp_path: Path) -> None:
    assert "Traceback" in run("inspect", tmp_path / "none.onnx", "--debug").stderr


def test_fine_tuning_on_the_command_line(mlp: Path, tmp_path: Path) -> None:
    """A new head for three classes on a frozen body, stopped early, the best weights exported."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 64)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=(x[:, :3] * 3).argmax(1))
    words = f"--val {tmp_path}/d.npz#300: --num-classes 3 --freeze fc1.* --metrics top5,confusion --keep 1"
    schedule = "--schedule one_cycle --schedule-option pct_start=0.2,div_factor=10 --warmup 2 --lr 0.02"
    stop = (
        f"--epochs 40 --early-stopping 3 --min-delta 0.001 --checkpoint {tmp_path}/c --logdir {tmp_path}/logs"
    )
    out = tmp_path / "tuned.onnx"
    arguments = [*words.split(), *schedule.split(), *stop.split(), "--logdir", tmp_path / "logs"]
    found = document("train", mlp, "--data", f"{tmp_path}/d.npz#0:300", *arguments, "-o", out, "--ep", "cpu")
    losses = [epoch["val_loss"] for epoch in found["epochs"]]
    assert 4 <= len(losses) < 40
    best = found["epochs"][losses.index(min(losses))]
    assert best["metrics"]["top5"] == 1 and np.sum(best["metrics"]["confusion"]) == 100
    tuned = document("evaluate", out, "--data", f"{tmp_path}/d.npz#300:", "--metrics", "confusion")
    assert np.trace(tuned["metrics"]["confusion"]) == round(tuned["accuracy"] * 100)
    assert abs(tuned["loss"] - min(losses)) < 0.001 + 1e-6
    before, after = Model.load(mlp).weights(), Model.load(out).weights()
    assert after["fc3.weight"].shape == (3, 128)
    assert np.array_equal(before["fc1.weight"], after["fc1.weight"])
    assert not np.array_equal(before["fc2.weight"], after["fc2.weight"])
    assert len(list((tmp_path / "c").glob("step-*"))) == 1 and list((tmp_path / "logs").glob("events*"))


def test_interrupt_saves_and_resume_ends_with_the_same_weights(mlp: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle, then --resume: bit for bit what an uninterrupted run gives."""
    settings = [
        "--data",
        DIGITS,
        "--epochs",
        "300",
        "--optimizer",
        "adamw",
        "--batch-size",
        "16",
        "--ep",
        "cpu",
    ]
    whole, resumed = tmp_path / "whole.onnx", tmp_path / "resumed.onnx"
    assert run("train", mlp, *settings, "-o", whole).returncode == 0
    checkpoint = tmp_path / "checkpoint"
    command = [sys.executable, "-m", "onnxaccel", "train", str(mlp), *settings, "-o", str(resumed)]
    process = subprocess.Popen(
        [*command, "--checkpoint", str(checkpoint)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
    )
    deadline = time.monotonic() + 60
    while not list(checkpoint.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors and not resumed.exists()
    done = run("train", mlp, *settings, "--checkpoint", checkpoint, "--resume", "-o", resumed)
    assert done.returncode == 0, done.stderr
    expected, found = Model.load(whole).weights(), Model.load(resumed).weights()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_checkpoint_of_another_model_is_refused(mlp: Path, tmp_path: Path) -> None:
    saved = ["--checkpoint", tmp_path / "c"]
    assert run("train", mlp, "--data", DIGITS, "--epochs", 1, *saved, "-o", tmp_path / "o").returncode == 0
    other = tmp_path / "other.onnx"
    module = models.build("mlp", "pytorch", input_shape=(64,), classes=12)
    oa.convert(module, torch.zeros(2, 64), trainable=True).save(other)
    done = run("train", other, "--data", DIGITS, *saved, "--resume", "-o", tmp_path / "p")
    assert done.returncode == 1 and "checkpoint is of another model: 'fc3.weight'" in done.stderr
    damaged = tmp_path / "d"
    shutil.copytree(tmp_path / "c", damaged)
    os.truncate(max(damaged.glob("step-*")), 1000)
    done = run("train", mlp, "--data", DIGITS, "--checkpoint", damaged, "--resume", "-o", tmp_path / "p")
    assert done.returncode == 1 and "damaged" in done.stderr


def test_classes_on_the_last_axis_train_and_evaluate(tmp_path: Path) -> None:
    """As Keras gives the scores of pixels and positions."""
    torch.manual_seed(0)
    module, out = torch.nn.Linear(5, 3), tmp_path / "positions.onnx"
    oa.convert(module, torch.zeros(2, 4, 5), trainable=True).save(out)
    x, y = torch.randn(20, 4, 5), torch.randint(0, 3, (20, 4))
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    options = ("--data", tmp_path / "data.npz", "--loss-option", "axis=-1")
    found, scores = document("evaluate", out, *options), module(x).detach()
    exact = torch.nn.functional.cross_entropy(scores.double().movedim(-1, 1), y).item()
    assert abs(found["loss"] / exact - 1) < 1e-6
    assert abs(found["accuracy"] - (scores.argmax(-1) == y).double().mean().item()) < 1e-6
    trained = tmp_path / "trained.onnx"
    document("train", out, *options, "--lr", 0.1, "-o", trained)
    assert document("evaluate", trained, *options)["loss"] < found["loss"]
    refused = run("evaluate", out, "--data", tmp_path / "data.npz", "--loss-option", "axis")
    assert refused.returncode == 2 and "write NAME=VALUE" in " ".join(refused.stderr.split())
