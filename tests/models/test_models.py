"""The reference models: three frameworks, one set of weights, the same numbers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from typer.testing import CliRunner

from onnxaccel import models
from onnxaccel.cli import app
from onnxaccel.errors import ConversionError, OutputError
from onnxaccel.models.reference import initial_weights, reference

CASES = [
    ("mlp", (784,), 10),
    ("mlp", (13,), 3),
    ("cifar_cnn", (3, 32, 32), 10),
    ("cifar_cnn", (1, 16, 24), 7),  # height and width differ: the order in which a framework flattens shows
    ("lenet", (1, 28, 28), 10),
    ("lenet", (3, 16, 24), 7),
    ("resnet18", (3, 16, 24), 7),
    ("resnet18", (1, 9, 7), 3),  # odd sizes, so that strided convolutions show where they pad
    ("mobilenet_v2", (3, 16, 24), 7),
    ("mobilenet_v2", (1, 9, 11), 3),  # OpenCV's depthwise convolution is wrong where images end 1 pixel wide
    ("unet", (3, 16, 24), 7),
    ("lstm_classifier", (9,), 7),
    ("transformer_encoder", (9,), 7),
]
EPSILON = 2e-5
"""Sums of a few thousand float32 products, taken in another order, differ by about this much."""


IN_CAFFE = [case for case in CASES if "caffe" in models.frameworks(case[0])]


def _samples(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((4, *shape)).astype(np.float32)


def _inputs(name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    vocabulary = models.inputs(name).vocabulary
    if vocabulary:
        return np.random.default_rng(7).integers(0, vocabulary, (4, *shape))
    return _samples(shape)


def _logits(name: str, shape: tuple[int, ...], classes: int) -> Any:
    module = models.build(name, "pytorch", 3, shape, classes).eval()
    with torch.no_grad():
        return module(torch.from_numpy(_inputs(name, shape))).numpy()


def _close(found: Any, wanted: Any) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= EPSILON * np.abs(wanted).max()


@pytest.mark.parametrize(("name", "shape", "classes"), CASES)
def test_keras_computes_what_torch_computes(name: str, shape: tuple[int, ...], classes: int) -> None:
    x = _inputs(name, shape)
    if x.ndim == 4:
        x = x.transpose(0, 2, 3, 1)
    found = models.build(name, "tensorflow", 3, shape, classes)(x, training=False).numpy()
    _close(found.transpose(0, 3, 1, 2) if found.ndim == 4 else found, _logits(name, shape, classes))


@pytest.mark.parametrize(("name", "shape", "classes"), IN_CAFFE)
def test_opencv_reads_the_caffe_files_and_computes_what_torch_computes(
    name: str, shape: tuple[int, ...], classes: int, tmp_path: Path
) -> None:
    exported = models.export(name, "caffe", tmp_path, seed=3, input_shape=shape, classes=classes)
    net = cv2.dnn.readNetFromCaffe(*exported.files[:2])
    net.setInput(_samples(shape))
    scores = np.exp(_logits(name, shape, classes).astype(np.float64))
    _close(net.forward("prob").reshape(scores.shape), scores / scores.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_has_its_weights_and_its_scale(name: str) -> None:
    """None is left at what the framework drew, and a rectified signal neither dies nor explodes."""
    model = reference.get(name)
    assert model is not None
    weights = initial_weights(model, 0, model.inputs.shape, 10)
    module = models.build(name, "pytorch")
    left = {key for key in module.state_dict() if not key.endswith("num_batches_tracked")}
    assert set(weights) == left
    scores = _logits(name, model.inputs.shape, 10)
    assert np.isfinite(scores).all() and 1e-3 < scores.std(axis=1).max() < 100


def test_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (models.build("mlp", "pytorch", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_saved_files_hold_the_weights(tmp_path: Path) -> None:
    exported = models.export("mlp", "pytorch", tmp_path, seed=5, input_shape=(9,), classes=3)
    program, state = exported.files
    built = models.build("mlp", "pytorch", 5, (9,), 3)
    saved = torch.load(state, weights_only=True)
    assert {key: value.tolist() for key, value in saved.items()} == {
        key: value.tolist() for key, value in built.state_dict().items()
    }
    x = torch.ones(3, 9)
    torch.testing.assert_close(torch.export.load(program).module()(x), built(x))


def test_keras_file_is_read_back_by_keras(tmp_path: Path) -> None:
    import keras

    (file,) = models.export("cifar_cnn", "tensorflow", tmp_path, seed=5).files
    loaded, built = keras.models.load_model(file), models.build("cifar_cnn", "tensorflow", 5)
    assert loaded.count_params() == built.count_params()
    x = _samples((32, 32, 3))
    np.testing.assert_array_equal(loaded(x, training=False).numpy(), built(x, training=False).numpy())


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="unknown reference model 'vgg'"):
        models.export("vgg", "pytorch", tmp_path)
    with pytest.raises(ConversionError, match="unknown framework 'jax'"):
        models.export("mlp", "jax", tmp_path)
    with pytest.raises(ConversionError, match="not defined in caffe; choose tensorflow or pytorch"):
        models.export("lstm_classifier", "caffe", tmp_path)
    with pytest.raises(ConversionError, match="of shape length, for instance 32, not 3,32,32"):
        models.build("transformer_encoder", "pytorch", input_shape=(3, 32, 32))
    with pytest.raises(ConversionError, match="features, for instance 784, not 1,28,28"):
        models.build("mlp", "pytorch", input_shape=(1, 28, 28))
    with pytest.raises(ConversionError, match="channels,height,width, for instance 3,32,32, not 64"):
        models.export("cifar_cnn", "caffe", tmp_path, input_shape=(64,))
    with pytest.raises(
        ConversionError, match="multiples of 4 and at least 16, for instance 1,28,28, not 1,8,8"
    ):
        models.export("lenet", "caffe", tmp_path, input_shape=(1, 8, 8))
    with pytest.raises(ConversionError, match="multiples of 4"):
        models.build("cifar_cnn", "tensorflow", input_shape=(3, 30, 30))
    with pytest.raises(ConversionError, match="at least 2 classes, not 1"):
        models.build("mlp", "pytorch", classes=1)
    with pytest.raises(ConversionError, match="no live form in caffe"):
        models.build("mlp", "caffe")
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        models.export("mlp", "caffe", tmp_path / "taken")
    assert {entry.name for entry in tmp_path.iterdir()} == {"taken"}


def test_command_line_lists_every_model() -> None:
    result = CliRunner().invoke(app, ["models", "list", "--json"])
    assert result.exit_code == 0
    found = {entry["name"]: entry for entry in json.loads(result.stdout)}
    assert list(found) == models.names()
    assert found["unet"]["frameworks"] == ["tensorflow", "pytorch", "caffe"]
    assert found["unet"]["targets"] == "pixels" and found["unet"]["input_shape"] == [3, 32, 32]
    assert found["lstm_classifier"]["frameworks"] == ["tensorflow", "pytorch"]
    assert found["lstm_classifier"]["inputs"] == "tokens" and found["lstm_classifier"]["vocabulary"] == 1000


def test_command_line_exports_without_warnings(tmp_path: Path) -> None:
    """An LSTM's flat weights make torch.export warn of what does not matter here."""
    command = ["models", "export", "lstm_classifier", "--framework", "pytorch", "--input-shape", "7"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = CliRunner().invoke(app, [*command, "-o", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert [Path(file).name for file in json.loads(done.stdout)["files"]] == [
        "lstm_classifier.pt2",
        "lstm_classifier.pth",
    ]
    refused = CliRunner().invoke(
        app, ["models", "export", "mlp", "--framework", "caffe", "--input-shape", "a"]
    )
    assert refused.exit_code == 2 and "64 or 3,32,32" in " ".join(refused.output.split())


def test_the_page_has_every_model() -> None:
    rows = []
    for name in models.names():
        inputs = models.inputs(name)
        below = f", below {inputs.vocabulary}" if inputs.vocabulary else ""
        sample = f"{inputs.kind} {','.join(map(str, inputs.shape))}{below}"
        rows.append(
            f"| `{name}` | {sample} | {models.targets(name)} | {', '.join(models.frameworks(name))} |"
        )
    page = Path(__file__).parents[2] / "docs/models.md"
    assert "|---|---|---|---|\n" + "\n".join(rows) + "\n\n" in page.read_text()
