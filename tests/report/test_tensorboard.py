"""The scalars, read back by TensorBoard's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from onnxaccel.report.tensorboard import write
from tests.report.samples import comparison, odd, source

READ = """
import json, sys
sys.modules['tensorflow'] = None  # TensorBoard's own reader, in its form without TensorFlow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0}).Reload()
print(json.dumps({t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()['scalars']}))
"""


def test_the_scalars_are_the_figures(tmp_path: Path) -> None:
    found = comparison(source(), source("a/b"))
    runs = write(found, tmp_path)
    assert [run.relative_to(tmp_path).as_posix() for run in runs[:2]] == [
        "models_mlp/TensorFlow_Keras",
        "models_mlp/PyTorch_eager",
    ]
    side = found.sources[0].candidates[0]
    assert side.inference is not None and side.training is not None
    done = subprocess.run([sys.executable, "-c", READ, runs[0]], capture_output=True, text=True, check=True)
    read = json.loads(done.stdout)
    assert [step for step, _ in read["training/loss"]] == list(range(1, 61))
    assert [value for _, value in read["training/loss"]] == pytest.approx(side.training.losses)
    latency = dict(read["inference/latency_p50_ms"])
    assert latency == pytest.approx({batch.size: batch.p50 for batch in side.inference.batches})
    assert read["inference/memory"] == [[0, side.inference.memory]]


def test_names_stay_inside_the_folder(tmp_path: Path) -> None:
    found = odd()
    found.sources[0].name, found.sources[1].name = "../../out", ".."
    found.sources[0].candidates[1].name = found.sources[0].candidates[0].name = "../x"
    runs = write(found, tmp_path / "board")
    assert len(set(runs)) == sum(len(s.candidates) for s in found.sources)
    assert {path.name for path in tmp_path.iterdir()} == {"board"}
    for run in runs:
        assert run.is_dir() and run.resolve().relative_to(tmp_path.resolve()).parts[0] == "board"
