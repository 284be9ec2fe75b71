"""`oa.compare` and `onnxaccel compare`: real frameworks on real models and data; what fails is a row."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.compare import results
from onnxaccel.compare.candidates import matches
from onnxaccel.compare.document import document
from onnxaccel.compare.native import common
from onnxaccel.compare.results import Candidate, Comparison, Source
from onnxaccel.compare.sources import Asked, open_source, reference_jobs
from onnxaccel.converters.caffe.reference import caffe_home
from onnxaccel.protect.container import MAGIC
from onnxaccel.runtime.measure import Limits

QUICK: dict[str, Any] = {"rounds": 1, "seconds": 0.05, "gap": 0.0, "patience": 1, "batch_sizes": (1, 4)}
"""Enough to see that figures are there; nothing is said of their values."""

FLOAT = 2e-5
"""Relative difference that the order of float32 sums may make in these small networks: some 100 roundings."""


def lenet(shared: Path) -> str:
    folder = shared / "samples/caffe/lenet"
    return f"{folder / 'deploy.prototxt'},{folder / 'weights.caffemodel'}"


def rows(source: Source) -> dict[str, Candidate]:
    return {candidate.name: candidate for candidate in source.candidates}


def check_measured(candidate: Candidate, sizes: list[int], accuracy: float | None, error: float) -> None:
    """All figures of inference are there and make sense together."""
    found = candidate.inference
    assert found is not None and found.failure is None, (candidate.name, found)
    assert [batch.size for batch in found.batches] == sizes
    for batch in found.batches:
        assert batch.failure is None
        assert batch.p50 is not None and batch.p90 is not None and batch.p99 is not None
        assert 0 < batch.p50 <= batch.p90 <= batch.p99
        assert len(batch.rounds) == 1 and batch.throughput == batch.rounds[0] > 0
    assert found.memory is not None and found.memory > 2**20
    assert found.startup is not None and found.startup > 0 and found.first_run is not None
    assert found.size is not None and found.size > 1000
    assert found.relative_error is not None and found.relative_error <= error, candidate.name
    assert found.accuracy == accuracy


def test_a_reference_model_in_every_framework() -> None:
    names = ["PyTorch eager", "TensorFlow Keras", "Caffe", "OpenCV", "onnxaccel cpu"]
    made = oa.compare("models:mlp", "sklearn:digits", only=names, optimized=False, threads=1, **QUICK)
    (source,) = made.sources
    found = rows(source)
    assert list(found) == names and source.answered and source.framework is None
    sizes = [layer.numel() for layer in models.build("mlp", "pytorch", input_shape=(64,)).parameters()]
    assert source.input_shape == [64] and source.parameters == sum(sizes)
    accuracy = found["PyTorch eager"].inference.accuracy  # type: ignore[union-attr]
    assert accuracy is not None
    for name, candidate in found.items():
        if name == "Caffe" and caffe_home() is None:
            assert candidate.inference is not None and "make caffe" in str(candidate.inference.failure)
        else:
            check_measured(candidate, [1, 4], accuracy, 0.0 if name == names[0] else FLOAT)
    assert made.settings.threads == 1 and made.settings.data == "sklearn:digits"
    assert {"torch", "tensorflow", "onnxruntime", "opencv", "numpy"} <= set(made.machine.versions)
    assert {answer.goal for answer in source.recommendations} == {"latency", "throughput", "memory"}
    document(made)


def test_files_beside_a_source_that_fails(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "sealed.onnx").write_bytes(MAGIC + bytes(100))
    data = f"{shared / 'data/mnist'}#8000:8100"
    made = oa.compare(
        [lenet(shared), tmp_path / "broken.pt", tmp_path / "sealed.onnx", "models:nothing"],
        data,
        optimized=False,
        preprocessing={"scale": 1 / 256},
        goal="memory",
        **QUICK,
    )
    good, broken, sealed, unknown = made.sources
    assert good.framework == "caffe" and good.input_shape == [1, 28, 28] and good.parameters == 431_080
    accuracies = {c.inference.accuracy for c in good.candidates if c.inference and not c.failed}
    assert (
        len(accuracies) == 1 and accuracies.pop() >= 0.95
    )  # the samples' manifest: 97.3 % on digits held out
    for candidate in good.candidates:
        if candidate.name != "Caffe" or caffe_home() is not None:
            check_measured(candidate, [1, 4], candidate.inference and candidate.inference.accuracy, FLOAT)
    assert good.recommendations[0].goal == "memory"
    assert "damaged or truncated" in str(broken.failure) and not broken.answered
    assert "encrypted in format 0" in str(sealed.failure)
    assert "choose one of" in str(unknown.failure) and "mlp" in str(unknown.failure)


def executable(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_candidate_that_hangs_dies_or_is_not_there_is_a_row(shared: Path, tmp_path: Path) -> None:
    """OpenCV in a Python without it, Caffe in programs that are no Python: onnxaccel goes on."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    pythons = {
        "hangs": {"caffe": executable(tmp_path / "hangs", "sleep 1000"), "opencv": str(bare / "bin/python")},
        "dies": {"caffe": executable(tmp_path / "dies", "echo no licence >&2; exit 3")},
    }
    onnx = str(oa.convert(*lenet(shared).split(","), verify=False).save(tmp_path / "net.onnx"))
    reasons: dict[str, dict[str, str]] = {}
    for case, given in pythons.items():
        (source,) = oa.compare(
            lenet(shared), pythons=given, optimized=False, limits=Limits(4), only=["Caffe", "OpenCV"], **QUICK
        ).sources
        reasons[case] = {c.name: str(c.inference and c.inference.failure) for c in source.candidates}
    assert reasons["hangs"]["Caffe"] == "no answer within 4 s"
    assert reasons["dies"]["Caffe"] == "no licence"
    assert "No module named" in reasons["hangs"]["OpenCV"] and str(bare) in reasons["hangs"]["OpenCV"]
    assert reasons["dies"]["OpenCV"] == "None"
    (source,) = oa.compare(onnx, optimized=False, limits=Limits(memory=30 * 2**20), **QUICK).sources
    assert not source.answered and source.failure is None and source.framework == "onnx"
    assert rows(source)["onnxaccel cpu"].inference.failure == "took more than 30 MiB of memory"  # type: ignore[union-attr]


def test_data_that_does_not_fit_is_the_sources_failure(shared: Path) -> None:
    (source,) = oa.compare(lenet(shared), "sklearn:iris", optimized=False, **QUICK).sources
    assert "a sample has shape [4], input 'data' takes [1, 28, 28]" in str(source.failure)


def test_patterns_that_name_no_candidate_are_a_failure(shared: Path) -> None:
    (source,) = oa.compare(lenet(shared), only=["PyTorch *"], **QUICK).sources
    assert source.failure == "it has no candidate that --only names: PyTorch *"


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "no sources": ({"sources": []}, "nothing to compare"),
    "no data to train on": ({"train": True}, "training needs data"),
    "no such data": ({"data": "nowhere"}, "no such file or folder"),
    "nothing asked": ({"inference": False}, "neither inference nor training"),
    "batch of none": ({"batch_sizes": [0]}, "at least 1"),
    "unknown framework": ({"pythons": {"jax": sys.executable}}, "--python jax"),
    "no such python": ({"pythons": {"caffe": "/nowhere/python"}}, "no such program"),
    "unknown goal": ({"goal": "beauty"}, "choose one of latency"),
    "unknown setting": (
        {"data": "sklearn:digits", "train": True, "training": {"speed": 3}},
        "training has no speed",
    ),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_nonsense_is_refused_before_anything_runs(case: str) -> None:
    settings, message = NONSENSE[case]
    with pytest.raises(oa.AccelError, match=message):
        oa.compare(**{"sources": "models:mlp", **settings})


FITTED = {
    "mlp on images": ("models:mlp", "mnist#0:20", (784,), 10),
    "mlp on a table": ("models:mlp", "sklearn:iris", (4,), 3),
    "images in folders": ("models:cifar_cnn", "cifar10/test", (3, 32, 32), 10),
}


@pytest.mark.parametrize("case", FITTED)
def test_reference_models_fit_the_data(case: str, shared: Path) -> None:
    name, data, shape, classes = FITTED[case]
    data = data if data.startswith("sklearn") else str(shared / "data" / data)
    setups = reference_jobs(name, Asked(data=data))
    assert {(tuple(setup["shape"]), setup["classes"]) for setup in setups} == {(shape, classes)}
    assert {"pytorch", "tensorflow", "caffe"} == {setup["framework"] for setup in setups}


def test_code_that_kills_its_process_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    (tmp_path / "deadly.py").write_text("import os\ndef build():\n    os.abort()\n")
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    source, opened, _ = open_source("weights.pth", Asked(factory="deadly:build"), tmp_path / "folder")
    assert not opened and source.failure == "crashed (SIGABRT)" and source.framework == "pytorch"


def test_the_page_names_every_field() -> None:
    text = (Path(__file__).parents[2] / "docs/comparison.md").read_text()
    named = {
        frozenset(re.findall(r"`(\w+)`", row.split("|")[2])) for row in text.splitlines() if row[:1] == "|"
    }
    for kind in vars(results).values():
        if dataclasses.is_dataclass(kind):
            assert frozenset(field.name for field in dataclasses.fields(kind)) in named, kind


def test_a_judgement_ends_in_time_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.save(tmp_path / "x.npy", samples)
    setup = {"inputs": [str(tmp_path / "x.npy")], "judged": 2, "results": str(tmp_path / "found.npz")}

    def double(feed: Sequence[Any]) -> list[Any]:
        time.sleep(0.02)
        return [2 * feed[0]]

    common.judge(setup, double)
    assert np.array_equal(np.load(tmp_path / "found.npz")["0"].reshape(10, 2), 2 * samples)
    monkeypatch.setattr(common, "JUDGE_SECONDS", 0.03)
    common.judge(setup, double)
    found = np.load(tmp_path / "found.npz")["0"]
    assert 1 <= len(found) <= 2 and np.array_equal(found.reshape(-1, 2), 2 * samples[: 2 * len(found)])


def test_patterns_choose_candidates() -> None:
    assert matches("PyTorch eager", []) and matches("PyTorch eager", ["Caffe", "PyTorch *"])
    assert not matches("PyTorch eager", ["Caffe", "onnxaccel*"])


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxaccel", "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_the_command_line(shared: Path, tmp_path: Path) -> None:
    few = ["--rounds", 1, "--seconds", 0.05, "--no-optimize", "--only", "OpenCV", "--only", "onnxaccel*"]
    done = run(lenet(shared), *few, "--batch-sizes", "2,1", "--html", "report.html", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "onnxaccel.comparison/1" and found["settings"]["threads"] >= 1
    names = [candidate["name"] for candidate in found["sources"][0]["candidates"]]
    assert names == ["OpenCV", "onnxaccel cpu"]
    sizes = [batch["size"] for batch in found["sources"][0]["candidates"][0]["inference"]["batches"]]
    assert sizes == [1, 2]
    assert "onnxaccel cpu" in (tmp_path / "report.html").read_text()
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]
    nothing = run("nowhere.pt", *few, cwd=tmp_path)
    assert nothing.returncode == 1 and "nowhere.pt: no such file or folder" in nothing.stdout.replace(
        "\n", " "
    )
    assert run(lenet(shared), "--batch-sizes", "x", cwd=tmp_path).returncode == 2
    assert run(lenet(shared), "--python", "caffe", cwd=tmp_path).returncode == 2
    lost = run(lenet(shared), *few, "--html", "no/folder/report.html", cwd=tmp_path)
    assert lost.returncode == 1 and "no/folder" in lost.stderr


FORMATS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "Keras HDF5": (
        "tensorflow/gender_mini_xception/model.hdf5",
        {},
        ["TensorFlow Keras", "TensorFlow function", "TensorFlow XLA"],
    ),
    "SavedModel": ("tensorflow/tiny_kws/saved_model", {}, ["TensorFlow function", "TensorFlow XLA"]),
    "frozen graph": (
        "tensorflow/kws_dnn_s/model.pb",
        {"inputs": ["Mfcc:0"]},
        ["TensorFlow graph", "TensorFlow XLA"],
    ),
    "TensorFlow Lite": ("tensorflow/tiny_ad01/model_fp32.tflite", {}, ["TensorFlow Lite"]),
    "TensorFlow Lite, int8": ("tensorflow/tiny_ad01/model_int8.tflite", {}, ["TensorFlow Lite"]),
    "TorchScript": ("pytorch/digit_cnn/traced.pt", {}, ["PyTorch TorchScript"]),
    "exported program": (
        "pytorch/digit_cnn/model.pt2",
        {},
        ["PyTorch eager", "PyTorch compile"],
    ),
    "state dict": (
        "pytorch/cifar_resnet20/weights.th",
        {"factory": "sample_nets:cifar_resnet20", "shapes": {"x": ("batch", 3, 32, 32)}},
        ["PyTorch eager", "PyTorch compile"],
    ),
    "Caffe, two outputs": (
        "caffe/slim320/deploy.prototxt,caffe/slim320/weights.caffemodel",
        {},
        ["Caffe", "OpenCV"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FORMATS)
def test_every_format_runs_in_its_own_framework(
    case: str, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, settings, names = FORMATS[case]
    monkeypatch.chdir(shared / "samples/pytorch")  # where the factory is
    source = ",".join(str(shared / "samples" / file) for file in files.split(","))
    (found,) = oa.compare(source, optimized=False, limits=Limits(600), **settings, **QUICK).sources
    assert [candidate.name for candidate in found.candidates] == [*names, "onnxaccel cpu"]
    for candidate in found.candidates:
        if candidate.name != "Caffe" or caffe_home() is not None:
            sizes = [batch.size for batch in candidate.inference.batches]  # type: ignore[union-attr]
            check_measured(candidate, sizes, None, 1e-4)


@pytest.mark.slow
def test_the_optimised_variant_keeps_to_its_budget(shared: Path) -> None:
    data = f"{shared / 'data/mnist'}#8000:9000"
    made: Comparison = oa.compare(
        lenet(shared),
        data,
        preprocessing={"scale": 1 / 256},
        only=["onnxaccel*"],
        rounds=3,
        seconds=0.3,
        batch_sizes=(1,),
    )
    plain, *variants = made.sources[0].candidates
    assert plain.name == "onnxaccel cpu"
    assert variants or any("no variant" in line for line in made.warnings)
    for variant in variants:
        assert variant.inference is not None and plain.inference is not None
        assert variant.inference.failure is None and variant.command is not None
        assert np.subtract(plain.inference.accuracy, variant.inference.accuracy) <= 0.01
        assert variant.command.startswith("onnxaccel convert ") and "&& onnxaccel optimize" in variant.command
