"""Detectors: priors and boxes against a real Caffe's, rows compared as a set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel.converters.caffe.reference import Forward, RealCaffe, caffe_home
from onnxaccel.errors import ConversionError
from onnxaccel.runtime.session import Session
from tests.converters.caffe.case import caffemodel, inputs, layer, remembered

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Net:
    """A network with weights and feed, and the blobs that a real Caffe is asked for."""

    prototxt: str
    feed: dict[str, Array]
    output: str
    blobs: dict[str, list[Array]] = field(default_factory=dict)

    def write(self, folder: Path) -> list[Path]:
        files = [folder / "net.prototxt"]
        files[0].write_text(self.prototxt)
        if self.blobs:
            files.append(folder / "net.caffemodel")
            files[1].write_bytes(caffemodel(self.blobs))
        return files


@pytest.fixture(scope="module")
def by_caffe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """What a real Caffe gives for each network, or gave before."""
    home = caffe_home()
    if home is None:
        return {name: remembered(f"detection/{name}", [net.output])[net.output] for name, net in NETS.items()}
    return ask_caffe(RealCaffe(home), tmp_path_factory.mktemp("nets"))


def ask_caffe(caffe: RealCaffe, folder: Path) -> dict[str, Array]:
    """The output of each network, all in one process."""
    passes = []
    for number, net in enumerate(NETS.values()):
        (folder / str(number)).mkdir()
        prototxt, *weights = net.write(folder / str(number))
        passes.append(Forward(prototxt, weights[0] if weights else None, net.feed, (net.output,)))
    found = {}
    for (name, net), result in zip(NETS.items(), caffe.run(passes), strict=True):
        assert isinstance(result, dict), f"Caffe itself fails on {name}: {result}"
        found[name] = result[net.output]
    return found


FOUR = "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
PRIORS = {
    "one size": f"min_size: 30 flip: true clip: false {FOUR}",
    "sizes and ratios": "min_size: 30.7 min_size: 60 max_size: 60 max_size: 111.5 aspect_ratio: 2 "
    "aspect_ratio: 3 aspect_ratio: 2 flip: true clip: true variance: 0.1",
    "no flip": "min_size: 16 max_size: 20 aspect_ratio: 0.5 flip: false clip: false step: 16 offset: 0.3",
    "steps and image size": "min_size: 16 flip: true clip: false step_h: 10 step_w: 20 img_h: 80 img_w: 120",
    "default variance": "min_size: 8 aspect_ratio: 1 flip: true clip: true img_size: 100",
}


def prior_net(settings: str) -> Net:
    text = inputs(data=(1, 3, 64, 96), conv=(1, 8, 5, 7))
    text += layer("PriorBox", "conv data", "p", f"prior_box_param {{ {settings} }}")
    feed = {"data": np.zeros((1, 3, 64, 96), np.float32), "conv": np.zeros((1, 8, 5, 7), np.float32)}
    return Net(text, feed, "p")


DETECTION = (
    "detection_output_param {{ num_classes: {classes} keep_top_k: {keep} confidence_threshold: {conf} "
    "{more} nms_param {{ {nms} }} }}"
)
BOXES: dict[str, dict[str, Any]] = {
    "corner": {"nms": "nms_threshold: 0.45"},
    "centre size": {"more": "code_type: CENTER_SIZE", "nms": "nms_threshold: 0.45 top_k: 40", "keep": 20},
    "corner size": {"more": "code_type: CORNER_SIZE", "nms": "nms_threshold: 0.3 top_k: 200", "keep": 200},
    "variance in target": {
        "more": "code_type: CENTER_SIZE variance_encoded_in_target: true",
        "nms": "nms_threshold: 0.5 top_k: 10",
    },
    "boxes per class": {
        "more": "code_type: CENTER_SIZE share_location: false",
        "nms": "nms_threshold: 0.45 top_k: 30",
        "keep": 25,
    },
    "no background": {
        "more": "background_label_id: -1 share_location: false",
        "nms": "nms_threshold: 0.6 top_k: 50",
        "keep": 30,
    },
    "other background": {"more": "background_label_id: 2", "nms": "nms_threshold: 0.6 top_k: 50", "keep": 30},
    "high threshold": {"conf": 0.6, "nms": "nms_threshold: 0.45"},
    "nothing found": {"conf": 2.0, "nms": "nms_threshold: 0.45"},
    "keep one": {"nms": "nms_threshold: 0.45", "keep": 1},
}


def box_net(name: str, images: int) -> Net:
    chosen = {"classes": 4, "keep": -1, "conf": 0.25, "more": "", **BOXES[name]}
    priors, classes = 60, chosen["classes"]
    kinds = classes if "share_location: false" in chosen["more"] else 1
    text = inputs(loc=(2, priors * kinds * 4), conf=(2, priors * classes), prior=(1, 2, priors * 4))
    text += layer("DetectionOutput", "loc conf prior", "d", DETECTION.format(**chosen))
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((priors, 2, 2)), 1) * 0.5 + 0.2
    scores = np.exp(rng.standard_normal((images, priors, classes)) * 2)
    feed = {
        "loc": (rng.standard_normal((images, priors * kinds * 4)) * 0.3).astype(np.float32),
        "conf": (scores / scores.sum(-1, keepdims=True)).reshape(images, -1).astype(np.float32),
        "prior": np.stack([corners.reshape(-1), np.full(priors * 4, 0.2)])[None].astype(np.float32),
    }
    return Net(text, feed, "d")


def in_order(rows: Array) -> Array:
    flat = rows.reshape(-1, 7)
    return flat[np.lexsort(flat.T[::-1])]


def test_a_threshold_that_shrinks_is_refused(tmp_path: Path) -> None:
    prototxt = tmp_path / "net.prototxt"
    prototxt.write_text(
        inputs(loc=(1, 16), conf=(1, 8), prior=(1, 2, 16))
        + layer(
            "DetectionOutput",
            "loc conf prior",
            "d",
            DETECTION.format(classes=2, keep=-1, conf=0, more="", nms="eta: 0.5"),
        )
    )
    with pytest.raises(ConversionError, match=r"'d' \(DetectionOutput, line 4\).*eta 0.5"):
        oa.convert(prototxt, verify=False)


def ssd() -> tuple[str, dict[str, list[Array]]]:
    """A small SSD on two feature maps, as SSD's own prototxts write it, with random weights."""
    rng = np.random.default_rng(1)
    blobs: dict[str, list[Array]] = {}
    classes, text = 5, inputs(data=(1, 3, 64, 64))

    def conv(name: str, bottom: str, inner: int, outer: int, stride: int = 1) -> str:
        weight = rng.standard_normal((outer, inner, 3, 3)) * np.sqrt(2 / (9 * inner))
        blobs[name] = [weight.astype(np.float32), (rng.standard_normal(outer) * 0.1).astype(np.float32)]
        settings = f"num_output: {outer} kernel_size: 3 stride: {stride} pad: 1"
        return layer("Convolution", bottom, name, f"convolution_param {{ {settings} }}")

    for name, bottom, inner, outer, stride in (("c1", "data", 3, 8, 4), ("c2", "c1", 8, 12, 2)):
        text += conv(name, bottom, inner, outer, stride) + layer("ReLU", name, name, name=f"{name}_relu")
    order = "permute_param { order: 0 order: 2 order: 3 order: 1 }"
    for source, channels, small in (("c1", 8, 12), ("c2", 12, 28)):
        for kind, width in (("loc", 4), ("conf", classes)):
            name = f"{source}_{kind}"
            text += conv(name, source, channels, 4 * width)
            text += layer("Permute", name, f"{name}_perm", order) + layer(
                "Flatten", f"{name}_perm", f"{name}_flat"
            )
        settings = f"min_size: {small} max_size: {2 * small} aspect_ratio: 2 flip: true clip: false {FOUR}"
        text += layer("PriorBox", f"{source} data", f"{source}_prior", f"prior_box_param {{ {settings} }}")
    for kind, axis in (("loc_flat", 1), ("conf_flat", 1), ("prior", 2)):
        text += layer("Concat", f"c1_{kind} c2_{kind}", kind, f"concat_param {{ axis: {axis} }}")
    rows = f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {classes} }} }}"
    text += layer("Reshape", "conf_flat", "conf_rows", rows)
    text += layer("Softmax", "conf_rows", "conf_prob", "softmax_param { axis: 2 }")
    text += layer("Flatten", "conf_prob", "conf_out")
    settings = DETECTION.format(
        classes=classes,
        keep=50,
        conf=0.3,
        more="code_type: CENTER_SIZE",
        nms="nms_threshold: 0.45 top_k: 100",
    )
    text += layer(
        "DetectionOutput", "loc_flat conf_out prior", "detections", settings + " include { phase: TEST }"
    )
    return text, blobs


SSD_TEXT, SSD_BLOBS = ssd()
NETS = {
    **{f"priors: {name}": prior_net(settings) for name, settings in PRIORS.items()},
    **{f"boxes: {name}, {images}": box_net(name, images) for name in BOXES for images in (1, 3)},
    "ssd": Net(
        SSD_TEXT,
        {"data": np.random.default_rng(2).standard_normal((2, 3, 64, 64)).astype(np.float32)},
        "detections",
        SSD_BLOBS,
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_are_constants_equal_to_caffe_s(name: str, by_caffe: dict[str, Array], tmp_path: Path) -> None:
    net, expected = NETS[f"priors: {name}"], by_caffe[f"priors: {name}"]
    model = oa.convert(*net.write(tmp_path), verify=False)
    ours = Session(model).run(net.feed)["p"]
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
    assert {node.op_type for node in model.graph} <= {"Identity"}


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("name", BOXES)
def test_boxes_equal_caffe_s(name: str, images: int, by_caffe: dict[str, Array], tmp_path: Path) -> None:
    net, expected = NETS[f"boxes: {name}, {images}"], by_caffe[f"boxes: {name}, {images}"]
    ours = Session(oa.convert(*net.write(tmp_path), verify=False)).run(net.feed)["d"]
    assert ours.shape == expected.shape
    np.testing.assert_allclose(in_order(ours), in_order(expected), rtol=1e-5, atol=1e-6)
    if name == "nothing found":
        assert ours[0, 0].tolist() == [[i, *[-1.0] * 6] for i in range(images)]
    else:  # by image, by label, the best first
        keys = [(row[0], row[1], -row[2]) for row in ours[0, 0]]
        assert keys == sorted(keys)


def test_an_ssd_gives_caffe_s_boxes(by_caffe: dict[str, Array], tmp_path: Path) -> None:
    net, expected = NETS["ssd"], by_caffe["ssd"]
    gated = caffe_home() is not None
    model = oa.convert(*net.write(tmp_path), verify=gated)  # the gate takes rows as a set
    error = model.metadata.max_relative_error
    assert not gated or (error is not None and error < 1e-4)
    assert "NonMaxSuppression" in {node.op_type for node in model.graph}
    ours = Session(model).run(net.feed)["detections"]
    assert ours.shape == expected.shape and ours.shape[2] > 10
    np.testing.assert_allclose(in_order(ours), in_order(expected), rtol=1e-4, atol=1e-5)
