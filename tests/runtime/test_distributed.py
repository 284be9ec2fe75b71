"""Several processes train as one does with the whole batch; one that is killed costs time, not results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.graph.model import Model
from onnxaccel.runtime.launch import _first_to_fail, _free_port

PROGRAM = Path(__file__).with_name("parallel_program.py")
DIGITS = ["--data", "sklearn:digits#0:1500", "--val", "sklearn:digits#1500:", "--ep", "cpu", "--seed", "3"]


def norm_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10)
    )


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def without_dropout(module: nn.Module) -> nn.Module:
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = 0.0
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parallel")
    nets = {
        "mlp": (models.build("mlp", "pytorch", input_shape=(64,)), (64,)),
        "cifar_cnn": (without_dropout(models.build("cifar_cnn", "pytorch")), (3, 32, 32)),
        "norm": (norm_net(), (3, 16, 16)),
        "lstm": (Lstm(), (12, 8)),
    }
    for name, (module, shape) in nets.items():
        oa.convert(module, torch.randn(2, *shape), trainable=True).save(path / f"{name}.onnx")
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    """What one process and what two processes found."""
    subprocess.run([sys.executable, str(PROGRAM), str(folder)], check=True)
    port = str(_free_port())
    processes = []
    for rank in "01":
        group = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, str(PROGRAM), str(folder)]
        processes.append(subprocess.Popen(command, env=os.environ | group))
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("first-1", "first-2", "second")
    }


@pytest.mark.parametrize("name", ["mlp", "cifar_cnn", "lstm"])
def test_two_processes_equal_one_with_the_whole_batch(name: str, results: dict[str, Any]) -> None:
    one, two = (np.array(results[run][name]["losses"]) for run in ("first-1", "first-2"))
    difference = float(np.abs(one - two).max())
    print(f"{name}: largest difference of the loss {difference:.1e}")
    assert difference < 2e-6  # the sums of a batch are taken in another order: rounding of float32


def test_batch_normalization_sees_its_part_of_the_batch(results: dict[str, Any]) -> None:
    """As in torch's DistributedDataParallel: the loss is near that of the whole batch, not equal to it."""
    one, two = (np.array(results[run]["norm"]["losses"]) for run in ("first-1", "first-2"))
    assert 1e-6 < np.abs(one[:-1] - two[:-1]).max() < 0.5


@pytest.mark.parametrize("name", ["mlp", "cifar_cnn", "norm"])
def test_all_processes_end_with_the_same_bits(name: str, results: dict[str, Any]) -> None:
    assert results["first-2"][name]["hash"] == results["second"][name]["hash"]
    assert results["first-2"][name]["losses"] == results["second"][name]["losses"]


def test_processes_that_differ_and_processes_that_die_are_noticed(results: dict[str, Any]) -> None:
    for run in ("first-2", "second"):
        assert "process 1 of 2 holds other weights than process 0" in results[run]["differ"]
        assert results[run]["sums"] == [2.0, 1.0]
    assert "process 0 of 2: another one is gone" in results["first-2"]["lost"]
    assert "start again with --resume" in results["first-2"]["lost"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxaccel", *(str(a) for a in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_killed_worker_costs_time_but_no_result(folder: Path, tmp_path: Path) -> None:
    """kill -9 in the middle: all start again from the checkpoint, and end with an undisturbed run's bits."""
    settings = [*DIGITS, "--epochs", "30", "--workers", "2", "--optimizer", "adamw"]
    whole, disturbed = tmp_path / "whole.onnx", tmp_path / "disturbed.onnx"
    done = run("train", folder / "mlp.onnx", *settings, "-o", whole, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 30 * 24  # one document, of one process
    checkpoints = tmp_path / "checkpoints"
    command = [sys.executable, "-m", "onnxaccel", "train", str(folder / "mlp.onnx"), *settings]
    command += ["-o", str(disturbed), "--checkpoint", str(checkpoints), "--checkpoint-every", "7", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    victim = next(pid for pid in children(process.pid) if b"RANK=1\0" in environment(pid))
    os.kill(victim, signal.SIGKILL)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "worker 1 was killed (SIGKILL); all start again (1 of 3 times)" in errors
    assert json.loads(out)["steps"] == 30 * 24
    expected, found = Model.load(whole).weights(), Model.load(disturbed).weights()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_processes_that_share_an_evaluation_find_what_one_finds(folder: Path) -> None:
    """Over 297 digits, the last batch of one sample: one process has none of it."""
    model, data, metrics = folder / "mlp.onnx", "sklearn:digits#1500:", ["top5", "confusion"]
    one = oa.evaluate(model, data, ep="cpu", batch_size=37, metrics=metrics)
    settings = ["--data", data, "--ep", "cpu", "--batch-size", "37", "--metrics", ",".join(metrics), "--json"]
    done = run("evaluate", model, *settings, "--workers", "2")
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)
    assert one.samples == np.sum(one.metrics["confusion"]) == 297
    assert (two["samples"], two["accuracy"], two["metrics"]) == (297, one.accuracy, one.metrics)
    assert two["loss"] == pytest.approx(one.loss, rel=1e-6)


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started."""
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes().replace(b"LOCAL_RANK", b"LOCAL")


def test_an_error_is_told_once(folder: Path, tmp_path: Path) -> None:
    done = run("train", folder / "mlp.onnx", "--data", tmp_path / "none", "--workers", "2")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("error: ") == 1 and "no such file or folder" in done.stderr


@pytest.mark.slow
def test_torchrun_starts_the_same_training(folder: Path, tmp_path: Path) -> None:
    settings = [str(folder / "mlp.onnx"), *DIGITS, "--epochs", "3"]
    ours, theirs = tmp_path / "ours.onnx", tmp_path / "theirs.onnx"
    assert run("train", *settings, "--workers", "2", "-o", ours).returncode == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "-m", "onnxaccel", "train", *settings, "-o", str(theirs)])
    assert done.returncode == 0
    expected, found = Model.load(ours).weights(), Model.load(theirs).weights()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_worker_that_dies_after_the_first_one_is_done_starts_nothing_again() -> None:
    """The first one has written and reported by then: a second start would train, write and report twice."""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in ("", "import os; os.abort()")]
    processes[0].wait()
    assert _first_to_fail(processes) is None
    assert processes[1].wait() == -signal.SIGABRT


def test_processes_that_exchanged_something_end_well() -> None:
    """Groups that are not taken down abort at the interpreter's end, one time in four."""
    program = "import torch; from onnxaccel.runtime.distributed import join; join('cpu').sum(torch.ones(9))"
    port = str(_free_port())
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=os.environ | group | {"RANK": rank})
        for rank in "01"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
