"""Networks and weights that cannot be converted: one clear error each, and no file left behind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import onnxaccel as oa
from onnxaccel.cli import app
from onnxaccel.converters.caffe.schema import message
from onnxaccel.errors import AccelError, ConversionError, MissingWeights, UnknownFormat
from tests.converters.caffe.case import caffemodel, inputs, layer

DATA = inputs(data=(1, 4, 9, 9))
DENSE = layer("InnerProduct", "data", "x", "inner_product_param { num_output: 2 }")
GOOD = {"x": [np.zeros((2, 324)), np.zeros(2)]}


def conv(settings: str) -> str:
    return layer("Convolution", "data", "x", f"convolution_param {{ {settings} }}")


CASES: dict[str, tuple[str, dict[str, list[Any]], type[AccelError], str]] = {
    "unknown layer": (
        layer("Nonsense", "data", "x"),
        {},
        ConversionError,
        r"'x' \(Nonsense, line 2\).*not known.*@layer_type\('Nonsense'\)",
    ),
    "unknown layer, further down": (
        layer("ReLU", "data", "r") + "\n# layer { }\n" + layer("Nonsense", "r", "x"),
        {},
        ConversionError,
        r"'x' \(Nonsense, line 5\)",
    ),
    "a Python layer": (layer("Python", "data", "x"), {}, ConversionError, r"'x' \(Python, line 2\)"),
    "missing bottom": (
        layer("ReLU", "dta", "x"),
        {},
        ConversionError,
        r"line 2\): its bottom 'dta'.*no layer",
    ),
    "cycle": (
        layer("Eltwise", "data y", "x") + layer("ReLU", "x", "y"),
        {},
        ConversionError,
        r"bottom 'y' is not there: layer 'y' \(ReLU, line 3\) writes it",
    ),
    "its own bottom": (layer("ReLU", "x", "x"), {}, ConversionError, "bottom 'x' is not there"),
    "top written twice": (
        layer("ReLU", "data", "x") + layer("TanH", "data", "x", name="t"),
        {},
        ConversionError,
        r"'t'.*top 'x' is written by layer 'x'",
    ),
    "in place under another reader": (
        layer("ReLU", "data", "x") + layer("TanH", "x", "t") + layer("TanH", "x", "x", name="u"),
        {},
        ConversionError,
        r"'u'.*changes blob 'x' in place, which layer 't'",
    ),
    "syntax": ('layer { name: "x" type "ReLU" }', {}, ConversionError, r"net.prototxt:2:\d+"),
    "unclosed": ('layer { name: "x" type: "ReLU"', {}, ConversionError, r"net.prototxt:\d+:\d+"),
    "unknown field": (
        'layer { name: "x" bogus_param { a: 1 } }',
        {},
        ConversionError,
        r"net.prototxt:2:\d+.*bogus_param",
    ),
    "wrong value": ('layer { name: "x" type: 3.5.1 }', {}, ConversionError, r"net.prototxt:2:\d+"),
    "old and new": ('layers { name: "x" type: RELU }', {}, ConversionError, "mixes 'layer' and 'layers'"),
    "no weights": (DENSE, {"other": [np.zeros(1)]}, MissingWeights, "no weights for it"),
    "misshapen": (
        DENSE,
        {"x": [np.zeros((2, 5))]},
        MissingWeights,
        r"shape \[2, 5\], the layer needs \[2, 324\]",
    ),
    "transposed": (DENSE, {"x": [np.zeros((324, 2))]}, MissingWeights, r"\[324, 2\].*\[2, 324\]"),
    "one blob too few": (DENSE, {"x": GOOD["x"][:1]}, MissingWeights, r"no weights for it \(blob 1\)"),
    "one blob too many": (
        DENSE,
        {"x": [*GOOD["x"], np.zeros(1)]},
        MissingWeights,
        "3 blobs for it, the layer uses 2",
    ),
    "shared with another shape": (
        layer("InnerProduct", "data", "x", 'inner_product_param { num_output: 2 } param { name: "w" }')
        + layer("InnerProduct", "data", "y", 'inner_product_param { num_output: 3 } param { name: "w" }'),
        {**GOOD, "y": [np.zeros((3, 324)), np.zeros(3)]},
        MissingWeights,
        r"'y'.*shape \[3, 324\]; it is shared with layer 'x'",
    ),
    "huge input": (
        inputs(big=(1, 3, 10**6, 10**6)) + layer("ReLU", "big", "x"),
        {},
        ConversionError,
        r"input 'big' would have 3000000000000 elements",
    ),
    "negative input": (
        inputs(big=(1, -3, 4)) + layer("ReLU", "big", "x"),
        {},
        ConversionError,
        "must be positive",
    ),
    "huge output": (
        conv("num_output: 4000000000 kernel_size: 1"),
        GOOD,
        ConversionError,
        "elements, more than",
    ),
    "huge tile": (
        layer("Tile", "data", "x", "tile_param { tiles: 2000000000 }"),
        {},
        ConversionError,
        "elements",
    ),
    "huge priors": (
        inputs(big=(1, 1, 4000, 4000))
        + layer("PriorBox", "big data", "x", "prior_box_param { " + "min_size: 1 " * 20 + "}"),
        {},
        ConversionError,
        "elements",
    ),
    "tall pyramid": (
        layer("SPP", "data", "x", "spp_param { pyramid_height: 31 }"),
        {},
        ConversionError,
        "height 31",
    ),
    "no kernel": (conv("num_output: 2"), GOOD, ConversionError, "kernel_size"),
    "kernel too large": (
        conv("num_output: 2 kernel_size: 11"),
        {"x": [np.zeros((2, 4, 11, 11)), np.zeros(2)]},
        ConversionError,
        "larger than its bottom",
    ),
    "groups": (conv("num_output: 2 kernel_size: 1 group: 3"), GOOD, ConversionError, "3 groups"),
    "an output called like an input": (
        layer("ReLU", "data", "data", name="x"),
        {},
        ConversionError,
        "output 'data' has the name of an input",
    ),
    "too few bottoms": (layer("Eltwise", "data", "x"), {}, ConversionError, "one bottom"),
    "bottoms that do not fit": (
        layer("Pooling", "data", "p", "pooling_param { kernel_size: 2 stride: 2 }")
        + layer("Eltwise", "data p", "x"),
        {},
        ConversionError,
        "do not fit",
    ),
    "too many tops": (layer("ReLU", "data", "x y"), {}, ConversionError, "2 tops"),
    "undefined pooling": (
        layer("Pooling", "data", "x", "pooling_param { kernel_size: 2 stride: 3 }"),
        {},
        ConversionError,
        "undefined",
    ),
    "stochastic pooling": (
        layer("Pooling", "data", "x", "pooling_param { pool: STOCHASTIC kernel_size: 2 }"),
        {},
        ConversionError,
        "stochastic",
    ),
    "axis": (layer("Softmax", "data", "x", "softmax_param { axis: 4 }"), {}, ConversionError, "axis 4"),
    "elements do not fit": (
        layer("Reshape", "data", "x", "reshape_param { shape { dim: 0 dim: 5 } }"),
        {},
        ConversionError,
        "do not fit",
    ),
    "data without sizes": (
        layer("Data", "", "image label", 'data_param { source: "db" }') + layer("ReLU", "image", "x"),
        {},
        ConversionError,
        "--shape image=1,3,224,224",
    ),
    "both rules": (
        layer("ReLU", "data", "x", "include { } exclude { }"),
        {},
        ConversionError,
        "include and exclude",
    ),
}


def write(folder: Path, layers: str, blobs: dict[str, list[Any]]) -> list[Path]:
    files = [folder / "net.prototxt", folder / "net.caffemodel"]
    files[0].write_text(DATA + layers)
    files[1].write_bytes(caffemodel(blobs or {"none": [np.zeros(1)]}))
    return files


@pytest.mark.parametrize("name", CASES)
def test_a_bad_network_is_one_clear_error(name: str, tmp_path: Path) -> None:
    layers, blobs, kind, text = CASES[name]
    with pytest.raises(kind, match=text) as caught:
        oa.convert(*write(tmp_path, layers, blobs), verify=False)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    files = write(tmp_path, layer("Nonsense", "data", "x"), {})
    target = tmp_path / "out" / "x.onnx"
    target.parent.mkdir()
    result = CliRunner().invoke(app, ["convert", *map(str, files), "-o", str(target)])
    assert result.exit_code == 1 and not list(target.parent.iterdir())


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_weights(share: float, shared: Path, tmp_path: Path) -> None:
    folder = shared / "samples/caffe/lenet"
    data = (folder / "weights.caffemodel").read_bytes()
    path = tmp_path / "short.caffemodel"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ConversionError, match="damaged or truncated"):
        oa.convert(folder / "deploy.prototxt", path)


def test_truncated_hdf5_weights(tmp_path: Path) -> None:
    import h5py

    prototxt, path = write(tmp_path, DENSE, {})[0], tmp_path / "w.caffemodel.h5"
    with h5py.File(path, "w") as file:
        file["data/x/0"], file["data/x/1"] = GOOD["x"]
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ConversionError, match="damaged or truncated"):
        oa.convert(prototxt, path)
    with h5py.File(path, "w") as file:
        file["model_weights/x"] = np.zeros(2)
    with pytest.raises(ConversionError, match="without /data"):
        oa.convert(prototxt, path)


@pytest.mark.parametrize("shape", [[2, 3], [1 << 40, 1 << 40], [-1, 2]])
def test_a_blob_that_lies_about_its_shape(shape: list[int], tmp_path: Path) -> None:
    files = write(tmp_path, DENSE, {})
    net = message("NetParameter")()
    blob = net.layer.add(name="x").blobs.add(data=[1.0, 2.0])
    blob.shape.dim.extend(shape)
    files[1].write_bytes(net.SerializeToString())
    with pytest.raises(MissingWeights, match=re.escape(f"declares shape {shape} but holds 2 values")):
        oa.convert(*files)


def test_weights_alone_are_not_enough(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormat, match="prototxt as well"):
        oa.convert(write(tmp_path, DENSE, GOOD)[1])


def test_blobs_that_are_not_there_cannot_be_outputs(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no blob 'z' in the network; it has data, x"):
        oa.convert(*write(tmp_path, DENSE, GOOD), outputs=["z"])
