"""Caffe networks against the results of a real Caffe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel.converters.caffe.reference import Forward, RealCaffe, caffe_home
from onnxaccel.converters.caffe.schema import message
from onnxaccel.converters.gate import relative_error
from onnxaccel.runtime.session import Session

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ["lenet", "cifar10_quick", "cifar10_full", "mtcnn_det1", "squeezenet11", "mobilenet_v1", "slim320"]


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_equals_real_caffe_blob_by_blob(sample: str, shared: Path) -> None:
    folder = shared / "samples/caffe" / sample
    files = folder / "deploy.prototxt", folder / "weights.caffemodel"
    ref = np.load(folder / "ref.npz")
    feed = {key.removeprefix("in__"): ref[key] for key in ref.files if key.startswith("in__")}
    outputs = {key.removeprefix("out__"): ref[key] for key in ref.files if key.startswith("out__")}
    blobs = {key.removeprefix("blob__"): ref[key] for key in ref.files if key.startswith("blob__")}
    model = oa.convert(*files)
    assert sorted(model.output_names()) == sorted(outputs)
    inner = oa.convert(*files, outputs=list(blobs), verify=False)
    for net, expected in ((model, outputs), (inner, blobs)):
        results = Session(net).run(feed)
        for name, value in expected.items():
            assert relative_error(results[name].reshape(value.shape), value) < 1e-4, name


def test_dynamic_height_and_width(shared: Path) -> None:
    folder = shared / "samples/caffe/mtcnn_det1"
    ref = np.load(folder / "ref_dyn.npz")
    files = folder / "deploy.prototxt", folder / "weights.caffemodel"
    model = oa.convert(*files, shapes={"data": (-1, 3, -1, -1)})
    results = Session(model).run({"data": ref["in__data"]})
    for name, value in results.items():
        assert relative_error(value, ref[f"out__{name}"]) < 1e-4


ANY_SIZE = {
    "mtcnn_det1": (61, 83),
    "squeezenet11": (131, 158),
    "mobilenet_v1": (97, 160),
    "slim320": (151, 201),
}
"""The samples whose networks take images of any size, and one that they were not written for."""


def test_samples_at_another_batch_and_image_size_equal_real_caffe(shared: Path) -> None:
    home = caffe_home()
    if home is None:
        pytest.skip("no real Caffe on this machine; make caffe builds one")
    passes, ours = [], []
    for sample, size in ANY_SIZE.items():
        folder = shared / "samples/caffe" / sample
        files = folder / "deploy.prototxt", folder / "weights.caffemodel"
        (name,) = oa.convert(*files, verify=False).input_names()
        model = oa.convert(*files, shapes={name: (-1, 3, -1, -1)}, verify=False)
        feed = {name: np.random.default_rng(0).standard_normal((3, 3, *size)).astype(np.float32)}
        passes.append(Forward(*files, feed, tuple(model.output_names())))
        ours.append(Session(model).run(feed))
    for sample, results, expected in zip(ANY_SIZE, ours, RealCaffe(home).run(passes), strict=True):
        assert isinstance(expected, dict), f"{sample}: {expected}"
        for name, value in expected.items():
            assert relative_error(results[name], value) < 1e-4, (sample, name)


NET = """
name: "net"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 9 dim: 9 } } }
LAYER
"""


def net(
    tmp_path: Path, layers: str, blobs: dict[str, list[np.ndarray[Any, Any]]] | None = None
) -> list[Path]:
    """A prototxt with ``layers`` behind a [1, 4, 9, 9] input, and a caffemodel with ``blobs``."""
    prototxt, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    prototxt.write_text(NET.replace("LAYER", layers))
    proto = message("NetParameter")()
    for name, arrays in (blobs or {"none": [np.zeros(1)]}).items():
        layer = proto.layer.add(name=name)
        for array in arrays:
            blob = layer.blobs.add(data=array.ravel())
            blob.shape.dim.extend(array.shape)
    weights.write_bytes(proto.SerializeToString())
    return [prototxt, weights]


def pool(settings: str) -> str:
    return f'layer {{ name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param {{ {settings} }} }}'


def caffe_pool(x: Any, kernel: int, stride: int, pad: int, average: bool) -> Any:
    """Caffe's pooling written from its definition, window by window."""
    n = x.shape[2]
    size = -(-(n + 2 * pad - kernel) // stride) + 1
    if pad and (size - 1) * stride >= n + pad:
        size -= 1
    out = np.zeros((*x.shape[:2], size, size), np.float32)
    for i in range(size):
        for j in range(size):
            h0, w0 = i * stride - pad, j * stride - pad
            h1, w1 = min(h0 + kernel, n + pad), min(w0 + kernel, n + pad)
            area = (h1 - h0) * (w1 - w0)
            part = x[:, :, max(h0, 0) : min(h1, n), max(w0, 0) : min(w1, n)]
            out[:, :, i, j] = part.sum((2, 3)) / area if average else part.max((2, 3))
    return out


@pytest.mark.parametrize("average", [False, True], ids=["max", "average"])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 3, 2), (4, 3, 1), (5, 4, 2)]
)
def test_pooling_rounds_up_and_counts_as_caffe(
    kernel: int, stride: int, pad: int, average: bool, tmp_path: Path
) -> None:
    method = "AVE" if average else "MAX"
    files = net(tmp_path, pool(f"pool: {method} kernel_size: {kernel} stride: {stride} pad: {pad}"))
    model = oa.convert(*files, verify=False)
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 9)).astype(np.float32)
    (y,) = Session(model).run({"data": x}).values()
    np.testing.assert_allclose(y, caffe_pool(x, kernel, stride, pad, average), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("average", [False, True], ids=["max", "average"])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"),
    [(2, 2, 0), (2, 2, 1), (3, 2, 0), (3, 2, 1), (3, 3, 1), (3, 3, 2), (4, 3, 1), (5, 4, 2)],
)
def test_pooling_of_images_of_any_size(
    kernel: int, stride: int, pad: int, average: bool, tmp_path: Path
) -> None:
    method = "AVE" if average else "MAX"
    files = net(tmp_path, pool(f"pool: {method} kernel_size: {kernel} stride: {stride} pad: {pad}"))
    session = Session(oa.convert(*files, shapes={"data": (-1, 4, -1, -1)}, verify=False))
    for size in range(kernel, 15):
        x = np.random.default_rng(size).standard_normal((2, 4, size, size)).astype(np.float32)
        (y,) = session.run({"data": x}).values()
        expected = caffe_pool(x, kernel, stride, pad, average)
        assert y.shape == expected.shape, size
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_trainable_form_keeps_dropout_and_names(shared: Path) -> None:
    folder = shared / "samples/caffe/squeezenet11"
    model = oa.convert(
        folder / "deploy.prototxt", folder / "weights.caffemodel", trainable=True, verify=False
    )
    assert [n.op_type for n in model.graph].count("Dropout") == 1
    assert model.metadata.trainable is not None and "fire2/squeeze1x1.weight" in model.metadata.trainable
    mobile = shared / "samples/caffe/mobilenet_v1"
    normed = oa.convert(
        mobile / "deploy.prototxt", mobile / "weights.caffemodel", trainable=True, verify=False
    )
    norms = [n for n in normed.graph if n.op_type == "BatchNormalization"]
    assert len(norms) == 27
    assert all(n.attributes["momentum"].as_float() == pytest.approx(0.999) for n in norms)


def test_lenet_trains_on_real_digits(shared: Path) -> None:
    folder = shared / "samples/caffe/lenet"
    model = oa.convert(
        folder / "deploy.prototxt", folder / "weights.caffemodel", trainable=True, verify=False
    )
    model.metadata.preprocessing.scale = 1 / 256
    before = oa.evaluate(model, f"{shared}/data/mnist#0:1000").accuracy
    assert before is not None and before > 0.95  # the weights come trained
    history = oa.Trainer(model, optimizer=oa.optimizers.SGD(0.01)).fit(
        f"{shared}/data/mnist#0:2000", epochs=2
    )
    assert history.epochs[1].loss < history.epochs[0].loss


def test_the_descriptor_is_compiled_from_the_schema(tmp_path: Path) -> None:
    from google.protobuf import descriptor_pb2

    out = tmp_path / "caffe.desc"
    script = ROOT / "scripts/make_caffe_descriptor.sh"
    subprocess.run([script, out], check=True, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"})
    shipped = (ROOT / "onnxaccel/converters/caffe/caffe.desc").read_bytes()
    parse = descriptor_pb2.FileDescriptorSet.FromString
    assert parse(out.read_bytes()) == parse(shipped)
