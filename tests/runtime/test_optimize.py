"""`optimize`: errors are right, the fastest within the budget wins, the others say why they lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.errors import AccelError, ModelError
from onnxaccel.graph.feeds import index_ranges
from onnxaccel.graph.model import Model, SessionSettings
from onnxaccel.runtime.optimize import Limits, Optimization, optimize
from onnxaccel.runtime.optimize.profile import profile
from onnxaccel.runtime.optimize.results import Candidate
from onnxaccel.runtime.optimize.samples import collect, read
from onnxaccel.runtime.optimize.search import WIN, WINS, Search, best_batch
from onnxaccel.runtime.session import Session

QUICK = {"rounds": 1, "seconds": 0.05, "patience": 1, "batch_sizes": ()}


@pytest.fixture(scope="module")
def lenet(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet with trained weights, for real digits."""
    folder = shared / "samples/caffe/lenet"
    model = oa.convert(*sorted(folder.glob("*.prototxt"))[:1], *folder.glob("*.caffemodel"))
    return model.save(tmp_path_factory.mktemp("lenet") / "lenet.onnx")


def consistent(found: Optimization) -> None:
    """The verdicts are what the numbers say."""
    rows = {row.name: row for row in found.rows}
    assert rows["fp32"].error == 0
    confirmed = [row for row in found.rows if row.confirmed is not None]
    for row in confirmed:  # only what was fast enough is measured again
        assert (row.speedup or 0) >= WIN and (row.rounds_won or 0) >= WINS
        assert row.error is not None and row.error <= found.budget
        assert (row.name == found.winner) == ("the fastest within the budget" in row.verdict)
    assert found.error <= found.budget
    if found.winner in {row.name for row in confirmed}:
        assert found.speedup == rows[found.winner].confirmed and found.speedup >= WIN
    else:
        assert found.winner == "fp32" and found.speedup == 1
    for row in found.rows:
        assert row.verdict
        if row.error is not None and row.error > found.budget:
            assert "over the budget" in row.verdict
        if row.p50 is not None and row.p90 is not None and row.p99 is not None:
            assert 0 < row.p50 <= row.p90 <= row.p99


def test_on_real_images_the_error_is_the_loss_of_accuracy(lenet: Path, shared: Path, tmp_path: Path) -> None:
    data = f"{shared / 'data/mnist'}#test#0:1000"
    out = tmp_path / "best.onnx"
    found = optimize(lenet, data, output=out, variants=["int8 dynamic", "int8 static"], **QUICK)  # type: ignore[arg-type]
    consistent(found)
    assert found.metric == "accuracy" and not any("random inputs" in line for line in found.warnings)
    rows = {row.name: row for row in found.rows}
    original, static = rows["fp32"].accuracy, rows["int8 static"].accuracy
    assert original is not None and static is not None and original > 0.95  # weights and data are real
    assert static > original - 0.02 and rows["int8 static"].size < rows["fp32"].size * 0.4  # type: ignore[operator]
    assert 0 < (rows["int8 static"].relative_error or 0) < 0.2
    saved = Model.load(out)
    assert saved.metadata.session == found.settings
    expected = next(row.accuracy for row in found.rows if row.name == found.winner)
    measured = oa.evaluate(out, data).accuracy
    assert measured == pytest.approx(expected, abs=0.02)  # over all samples, those for calibration included


def test_int8_is_refused_where_it_is_over_the_budget(lenet: Path) -> None:
    found = optimize(lenet, max_error=1e-6, variants=["int8 static"], **QUICK)  # type: ignore[arg-type]
    consistent(found)
    assert found.metric == "relative_error" and found.winner.startswith("fp32")
    (row,) = (row for row in found.rows if row.name == "int8 static")
    assert row.error is not None and row.error > 1e-6 and "over the budget of 1e-06" in row.verdict
    assert any("random inputs" in line for line in found.warnings)


def test_figures_that_do_not_hold_when_measured_again_do_not_win(tmp_path: Path) -> None:
    """A network of ten times the work, with figures as lucky rounds might give: the original stays."""

    def chain(layers: int) -> Model:
        torch.manual_seed(0)
        return oa.convert(
            torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(layers))), torch.randn(2, 256)
        )

    search = Search(chain(2), None, tmp_path, 1e9, Limits(), 1, 0)
    heavy = Candidate("lucky", "lucky", chain(20).save(tmp_path / "heavy.onnx"), SessionSettings("cpu"))
    timing = {"rounds": 2, "seconds": 0.05, "patience": 1}
    search.compare([*search.graphs(["cpu"], [], lambda line: None), heavy], timing)
    assert search.leader().name == "fp32"
    search._rows["lucky"].speedup, search._rows["lucky"].rounds_won = 3.0, 1.0
    assert search.leader().name == "lucky"
    found = search.report(search.confirm(timing))
    assert found.winner == "fp32" and found.speedup == 1
    (row,) = (row for row in found.rows if row.name == "lucky")
    assert row.confirmed is not None and row.confirmed < 1
    assert row.verdict == f"3.00x at first, but {row.confirmed:.2f}x when measured again"


def test_the_smallest_batch_near_the_best_throughput_is_recorded() -> None:
    assert best_batch({1: 100.0, 4: 390.0, 16: 400.0, 64: 350.0}) == 4
    assert best_batch({1: 100.0, 4: 370.0, 16: 400.0}) == 16


def test_optimize_is_for_one_process(lenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AccelError, match="start it once, not under torchrun"):
        optimize(lenet)


def test_a_model_that_goes_over_its_limit_is_one_error(lenet: Path) -> None:
    with pytest.raises(ModelError, match="does not run as it is: took more than 20 MiB"):
        optimize(lenet, variants=[], limits=Limits(60, 20 * 2**20), **QUICK)  # type: ignore[arg-type]


def test_a_variant_that_cannot_be_built_is_a_row(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Softmax(1))
    model = oa.convert(module, torch.randn(2, 4))
    found = optimize(model, variants=["int8 dynamic", "fp32 fused"], **QUICK)  # type: ignore[arg-type]
    verdicts = {row.name: row.verdict for row in found.rows}
    assert verdicts["int8 dynamic"] == "cannot be built: nothing in the model can be quantized"
    assert verdicts["fp32 fused"].startswith("cannot be built: nothing to fuse")


def test_the_command_line(lenet: Path, shared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onnxaccel", "optimize", str(lenet), "-o", str(tmp_path / "o.onnx")]
    command += ["--data", f"{shared / 'data/mnist'}#test#0:200", "--rounds", "1", "--seconds", "0.02"]
    command += ["--only", "int8 static"]
    done = subprocess.run([*command, "--profile", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"winner", "speedup", "error", "metric", "budget", "settings", "rows", "output"} <= set(found)
    assert {"fp32", "int8 static"} <= {row["name"] for row in found["rows"]}
    assert set(found["throughput_by_batch"]) == {"1", "4", "16", "64"} and found["settings"]["batch_size"]
    assert set(found["speedup_by_batch"]) == set(found["throughput_by_batch"])
    assert any("plain layout" in row["name"] for row in found["rows"])
    assert sum(entry["share"] for entry in found["profile"]) == pytest.approx(1)
    assert Session(Model.load(tmp_path / "o.onnx")).input_names  # what was written runs


def test_an_unknown_variant_is_refused(lenet: Path) -> None:
    with pytest.raises(ModelError, match="unknown variant 'int4'; choose of fp16, fp32 fused, int8 dynamic"):
        optimize(lenet, variants=["int4"], **QUICK)  # type: ignore[arg-type]


def test_profile_finds_the_operators(lenet: Path, tmp_path: Path) -> None:
    samples = collect(Model.load(lenet), None, tmp_path)
    entries = profile(lenet, SessionSettings(graph_optimization="off"), samples.judged, 8)
    nodes = {entry.operator: entry.nodes for entry in entries}
    assert nodes["Conv"] == 2 and nodes["MaxPool"] == 2
    assert entries == sorted(entries, key=lambda entry: -entry.milliseconds)


def test_samples_for_calibration_are_not_those_judged(shared: Path, tmp_path: Path) -> None:
    model = oa.convert(models.build("mlp", "pytorch"), torch.zeros(2, 784))
    samples = collect(model, f"{shared / 'data/mnist'}#0:1000", tmp_path)
    judged, _, labels = read(samples.judged)
    calibration, _, none = read(samples.calibration)
    assert none is None and labels is not None and samples.has_labels
    (name,) = judged
    assert len(judged[name]) == len(labels) == 750 and len(calibration[name]) == 250
    seen = {sample.tobytes() for sample in judged[name]}
    assert not any(sample.tobytes() in seen for sample in calibration[name])


def test_random_tokens_stay_inside_the_embedding() -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    model = oa.convert(module, torch.randint(0, 7, (2, 3)))
    assert list(index_ranges(model).values()) == [(0, 7)]


def test_evaluate_takes_the_recorded_batch_size(lenet: Path, shared: Path) -> None:
    model = Model.load(lenet)
    model.metadata.session = SessionSettings("cpu", threads=1, batch_size=3)
    data = f"{shared / 'data/mnist'}#0:100"
    assert oa.evaluate(model, data).accuracy == oa.evaluate(lenet, data).accuracy
    assert np.isfinite(oa.evaluate(model, data).loss)
