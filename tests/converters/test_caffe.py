"""Caffe networks against the results of a real Caffe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel.converters.caffe.schema import message
from onnxaccel.converters.gate import relative_error
from onnxaccel.errors import AccelError, ConversionError, MissingWeights
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


DENSE = (
    'layer { name: "x" type: "InnerProduct" bottom: "data" top: "x" inner_product_param { num_output: 2 } }'
)
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


LAYERS: dict[str, tuple[str, dict[str, list[Any]], Any]] = {
    "power": ('type: "Power" power_param { power: 2 scale: 3 shift: 1 }', {}, lambda x: (1 + 3 * x) ** 2),
    "exp": ('type: "Exp" exp_param { base: 2 scale: 0.5 shift: 1 }', {}, lambda x: 2 ** (1 + 0.5 * x)),
    "bnll": ('type: "BNLL"', {}, lambda x: np.log1p(np.exp(x))),
    "elu": ('type: "ELU" elu_param { alpha: 0.3 }', {}, lambda x: np.where(x > 0, x, 0.3 * np.expm1(x))),
    "scale": (
        'type: "Scale" scale_param { bias_term: true }',
        {"l": [np.arange(4.0), np.ones(4)]},
        lambda x: x * np.arange(4.0).reshape(4, 1, 1) + 1,
    ),
    "bias": (
        'type: "Bias" bias_param { axis: 2 num_axes: -1 }',
        {"l": [np.eye(9)]},
        lambda x: x + np.eye(9),
    ),
    "permute": (
        'type: "Permute" permute_param { order: 0 order: 2 order: 3 }',
        {},
        lambda x: x.transpose(0, 2, 3, 1),
    ),
    "flatten": ('type: "Flatten" flatten_param { axis: 2 }', {}, lambda x: x.reshape(len(x), 4, 81)),
    "reshape": (
        'type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 3 } }',
        {},
        lambda x: x.reshape(len(x), -1, 3),
    ),
    "batch_norm": (
        'type: "BatchNorm" batch_norm_param { eps: 0.01 }',
        {"l": [np.arange(4.0) * 2, np.arange(1.0, 5.0) * 2, np.array([2.0])]},
        lambda x: (
            (x - np.arange(4.0).reshape(4, 1, 1)) / np.sqrt(np.arange(1.0, 5.0).reshape(4, 1, 1) + 0.01)
        ),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_follows_caffe_s_formula(name: str, tmp_path: Path) -> None:
    body, blobs, expected = LAYERS[name]
    files = net(tmp_path, f'layer {{ name: "l" bottom: "data" top: "l" {body} }}', blobs)
    model = oa.convert(*files, verify=False)
    for batch in (1, 3):
        x = np.random.default_rng(0).standard_normal((batch, 4, 9, 9)).astype(np.float32)
        (y,) = Session(model).run({"data": x}).values()
        np.testing.assert_allclose(y, expected(x), rtol=1e-5, atol=1e-5)


def test_old_networks_are_upgraded(tmp_path: Path) -> None:
    prototxt = tmp_path / "old.prototxt"
    prototxt.write_text("""
        input: "data" input_dim: 1 input_dim: 4 input_dim: 1 input_dim: 1
        layers { name: "ip" type: INNER_PRODUCT bottom: "data" top: "ip" blobs_lr: 1 blobs_lr: 2
                 inner_product_param { num_output: 3 } }
        layers { name: "act" type: TANH bottom: "ip" top: "ip" }
        layers { name: "loss" type: SOFTMAX_LOSS bottom: "ip" bottom: "label" top: "loss"
                 include { phase: TRAIN } }
    """)
    proto = message("NetParameter")()
    layer = proto.layers.add(name="ip")
    weight, bias = np.arange(12, dtype=np.float32).reshape(3, 4) / 12, np.ones(3, np.float32)
    layer.blobs.add(num=1, channels=1, height=3, width=4, data=weight.ravel())
    layer.blobs.add(num=1, channels=1, height=1, width=3, data=bias)
    (tmp_path / "old.caffemodel").write_bytes(proto.SerializeToString())
    model = oa.convert(prototxt, tmp_path / "old.caffemodel", verify=False)
    x = np.ones((2, 4, 1, 1), np.float32)
    np.testing.assert_allclose(
        Session(model).run({"data": x})["ip"], np.tanh(x.reshape(2, 4) @ weight.T + 1), rtol=1e-6
    )


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


@pytest.mark.parametrize(
    ("layers", "blobs", "kind", "message_"),
    [
        (
            'layer { name: "x" type: "Nonsense" bottom: "data" top: "x" }',
            None,
            ConversionError,
            r"'x' \(Nonsense, line 4\)",
        ),
        ('layer { name: "x" type: "ReLU" bottom: "dta" top: "x" }', None, ConversionError, "bottom 'dta'"),
        ('layer { name: "x" type "ReLU" }', None, ConversionError, r"net.prototxt:4:\d+"),
        (
            'layer { name: "x" bogus_param { a: 1 } }',
            None,
            ConversionError,
            r"net.prototxt:4:\d+.*bogus_param",
        ),
        (
            DENSE,
            None,
            MissingWeights,
            "no weights for it",
        ),
        (
            DENSE,
            {"x": [np.zeros((2, 5)), np.zeros(2)]},
            MissingWeights,
            r"shape \[2, 5\], the layer needs \[2, 324\]",
        ),
        (pool("kernel_size: 2 stride: 3"), None, ConversionError, "result is undefined"),
    ],
)
def test_bad_networks_are_one_clear_error(
    layers: str, blobs: Any, kind: type[AccelError], message_: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message_) as caught:
        oa.convert(*net(tmp_path, layers, blobs))
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_refused(tmp_path: Path, shared: Path) -> None:
    folder = shared / "samples/caffe/lenet"
    path = tmp_path / "short.caffemodel"
    path.write_bytes((folder / "weights.caffemodel").read_bytes()[:100_000])
    with pytest.raises(ConversionError, match="damaged or truncated"):
        oa.convert(folder / "deploy.prototxt", path)


def test_the_descriptor_is_compiled_from_the_schema(tmp_path: Path) -> None:
    from google.protobuf import descriptor_pb2

    out = tmp_path / "caffe.desc"
    script = ROOT / "scripts/make_caffe_descriptor.sh"
    subprocess.run([script, out], check=True, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"})
    shipped = (ROOT / "onnxaccel/converters/caffe/caffe.desc").read_bytes()
    parse = descriptor_pb2.FileDescriptorSet.FromString
    assert parse(out.read_bytes()) == parse(shipped)
