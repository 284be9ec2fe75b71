"""Trainable forms of Keras models: equal to Keras's own training, and noise of the right kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel.errors import ConversionError
from onnxaccel.graph import optimizers
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.dropout import DRAWS
from onnxaccel.graph.model import Model
from onnxaccel.graph.normalize import normalize
from onnxaccel.graph.training_form import to_training_form
from onnxaccel.runtime.session import Session

keras = pytest.importorskip("keras", reason="needs the extra tensorflow")
layers = keras.layers


def series(*parts: Any) -> Any:
    return keras.Sequential([keras.Input((7, 5)), *parts])


def tokens(*parts: Any) -> Any:
    return keras.Sequential(
        [keras.Input((7,), dtype="int32"), layers.Embedding(9, 5, mask_zero=True), *parts]
    )


RECURRENT: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "LSTM": (lambda: series(layers.LSTM(4, return_sequences=True), layers.LSTM(3)), ["LSTM"] * 2),
    "LSTM, no bias, backwards": (lambda: series(layers.LSTM(4, use_bias=False, go_backwards=True)), ["LSTM"]),
    "LSTM, relu": (lambda: series(layers.LSTM(4, activation="relu")), ["LSTM"]),
    "GRU": (lambda: series(layers.GRU(4, return_sequences=True)), ["GRU"]),
    "GRU, reset before": (lambda: series(layers.GRU(4, reset_after=False)), ["GRU"]),
    "SimpleRNN": (lambda: series(layers.SimpleRNN(4)), ["RNN"]),
    "stacked cells": (lambda: series(layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)])), ["LSTM", "GRU"]),
    "Bidirectional": (
        lambda: series(layers.Bidirectional(layers.GRU(4, return_sequences=True), merge_mode="sum")),
        ["GRU"] * 2,
    ),
    "masked LSTM": (lambda: tokens(layers.LSTM(4)), ["LSTM"]),
    "masked, Bidirectional": (
        lambda: tokens(layers.Bidirectional(layers.LSTM(4, return_sequences=True)), layers.GRU(3)),
        ["LSTM"] * 2 + ["GRU"],
    ),
    "custom cell": (lambda: series(layers.RNN(layers.SimpleRNNCell(4, activation="gelu"))), []),
    "Conv1D": (
        lambda: series(
            layers.Conv1D(4, 3, strides=2, padding="same"),
            layers.SeparableConv1D(4, 2),
            layers.BatchNormalization(),
        ),
        [],
    ),
    "LayerNormalization": (lambda: series(layers.Dense(4), layers.LayerNormalization()), []),
    "BatchNormalization of another axis": (
        lambda: series(layers.Dense(4), layers.BatchNormalization(axis=1)),
        [],
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_training_equals_keras(name: str) -> None:
    """Loss over 5 steps, and every weight after them, back in Keras."""
    build, operators = RECURRENT[name]
    keras.utils.set_random_seed(0)
    network, rng = build(), np.random.default_rng(0)
    model = oa.convert(network, trainable=True)
    found = [node.op_type for node in model.graph]
    assert [op for op in found if op in ("LSTM", "GRU", "RNN")] == operators and "Loop" not in found
    assert model.metadata.trainable == [v.path for v in network.trainable_variables]
    trainer = oa.Trainer(model, loss="mse", optimizer=optimizers.SGD(0.05, momentum=0.9), ep="cpu")
    network.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    for _ in range(5):
        masked = network.inputs[0].dtype == "int32"
        x = rng.integers(0, 3, (6, 7)) if masked else rng.standard_normal((6, 7, 5))
        x = x.astype(network.inputs[0].dtype)
        y = rng.standard_normal((6, *network.outputs[0].shape[1:])).astype(np.float32)
        np.testing.assert_allclose(trainer.step(x, y), network.train_on_batch(x, y), rtol=1e-5)
    expected = [v.numpy() for v in network.variables]
    oa.tensorflow.load_trained(network, trainer.model())
    for variable, before in zip(network.variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), before, rtol=1e-3, atol=1e-5, err_msg=variable.path)


def in_training(model: Model, x: Any) -> Any:
    """The model's output in training mode."""
    trained = model.copy()
    normalize(trained)
    for carried in to_training_form(trained, Builder(trained.graph), seed=3):
        if carried.old.name == DRAWS:
            trained.graph.inputs.append(carried.old)
    feed = {model.input_names()[0]: x}
    if DRAWS in trained.input_names():
        feed[DRAWS] = np.array(1, np.uint64)
    return Session(trained).run(feed)[model.output_names()[0]]


def only(layer: Any, *shape: int) -> Model:
    network = keras.Sequential([keras.Input(shape), layer, layers.Dense(1, name="after")])
    network.get_layer("after").set_weights([np.ones((shape[-1], 1)), np.zeros(1)])
    cut = oa.convert(network, trainable=True)
    (product,) = [node for node in cut.graph if node.op_type in ("MatMul", "Gemm")]
    source = product.inputs[0]
    while source.producer() is not None and source.producer().op_type == "Reshape":
        source = source.producer().inputs[0]
    cut.graph.outputs[0] = source
    return cut


def test_dropout_keeps_and_scales() -> None:
    y = in_training(only(layers.Dropout(0.3), 200), np.ones((200, 200), np.float32))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((y > 0).mean() - 0.7) < 0.01


@pytest.mark.parametrize(
    ("layer", "shape", "shared"),
    [
        (layers.SpatialDropout1D(0.3), (30, 200), 1),
        (layers.Dropout(0.3, noise_shape=(None, 1, 200)), (30, 200), 1),
        (layers.Dropout(0.3, noise_shape=(None, 200, 1)), (200, 30), 2),
    ],
)
def test_shared_masks(layer: Any, shape: tuple[int, ...], shared: int) -> None:
    y = in_training(only(layer, *shape), np.ones((50, *shape), np.float32))
    assert np.ptp(y, axis=shared).max() == 0 and abs((y > 0).mean() - 0.7) < 0.02
    assert y.max() == pytest.approx(1 / 0.7)


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    x = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    y = in_training(only(layers.AlphaDropout(0.2), 300), x)
    alpha = 1.6732632423543772 * 1.0507009873554805
    scale = (0.8 * (1 + 0.2 * alpha**2)) ** -0.5
    dropped = np.isclose(y, scale * (0.2 * alpha - alpha), atol=1e-5)
    assert abs(dropped.mean() - 0.2) < 0.01
    np.testing.assert_allclose(y[~dropped], (scale * (x + 0.2 * alpha))[~dropped], atol=1e-5)
    assert abs(y.mean()) < 0.02 and abs(y.var() - 1) < 0.03


@pytest.mark.parametrize(
    ("layer", "deviation"),
    [(layers.GaussianNoise(0.5), 0.5), (layers.GaussianDropout(0.2), (0.2 / 0.8) ** 0.5)],
)
def test_gaussian_noise(layer: Any, deviation: float) -> None:
    y = in_training(only(layer, 300), np.ones((300, 300), np.float32))
    assert abs(y.mean() - 1) < 0.01 and abs(y.std() - deviation) < 0.01


def test_dropout_of_a_recurrent_layer_is_the_same_for_all_steps() -> None:
    network = series(layers.LSTM(4, dropout=0.4))
    kept = oa.convert(network, trainable=True)
    (dropout,) = [node for node in kept.graph if node.op_type == "Dropout"]
    assert [n.op_type for n in dropout.inputs[0].producer().predecessors()]
    with pytest.raises(ConversionError, match=r"recurrent_dropout=0\.2\) is random in training"):
        oa.convert(series(layers.LSTM(4, recurrent_dropout=0.2)), trainable=True)


def test_what_training_form_cannot_keep_is_refused_or_told() -> None:
    convolution = layers.SpectralNormalization(layers.Conv1D(3, 2), name="spectral")
    with pytest.raises(ConversionError, match=r"'spectral'.*changes its weights"):
        oa.convert(series(convolution), trainable=True)
    told: list[str] = []
    network = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.RandomFlip(name="flip"), layers.Flatten(), layers.Dense(2)]
    )
    oa.convert(network, trainable=True, progress=told.append)
    assert any("flip: augmentation" in line for line in told)
