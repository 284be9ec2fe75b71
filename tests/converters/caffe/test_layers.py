"""Every layer type against a real Caffe; those it lacks against others that make them up, or a formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxaccel.converters.caffe.assemble import DATA
from onnxaccel.converters.caffe.builder import layer_type
from onnxaccel.converters.caffe.reference import RealCaffe, caffe_home
from tests.converters.caffe.case import Case, Feed, remembered
from tests.converters.caffe.cases import CASES


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Feed | str]]:
    """The tops of all cases by a real Caffe, in as few processes as it survives; else the stored ones."""
    home = caffe_home()
    if home is None:
        print("no real Caffe on this machine (make caffe builds one): comparing with what one gave before")
        return stored_references()
    return ask_caffe(RealCaffe(home), tmp_path_factory.mktemp("cases"))


def ask_caffe(caffe: RealCaffe, folder: Path) -> dict[str, list[Feed | str]]:
    passes = {str(case): case.passes(folder) for case in CASES}
    results = iter(caffe.run([one for each in passes.values() for one in each]))
    return {name: [next(results) for _ in each] for name, each in passes.items()}


def stored_references() -> dict[str, list[Feed | str]]:
    return {
        str(case): [remembered(f"{case}/{run}", case.outputs) for run in range(len(case.batches()))]
        for case in CASES
        if case.formula is None
    }


def worst(case: Case, expected: list[Feed | str], folder: Path) -> float:
    """The largest error of a case relative to the largest value of the top."""
    errors = [0.0]
    for ours, theirs in zip(case.ours(folder), expected, strict=True):
        assert isinstance(theirs, dict), f"Caffe itself fails: {theirs}"
        for name in case.outputs:
            assert ours[name].shape == theirs[name].shape, name
            largest = max(float(np.abs(theirs[name]).max(initial=0)), 1e-3)
            errors.append(float(np.abs(ours[name] - theirs[name]).max(initial=0)) / largest)
    return max(errors)


ELSEWHERE = {
    "DetectionOutput": "test_detection.py",
    "PriorBox": "test_detection.py",
    "DummyData": "test_reading.py",
    "Silence": "test_reading.py",
    "HDF5Output": "test_reading.py",
    "MultiBoxLoss": "refused: detectors are not trained",
    "DetectionEvaluate": "refused: detectors are not trained",
}

BVLC = """
AbsVal Accuracy ArgMax BatchNorm BatchReindex Bias BNLL Clip Concat ContrastiveLoss Convolution Crop
Data Deconvolution Dropout DummyData Eltwise ELU Embed EuclideanLoss Exp Filter Flatten HDF5Data
HDF5Output HingeLoss Im2col ImageData InfogainLoss InnerProduct Input Log LRN LSTM LSTMUnit
MemoryData MultinomialLogisticLoss MVN Parameter Pooling Power PReLU Reduction ReLU Reshape RNN
Scale Sigmoid SigmoidCrossEntropyLoss Silence Slice Softmax SoftmaxWithLoss Split SPP Swish TanH
Threshold Tile WindowData
""".split()
"""The layers of BVLC Caffe but Python, which is code."""


def test_names_are_unique() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)


def test_every_layer_type_is_tried() -> None:
    assert {case.type for case in CASES} | set(ELSEWHERE) == set(layer_type)


def test_every_layer_of_bvlc_is_known() -> None:
    assert set(BVLC) <= set(layer_type) | DATA | {"Input"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case, references: dict[str, list[Feed | str]], tmp_path: Path) -> None:
    expected = references[str(case)] if case.formula is None else list(case.by_formula())
    assert worst(case, expected, tmp_path) < 1e-5
