"""Engine ort-training against ours, in an environment of its own.

ONNXACCEL_ORT_TRAINING names its Python; `scripts/ort_training_environment.sh FOLDER` makes one.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel.errors import ProviderError, TrainingError

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import json, sys
import numpy as np
import onnxaccel as oa

model = oa.Model.load(sys.argv[1])
optimizer = {"sgd": oa.optimizers.SGD(0.1), "adamw": oa.optimizers.AdamW(1e-2)}[sys.argv[2]]
shape = [6, *[d for d in model.inputs[0].shape][1:]]
rng = np.random.default_rng(0)
batches = [(rng.random(shape, np.float32), rng.integers(0, 4, 6))] * 20
curves = {}
for engine in ("graph", "ort-training"):
    trainer = oa.Trainer(model, optimizer=optimizer, ep="cpu", engine=engine)
    curves[engine] = [trainer.step(x, y) for x, y in batches]
    trainer.export(sys.argv[1] + "." + engine)
state = trainer._learner.engine.state()
after = trainer.step(*batches[0])
trainer._learner.engine.load(state)
print(json.dumps({"curves": curves, "resumed": trainer.step(*batches[0]) == after}))
"""


def environment() -> str:
    """The Python of an environment with the training package."""
    python = os.environ.get("ONNXACCEL_ORT_TRAINING", "")
    if not python:
        pytest.skip("no ONNXACCEL_ORT_TRAINING: an environment with onnxruntime-training-cpu 1.19.2")
    return python


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [environment(), "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("optimizer", "bound"), [("sgd", 1e-6), ("adamw", 5e-3)])
def test_curves_agree(optimizer: str, bound: float, tmp_path: Path) -> None:
    """SGD is the same formula; AdamW is Hugging Face's, known to differ from torch's by up to 4e-3."""
    module = network(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 16),
        nn.LayerNorm(16),
        nn.Linear(16, 4),
    )
    path = oa.convert(module, torch.zeros(2, 3, 8, 8), trainable=True).save(tmp_path / "net.onnx")
    done = run(PROGRAM, str(path), optimizer)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = found["curves"]["graph"], found["curves"]["ort-training"]
    assert max(abs(a - b) / a for a, b in zip(ours, theirs, strict=True)) < bound
    assert theirs[-1] < theirs[0] and found["resumed"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((nn.Linear(8, 4), nn.BatchNorm1d(4)), "BatchNormalization.*running statistics"),
        ((nn.Linear(8, 4), nn.PReLU()), "PRelu"),
    ],
)
def test_what_it_would_get_wrong_is_refused(
    layers: tuple[nn.Module, ...], message: str, tmp_path: Path
) -> None:
    path = oa.convert(network(*layers), torch.zeros(2, 8), trainable=True).save(tmp_path / "net.onnx")
    done = run(PROGRAM, str(path), "sgd")
    assert done.returncode != 0
    with pytest.raises(oa.AccelError, match=message):
        raise oa.AccelError(done.stderr.splitlines()[-1])


def test_where_it_is_not_installed_that_is_said() -> None:
    model = oa.convert(network(nn.Linear(8, 4)), torch.zeros(2, 8), trainable=True)
    with pytest.raises(ProviderError, match=r"onnxruntime-training-cpu 1\.19\.2 in place of onnxruntime"):
        oa.Trainer(model, ep="cpu", engine="ort-training")
    with pytest.raises(TrainingError, match="unknown engine 'other'; choose one of graph, ort-training"):
        oa.Trainer(model, ep="cpu", engine="other")
