"""Interrupted trainings, as users interrupt them: what was resumed ends with the very same weights."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import onnxaccel as oa
from onnxaccel.errors import CheckpointError
from onnxaccel.graph.dropout import DRAWS
from onnxaccel.graph.model import Model
from onnxaccel.runtime.checkpoint import BEST, Checkpoints

STEPS = 3 * 20  # of the settings below


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CNN with BatchNorm and Dropout, trainable."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16 * 7 * 7, 10),
    )
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    oa.convert(module, torch.randn(2, 3, 32, 32), trainable=True).save(path)
    return path


def settings(shared: Path) -> list[str]:
    """Everything with a state or with chance in it."""
    data = f"{shared / 'data/cifar10/train'}"
    words = (
        f"--data {data}#0:640 --val {data}#640:704 --epochs 3 --batch-size 32 --ep cpu --optimizer adamw "
        "--schedule cosine --warmup 5 --flip --crop 4 --brightness 0.2 --contrast 0.2 --saturation 0.2"
    )
    return words.split()


@pytest.fixture(scope="module")
def whole(net: Path, shared: Path) -> tuple[Path, Any]:
    """What the training gives without interruption: the model, and the document of --json."""
    path = net.parent / "whole.onnx"
    done = run(net, *settings(shared), "-o", path, "--json")
    assert done.returncode == 0, done.stderr
    return path, json.loads(done.stdout)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "onnxaccel", "train", *(str(word) for word in words)]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False)


def steps_saved(folder: Path) -> int:
    return max((int(path.stem.split("-")[1]) for path in folder.glob("step-*")), default=0)


def wait_for(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while steps_saved(folder) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def assert_same(first: Path, second: Path) -> None:
    expected, found = Model.load(first).weights(), Model.load(second).weights()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_killed_in_the_middle_of_an_epoch(net: Path, whole: Any, tmp_path: Path, shared: Path) -> None:
    """kill -9 at random moments, again and again, until the training gets through."""
    resumed, folder = tmp_path / "resumed.onnx", tmp_path / "c"
    saving = ["--checkpoint", folder, "--checkpoint-every", 3, "-o", resumed, "--json"]
    chance = random.Random(0)
    kills = []
    for target in (4, 22, 45):  # in the first, the second and the third epoch
        words = [net, *settings(shared), *saving, *(["--resume"] if kills else [])]
        process = subprocess.Popen(
            command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        wait_for(folder, target, process)
        time.sleep(chance.random() * 0.02)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
        process.stderr.close()
        kills.append(steps_saved(folder))
    assert kills == sorted(set(kills)) and kills[-1] < STEPS, kills
    assert not resumed.exists()
    last = run(net, *settings(shared), *saving, "--resume")
    assert last.returncode == 0, last.stderr
    assert_same(whole[0], resumed)
    one, other = whole[1], json.loads(last.stdout)
    assert one["steps"] == other["steps"] == STEPS
    for a, b in zip(one["epochs"], other["epochs"], strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"
        }
    assert {path.name for path in folder.iterdir()} == {
        *(f"step-{step:09d}.safetensors" for step in (57, 60)),
        BEST,
        "lock",
    }


def test_sigterm_saves_and_ends_with_130(net: Path, whole: Any, tmp_path: Path, shared: Path) -> None:
    resumed, folder = tmp_path / "resumed.onnx", tmp_path / "c"
    words = [*settings(shared), "--checkpoint", folder, "--checkpoint-every", 10, "-o", resumed]
    process = subprocess.Popen(command(net, *words), stderr=subprocess.PIPE, text=True)
    wait_for(folder, 10, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors and not resumed.exists()
    assert 10 <= steps_saved(folder) < STEPS
    assert run(net, *words, "--resume").returncode == 0
    assert_same(whole[0], resumed)


@lru_cache
def small(classes: int) -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, classes))
    return oa.convert(module, torch.randn(2, 6), trainable=True)


def trained(folder: Path, **changes: Any) -> oa.Trainer:
    """A short training on random data, with checkpoints."""
    model = small(changes.pop("classes", 3))
    optimizer = changes.pop("optimizer", oa.optimizers.SGD(0.1, momentum=0.9))
    recipe = {
        name: changes.pop(name) for name in ("accumulate", "ema", "clip_norm", "freeze") if name in changes
    }
    trainer = oa.Trainer(model, optimizer=optimizer, ep="cpu", seed=changes.pop("seed", 0), **recipe)
    rng = np.random.default_rng(0)
    count = changes.pop("samples", 40)
    data = rng.normal(size=(count, 6)).astype(np.float32), rng.integers(0, 3, count)
    trainer.fit(data, **{"epochs": 2, "batch_size": 8, "checkpoint_folder": folder} | changes)
    return trainer


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 6, 10])
def test_any_batch_is_a_place_to_stop_at(stop: int, tmp_path: Path) -> None:
    """With gradients over two batches, of which an epoch has five, and averaged weights."""
    recipe: dict[str, Any] = {"accumulate": 2, "ema": 0.9, "clip_norm": 0.5, "schedule": "one_cycle"}
    seen = []

    def interrupt(tick: Any) -> None:
        seen.append(tick)
        if len(seen) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "c", **recipe, on_tick=interrupt)
    resumed, through = trained(tmp_path / "c", **recipe, resume=True), trained(tmp_path / "d", **recipe)
    one, other = (load_file(max((tmp_path / f).glob("step-*"))) for f in "cd")
    assert one.keys() == other.keys() and one[DRAWS] == 10  # masks are drawn for each batch
    for name, value in other.items():
        np.testing.assert_array_equal(one[name], value, err_msg=name)
    for name, value in through.model().weights().items():
        np.testing.assert_array_equal(resumed.model().weights()[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": 4},
            r"another model: '3.weight' is float32\[3, 5\] in the state, float32\[4, 5\] in the model",
        ),
        (
            {"freeze": ["0.*"]},
            r"another model: the state also has '0\.\w+(/\w+)?', which this training does not",
        ),
        ({"optimizer": oa.optimizers.SGD(0.1)}, r"with optimizer SGD\(.*momentum=0.9.*, not SGD\("),
        (
            {"optimizer": oa.optimizers.SGD(0.2, momentum=0.9)},
            r"with optimizer SGD\(lr=0.1.*, not SGD\(lr=0.2",
        ),
        ({"schedule": "cosine"}, r"with schedule Constant\(.*, not Cosine\("),
        ({"seed": 1}, "with seed 0, not 1"),
        ({"batch_size": 4}, "with batch_size 8, not 4"),
        ({"samples": 41}, "with samples 40, not 41"),
    ],
)
def test_checkpoints_of_other_trainings_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trained(tmp_path / "c")
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "c").glob("*.safetensors"))
    with pytest.raises(CheckpointError, match=message):
        trained(tmp_path / "c", resume=True, **changes)
    assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "c").glob("*.safetensors")) == before


def test_more_epochs_go_on_and_a_fresh_start_replaces(tmp_path: Path) -> None:
    trained(tmp_path / "c")
    longer = trained(tmp_path / "c", epochs=4, resume=True)
    whole = trained(tmp_path / "d", epochs=4)
    for name, value in whole.model().weights().items():
        np.testing.assert_array_equal(longer.model().weights()[name], value)
    assert steps_saved(tmp_path / "c") == 20
    trained(tmp_path / "c", epochs=1)  # without resume: the longer training's checkpoints give way
    assert [p.name for p in (tmp_path / "c").glob("step-*")] == ["step-000000005.safetensors"]


def test_newest_are_kept_and_one_step_back_is_possible(tmp_path: Path) -> None:
    trained(tmp_path / "c", checkpoint_every=2, keep=3)
    names = sorted(p.name for p in (tmp_path / "c").glob("step-*"))
    assert names == [f"step-{step:09d}.safetensors" for step in (6, 8, 10)]
    os.truncate(tmp_path / "c" / names[-1], 100)
    with pytest.raises(CheckpointError, match=r"step-000000010.safetensors: damaged .*; remove it"):
        trained(tmp_path / "c", resume=True)
    (tmp_path / "c" / names[-1]).unlink()
    again, whole = trained(tmp_path / "c", resume=True), trained(tmp_path / "d")
    for name, value in whole.model().weights().items():
        np.testing.assert_array_equal(again.model().weights()[name], value)


def test_one_training_per_folder_and_the_dead_hold_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    program = (
        "import sys, time\nfrom onnxaccel.runtime.checkpoint import Checkpoints\n"
        f"with Checkpoints({str(folder)!r}).held(False):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        with pytest.raises(CheckpointError, match=rf"another training \(process {process.pid}\)"):
            trained(folder)
    finally:
        process.kill()
        process.wait()
    process.stdout.close()
    (folder / ".onnxaccel-left").mkdir()  # what a kill in the middle of writing leaves
    trained(folder)
    assert not (folder / ".onnxaccel-left").exists()


def test_nothing_to_resume(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="no checkpoint in it"),
        Checkpoints(tmp_path / "none").held(True),
    ):
        pass
    assert not (tmp_path / "none").exists()
    (tmp_path / "c").mkdir()
    shutil.copy(__file__, tmp_path / "c" / "step-000000001.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        trained(tmp_path / "c", resume=True)
