"""Old and new forms of networks and weights, each read by a real Caffe as well."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel.converters.caffe.net import read_net
from onnxaccel.converters.caffe.reference import Forward, RealCaffe, caffe_home
from onnxaccel.converters.caffe.schema import message
from onnxaccel.errors import TrainingError
from onnxaccel.graph.losses import fitting
from onnxaccel.graph.model import unpacked
from onnxaccel.runtime.session import Session
from tests.converters.caffe.case import caffemodel, inputs, layer, remembered

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def random(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


DENSE = "inner_product_param { num_output: 3 }"
DENSE_BLOBS = [random(3, 16), random(3)]
IMAGE = {"data": random(2, 4, 2, 2)}

V0 = """
name: "old" input: "data" input_dim: 2 input_dim: 3 input_dim: 9 input_dim: 9
layers { layer { name: "pad" type: "padding" pad: 1 } bottom: "data" top: "pad" }
layers { layer { name: "conv" type: "conv" num_output: 4 kernelsize: 3 group: 1 stride: 2 blobs_lr: 1 }
  bottom: "pad" top: "conv" }
layers { layer { name: "relu" type: "relu" } bottom: "conv" top: "conv" }
layers { layer { name: "norm" type: "lrn" local_size: 3 alpha: 0.5 beta: 0.6 } bottom: "conv" top: "norm" }
layers { layer { name: "pool" type: "pool" pool: AVE kernelsize: 3 stride: 2 } bottom: "norm" top: "pool" }
layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.3 } bottom: "pool" top: "pool" }
layers { layer { name: "ip" type: "innerproduct" num_output: 5 biasterm: false } bottom: "pool" top: "ip" }
layers { layer { name: "prob" type: "softmax" } bottom: "ip" top: "prob" }
"""
V1 = """
name: "old" input: "data" input_shape { dim: 2 dim: 4 dim: 2 dim: 2 }
layers { name: "slice" type: SLICE bottom: "data" top: "a" top: "b" slice_param { slice_dim: 0 } }
layers { name: "ip1" type: INNER_PRODUCT bottom: "a" top: "u" inner_product_param { num_output: 3 }
  param: "w" param: "b" blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0 }
layers { name: "ip2" type: INNER_PRODUCT bottom: "b" top: "v" inner_product_param { num_output: 3 }
  param: "w" param: "b" blob_share_mode: PERMISSIVE }
layers { name: "act" type: TANH bottom: "u" top: "u" }
layers { name: "sum" type: ELTWISE bottom: "u" bottom: "v" top: "sum" eltwise_param { operation: PROD } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "sum" bottom: "label" include { phase: TRAIN } }
"""


def v0_weights() -> bytes:
    net = message("NetParameter")(name="old")
    for name, blobs in (("conv", [random(4, 3, 3, 3), random(1, 1, 1, 4)]), ("ip", [random(1, 1, 5, 16)])):
        connection = net.layers.add()
        connection.layer.name, connection.layer.type = name, "conv" if name == "conv" else "innerproduct"
        for blob in blobs:
            sizes = dict(zip(("num", "channels", "height", "width"), blob.shape, strict=True))
            connection.layer.blobs.add(data=blob.ravel(), **sizes)
    data: bytes = net.SerializeToString()
    return data


def v1_weights() -> bytes:
    net = message("NetParameter")(name="old")
    for name in ("ip1", "ip2"):
        old = net.layers.add(name=name)
        old.blobs.add(num=1, channels=1, height=3, width=16, data=DENSE_BLOBS[0].ravel())
        old.blobs.add(num=1, channels=1, height=1, width=3, data=DENSE_BLOBS[1])
    data: bytes = net.SerializeToString()
    return data


def hdf5(blobs: dict[str, list[Array]], path: Path) -> None:
    """Weights as Caffe's snapshot_format HDF5 has them."""
    with h5py.File(path, "w") as file:
        for name, arrays in blobs.items():
            for index, array in enumerate(arrays):
                file[f"data/{name}/{index}"] = array


@dataclass
class Net:
    """A network that both read: its prototxt, weights (bytes, or blobs for HDF5), feed and outputs."""

    prototxt: str
    weights: bytes | dict[str, list[Array]] | None
    feed: dict[str, Array]
    outputs: list[str]

    def write(self, folder: Path) -> list[Path]:
        files = [folder / "net.prototxt"]
        files[0].write_text(self.prototxt)
        if isinstance(self.weights, bytes):
            files.append(folder / "net.caffemodel")
            files[1].write_bytes(self.weights)
        elif self.weights is not None:
            files.append(folder / "net.caffemodel.h5")
            hdf5(self.weights, files[1])
        return files


FACTOR = np.array([2.0], np.float32)
NORM = {"bn": [random(4), np.arange(1, 5, dtype=np.float32), FACTOR], "scale": [random(4), random(4)]}
DATA = inputs(data=(2, 4, 2, 2))
RULES = (
    layer("InnerProduct", "data", "ip", DENSE)
    + layer("Sigmoid", "ip", "ip", 'include { phase: TEST stage: "deploy" }', "a")
    + layer("TanH", "ip", "ip", "include { phase: TRAIN }", "b")
    + layer("Power", "ip", "ip", "power_param { scale: 2 } exclude { max_level: 0 }", "c")
    + layer("Power", "ip", "ip", 'power_param { shift: 1 } include { not_stage: "deploy" }', "d")
    + layer("ReLU", "ip", "ip", "include { phase: TRAIN } include { min_level: 1 max_level: 3 }", "e")
)
NETS = {
    "V0": Net(V0, v0_weights(), {"data": random(2, 3, 9, 9)}, ["prob"]),
    "V1 with shared weights": Net(V1, v1_weights(), IMAGE, ["sum"]),
    "HDF5 weights": Net(
        DATA + layer("InnerProduct", "data", "ip", DENSE), {"ip": DENSE_BLOBS}, IMAGE, ["ip"]
    ),
    "weights of other layers": Net(
        DATA + layer("InnerProduct", "data", "ip", DENSE),
        caffemodel({"other": [random(7)], "ip": DENSE_BLOBS}),
        IMAGE,
        ["ip"],
    ),
    "rules: default state": Net(DATA + RULES, caffemodel({"ip": DENSE_BLOBS}), IMAGE, ["ip"]),
    "rules: a stage and a level": Net(
        'state { level: 2 stage: "deploy" stage: "x" }' + DATA + RULES,
        caffemodel({"ip": DENSE_BLOBS}),
        IMAGE,
        ["ip"],
    ),
    "several legacy inputs": Net(
        'input: "data" input_shape { dim: 2 dim: 4 dim: 2 dim: 2 } '
        'input: "more" input_shape { dim: 2 dim: 16 } '
        + layer("Flatten", "data", "flat")
        + layer("Eltwise", "flat more", "sum"),
        None,
        {**IMAGE, "more": random(2, 16)},
        ["sum"],
    ),
    "in place, then read twice": Net(
        DATA
        + layer("Power", "data", "p", "power_param { scale: 2 }")
        + layer("ReLU", "p", "p", name="r")
        + layer("TanH", "p", "t")
        + layer("Eltwise", "p t", "y"),
        None,
        IMAGE,
        ["y"],
    ),
    "BatchNorm and Scale": Net(
        DATA
        + layer("BatchNorm", "data", "bn")
        + layer("Scale", "bn", "bn", "scale_param { bias_term: true }", "scale"),
        caffemodel(NORM),
        IMAGE,
        ["bn"],
    ),
    "BatchNorm with two readers": Net(
        DATA
        + layer("BatchNorm", "data", "bn")
        + layer("Scale", "bn", "s", "scale_param { bias_term: true }", "scale")
        + layer("Eltwise", "bn s", "y"),
        caffemodel(NORM),
        IMAGE,
        ["y"],
    ),
    "constants and unread blobs": Net(
        DATA
        + layer(
            "DummyData",
            "",
            "two",
            "dummy_data_param { data_filler { value: 2 } shape { dim: 2 dim: 8 dim: 2 } }",
        )
        + layer("Reshape", "two", "like", "reshape_param { shape { dim: 2 dim: 4 dim: 2 dim: 2 } }")
        + layer("Eltwise", "data like", "y", "eltwise_param { operation: PROD }")
        + layer("Slice", "data", "half rest", "slice_param { slice_point: 2 }")
        + layer("Silence", "rest", "", name="quiet"),
        None,
        IMAGE,
        ["y", "half"],
    ),
    "a shared weight, once stored": Net(
        DATA
        + layer("InnerProduct", "data", "u", DENSE + ' param { name: "w" } param { name: "b" }')
        + layer("TanH", "data", "t")
        + layer("InnerProduct", "t", "v", DENSE + ' param { name: "w" } param { name: "b" }')
        + layer("Concat", "u v", "y"),
        {"u": DENSE_BLOBS},
        IMAGE,
        ["y"],
    ),
}


@pytest.fixture(scope="module")
def by_caffe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real Caffe gives for each network, or gave before."""
    home = caffe_home()
    if home is None:
        return {name: remembered(f"reading/{name}", net.outputs) for name, net in NETS.items()}
    return ask_caffe(RealCaffe(home), tmp_path_factory.mktemp("nets"))


def ask_caffe(caffe: RealCaffe, folder: Path) -> dict[str, Any]:
    """The outputs of each network, or why Caffe fails on it."""
    passes = []
    for number, net in enumerate(NETS.values()):
        (folder / str(number)).mkdir()
        prototxt, *weights = net.write(folder / str(number))
        passes.append(Forward(prototxt, weights[0] if weights else None, net.feed, tuple(net.outputs)))
    return dict(zip(NETS, caffe.run(passes), strict=True))


@pytest.mark.parametrize("name", NETS)
def test_network_is_read_as_by_caffe(name: str, by_caffe: dict[str, Any], tmp_path: Path) -> None:
    net, expected = NETS[name], by_caffe[name]
    assert isinstance(expected, dict), f"Caffe itself fails: {expected}"
    model = oa.convert(*net.write(tmp_path), verify=False)
    assert model.output_names() == net.outputs
    results = Session(model).run(net.feed)
    for output in net.outputs:
        assert results[output].shape == expected[output].shape
        np.testing.assert_allclose(results[output], expected[output], rtol=1e-5, atol=1e-6)


def test_stages_and_levels_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(DATA + RULES)

    def taken(*args: Any) -> str:
        return "".join(one.name for one in read_net(path, *args)[2:])

    assert taken("TEST") == "d"
    assert taken("TRAIN") == "bde"
    assert taken("TEST", 2, ["deploy"]) == "ace"


TRAIN_VAL = """
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TRAIN }}
  transform_param {{ scale: 0.5 mirror: true crop_size: 2 {mean} }}
  data_param {{ source: "train" batch_size: 9 }} }}
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TEST }}
  transform_param {{ scale: 0.5 crop_size: 2 {mean} }} data_param {{ source: "test" batch_size: 9 }} }}
layer {{ name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1" inner_product_param {{ num_output: 3 }} }}
layer {{ name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" inner_product_param {{ num_output: 3 }} }}
layer {{ name: "side" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" top: "side" loss_weight: 0.3 }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss"
  loss_param {{ ignore_label: 255 normalization: BATCH_SIZE }} }}
layer {{ name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy"
  include {{ phase: TEST }} }}
layer {{ name: "l1" type: "Silence" bottom: "label" }}
"""
TRAIN_VAL_BLOBS = {"ip1": DENSE_BLOBS, "ip2": [random(3, 3), random(3)]}


def train_val(folder: Path, mean: str = "") -> list[Path]:
    return Net(TRAIN_VAL.format(mean=mean), caffemodel(TRAIN_VAL_BLOBS), {}, []).write(folder)


def test_losses_become_the_training_head(tmp_path: Path) -> None:
    files, shapes = train_val(tmp_path), {"data": (1, 4, 2, 2)}
    model = oa.convert(*files, shapes=shapes, verify=False, trainable=True)
    assert model.input_names() == ["data"]
    assert model.output_names() == ["ip2"]  # ip1 is read by ip2, and the labels by heads only
    heads = {head["layer"]: head for head in model.metadata.heads}
    assert {name: (h["type"], h["loss_weight"], h["bottoms"]) for name, h in heads.items()} == {
        "side": ("SoftmaxWithLoss", pytest.approx(0.3), ["ip1", "label"]),
        "loss": ("SoftmaxWithLoss", 1.0, ["ip2", "label"]),
    }
    assert heads["loss"]["settings"] == {"ignore_label": 255, "normalization": "BATCH_SIZE"}
    both = oa.convert(*files, shapes=shapes, outputs=["loss", "side", "accuracy"], verify=False)
    assert both.input_names() == ["data", "label"]
    feed = {**IMAGE, "label": np.array([0, 2], np.float32)}
    results = Session(both).run(feed)
    assert {name: value.shape for name, value in results.items()} == {"loss": (), "side": (), "accuracy": ()}


@pytest.mark.parametrize("mean", ["values", "file", "missing file"])
def test_data_transformation_is_recorded(mean: str, tmp_path: Path) -> None:
    text = "mean_value: 3 mean_value: 4" if mean == "values" else 'mean_file: "mean.binaryproto"'
    image = random(4, 5, 5)
    if mean == "file":
        blob = message("BlobProto")(num=1, channels=4, height=5, width=5, data=image.ravel())
        (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    found = oa.convert(*train_val(tmp_path, text), shapes={"data": (1, 4, 2, 2)}, verify=False).metadata
    kept = found.preprocessing
    assert (kept.scale, kept.crop, kept.mirror, kept.layout, kept.channels) == (0.5, 2, True, "NCHW", "BGR")
    assert kept.mean == ([3.0, 4.0] if mean == "values" else None)
    if mean == "file":
        assert kept.mean_image is not None and not isinstance(kept.mean_image, str)
        np.testing.assert_array_equal(unpacked(kept.mean_image), image)
    else:
        assert kept.mean_image == ("mean.binaryproto" if mean == "missing file" else None)


def test_a_shared_weight_is_one_parameter(tmp_path: Path) -> None:
    model = oa.convert(*NETS["V1 with shared weights"].write(tmp_path), verify=False, trainable=True)
    assert model.metadata.trainable == ["ip1.weight", "ip1.bias"]


def test_a_loss_of_our_own_fits_the_head(tmp_path: Path) -> None:
    files = train_val(tmp_path)
    model = oa.convert(*files, shapes={"data": (1, 4, 2, 2)}, verify=False)
    assert fitting(model.metadata.heads) == ("cross_entropy", {"ignore_index": 255})
    assert fitting([]) == ("cross_entropy", {})
    with pytest.raises(TrainingError, match=r"trained with HingeLoss \(layer 'l'\)"):
        fitting([{"type": "HingeLoss", "layer": "l", "loss_weight": 1.0, "settings": {}}])


def test_train_takes_the_head_s_loss(tmp_path: Path) -> None:
    """Targets that are no class labels: cross entropy would refuse them."""
    text = (
        layer("HDF5Data", "", "data label", 'hdf5_data_param { source: "list" batch_size: 2 }')
        + layer("InnerProduct", "data", "ip", DENSE)
        + layer("EuclideanLoss", "ip label", "loss")
    )
    files = Net(text, caffemodel({"ip": DENSE_BLOBS}), {}, []).write(tmp_path)
    model = oa.convert(*files, shapes={"data": (1, 4, 2, 2)}, verify=False, trainable=True)
    model.save(tmp_path / "net.onnx")
    x = random(64, 4, 2, 2)
    np.savez(tmp_path / "set.npz", x=x, y=x.reshape(64, 16)[:, :3])
    arguments = ["train", "net.onnx", "--data", "set.npz", "--lr", "0.01", "--scale", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "onnxaccel", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    epochs = json.loads(done.stdout)["epochs"]
    assert epochs[-1]["loss"] < epochs[0]["loss"] and epochs[0]["accuracy"] is None


def test_a_layer_that_caffe_lacks_is_compared_with_opencv(tmp_path: Path) -> None:
    text = inputs(data=(2, 6, 4, 4)) + layer(
        "ShuffleChannel", "data", "y", "shuffle_channel_param { group: 3 }"
    )
    model = oa.convert(*Net(text, None, {}, []).write(tmp_path))
    assert model.metadata.max_relative_error == 0
