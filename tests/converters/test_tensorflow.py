"""TensorFlow models against stored references, TensorFlow itself and, in training, Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel import models
from onnxaccel.errors import (
    AccelError,
    ConversionError,
    MissingWeights,
    ModelError,
    UnknownFormat,
)
from onnxaccel.graph import optimizers
from onnxaccel.graph.model import Model
from onnxaccel.runtime.session import Session

keras = pytest.importorskip("keras", reason="needs the extra tensorflow")

SAMPLES: list[tuple[str, str, dict[str, Any]]] = [
    ("kws_ds_cnn_s/model.pb", "ref_model_pb.npz", {"inputs": ["Mfcc:0"]}),
    ("kws_dnn_s/model.pb", "ref_model_pb.npz", {"inputs": ["Mfcc:0"]}),
    ("tiny_resnet8/model.h5", "ref_model_h5.npz", {"trainable": True}),
    ("tiny_ad01/model.h5", "ref_model_h5.npz", {"trainable": True}),
    ("emotion_mini_xception/model.hdf5", "ref_model_hdf5.npz", {"trainable": True}),
    ("tiny_kws/saved_model", "ref_saved_model.npz", {}),
    ("kws_basic_lstm_s/model.pb", "ref_model_pb.npz", {"inputs": ["Mfcc:0"]}),
]


def assert_equals_reference(model: Model, reference: Path, tolerance: float = 1e-4) -> None:
    """The model's outputs on the reference's inputs, relative to the reference's largest value."""
    ref = np.load(reference)
    feed = {name: ref[f"in{i}"] for i, name in enumerate(model.input_names())}
    outputs = Session(model).run(feed)
    for i, name in enumerate(model.output_names()):
        expected = ref[f"out{i}"]
        assert np.abs(outputs[name] - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("path", "reference", "options"), SAMPLES, ids=[s[0] for s in SAMPLES])
def test_sample(path: str, reference: str, options: dict[str, Any], shared: Path, tmp_path: Path) -> None:
    source = shared / "samples/tensorflow" / path
    model = oa.convert(source, **options)
    assert model.metadata.max_relative_error is not None and model.metadata.max_relative_error < 1e-4
    assert_equals_reference(model, source.parent / reference)
    if options.get("trainable"):
        link = tmp_path / "model.h5"  # Keras goes by the suffix
        link.symlink_to(source.resolve())
        original = keras.models.load_model(link, compile=False)
        assert model.metadata.trainable == [v.path for v in original.trainable_variables]


def test_live_model_is_the_same_network_in_both_frameworks() -> None:
    x = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    nchw = oa.convert(models.build("cifar_cnn", "pytorch"), _torch(x), trainable=True)
    nhwc = oa.convert(models.build("cifar_cnn", "tensorflow"), trainable=True)
    (a,) = Session(nchw).run({nchw.input_names()[0]: x}).values()
    (b,) = Session(nhwc).run({nhwc.input_names()[0]: x.transpose(0, 2, 3, 1)}).values()
    np.testing.assert_allclose(a, b, atol=1e-6)
    operators = [node.op_type for node in nhwc.graph]
    assert operators.count("Dropout") == 1 and operators.count("Conv") == 2
    assert operators.count("Transpose") <= 2  # at the edges: the input, and before Flatten


def _torch(x: Any) -> Any:
    import torch

    return torch.from_numpy(x)


def test_keras_archive(tmp_path: Path) -> None:
    models.export("mlp", "tensorflow", tmp_path)
    (tmp_path / "mlp.keras").rename(tmp_path / "anything")  # content tells, not the suffix
    model = oa.convert(tmp_path / "anything", trainable=True)
    assert model.metadata.format == "keras"
    assert model.metadata.trainable == [f"fc{i}/{part}" for i in (1, 2, 3) for part in ("kernel", "bias")]


def batch_norm_net(momentum: float = 0.9) -> Any:
    keras.utils.set_random_seed(0)
    frozen = keras.layers.Dense(12, name="frozen")
    frozen.trainable = False
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(6, 3, padding="same"),
            keras.layers.BatchNormalization(momentum=momentum, epsilon=1e-3),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            frozen,
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("name", ["cifar_cnn", "batch_norm"])
def test_training_equals_keras(name: str) -> None:
    rng = np.random.default_rng(0)
    if name == "batch_norm":
        network, shape, classes, from_logits = batch_norm_net(), (8, 8, 3), 4, False
    else:
        network, shape, classes, from_logits = models.build(name, "tensorflow"), (32, 32, 3), 10, True
        network.get_layer(index=6).rate = 0.0  # the two frameworks draw different masks
    trainer = oa.Trainer(
        oa.convert(network, trainable=True), optimizer=optimizers.SGD(0.01, momentum=0.9), ep="cpu"
    )
    network.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
    )
    worst = 0.0
    for _ in range(20):
        x, y = rng.random((16, *shape), np.float32), rng.integers(0, classes, 16)
        expected = network.train_on_batch(x, y)
        worst = max(worst, abs(trainer.step(x, y) - float(expected)))
    print(f"{name}: largest difference of the loss from Keras over 20 steps {worst:.1e}")
    assert worst < 1e-4
    trained = trainer.model().weights()
    for variable in network.variables:
        if variable.path in trained and variable.shape.rank == 1:  # biases, scales and running statistics
            np.testing.assert_allclose(trained[variable.path], variable.numpy(), rtol=1e-3, atol=1e-4)


def test_dropout_and_frozen_layers_are_kept_for_training() -> None:
    network = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dropout(0.3), keras.layers.Dense(2)]
    )
    model = oa.convert(network, trainable=True)
    (dropout,) = [node for node in model.graph if node.op_type == "Dropout"]
    assert float(model.weights()[dropout.inputs[1].name]) == pytest.approx(0.3)
    frozen = oa.convert(batch_norm_net(), trainable=True)
    assert len(frozen.metadata.trainable or []) == len(batch_norm_net().trainable_variables)
    assert not any("frozen" in name for name in frozen.metadata.trainable or [])


def _truncated(tmp: Path, shared: Path, sample: str) -> Path:
    path = tmp / "model"
    path.write_bytes((shared / "samples/tensorflow" / sample).read_bytes()[:3000])
    return path


@pytest.mark.parametrize(
    ("sample", "options", "kind", "message"),
    [
        ("kws_ds_cnn_s/model.pb", {}, ConversionError, "Mfcc.*--inputs Mfcc:0"),
        ("kws_ds_cnn_s/model.pb", {"inputs": ["Mfc:0"]}, ConversionError, "no operation 'Mfc'.*Mfcc"),
        ("kws_ds_cnn_s/model.pb", {"inputs": ["zzz"]}, ConversionError, "no operation 'zzz'.*Mfcc"),
        (
            "kws_dnn_s/model.pb",
            {"parameters": ["zzz"], "trainable": True, "inputs": ["Mfcc"]},
            ConversionError,
            "--parameters zzz: there is no such float constant, but ",
        ),
        ("tflm_hello/model_fp32.tflite", {"trainable": True}, ConversionError, "cannot be trained"),
        ("tflm_dtln/model_int8.tflite", {}, ConversionError, "UNIDIRECTIONAL_SEQUENCE_LSTM keeps a state"),
        ("kws_ds_cnn_s", {}, UnknownFormat, "a folder without saved_model.pb"),
    ],
)
def test_refusals_help(sample: str, options: Any, kind: type[AccelError], message: str, shared: Path) -> None:
    with pytest.raises(kind, match=message) as caught:
        oa.convert(shared / "samples/tensorflow" / sample, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sample", ["kws_ds_cnn_s/model.pb", "tiny_resnet8/model.h5"])
def test_truncated_files_are_one_clear_error(sample: str, tmp_path: Path, shared: Path) -> None:
    with pytest.raises(AccelError, match=r"damaged|truncated") as caught:
        oa.convert(_truncated(tmp_path, shared, sample))
    assert "\n" not in str(caught.value)


def test_lambda_layers_are_not_loaded(tmp_path: Path) -> None:
    network = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)])
    network.save(tmp_path / "m.keras")
    with pytest.raises(ConversionError, match="Lambda layer, which is code"):
        oa.convert(tmp_path / "m.keras")


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        tf.raw_ops.Betainc(a=x, b=x, x=x, name="strange")
    path = tmp_path / "model.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ConversionError, match=r"Betainc.*'strange'"):
        oa.convert(path)


@pytest.mark.parametrize(
    ("path", "reference"),
    [
        ("tflm_hello/model_fp32.tflite", "ref_model_fp32_tflite.npz"),
        ("tiny_ad01/model_fp32.tflite", "ref_model_fp32_tflite.npz"),
        ("tiny_resnet8/model_fp32.tflite", "ref_model_fp32_tflite.npz"),
        ("tiny_kws/model_fp32.tflite", "ref_model_fp32_tflite.npz"),  # dynamic range: 8-bit weights
        ("mp_face_detection_front/model.tflite", "ref_model_tflite.npz"),
    ],
)
def test_tensorflow_lite(path: str, reference: str, shared: Path) -> None:
    source = shared / "samples/tensorflow" / path
    model = oa.convert(source)
    assert model.metadata.format == "tflite"
    assert_equals_reference(model, source.parent / reference)


@pytest.mark.parametrize("name", ["tflm_micro_speech", "tiny_kws", "tiny_ad01", "tiny_resnet8"])
def test_quantized_models_are_equal_to_the_last_integer(name: str, shared: Path) -> None:
    source = shared / "samples/tensorflow" / name / "model_int8.tflite"
    model = oa.convert(source)
    assert model.metadata.max_relative_error == 0
    ref = np.load(source.parent / "ref_model_int8_tflite.npz")
    (steps,) = Session(model).run({model.input_names()[0]: ref["in0"]}).values()
    np.testing.assert_array_equal(steps, ref["out0"])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_truncated_tensorflow_lite(share: float, tmp_path: Path, shared: Path) -> None:
    whole = (shared / "samples/tensorflow/tiny_resnet8/model_fp32.tflite").read_bytes()
    (tmp_path / "model").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ConversionError, match="damaged or truncated") as caught:
        oa.convert(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_trained_weights_return_to_keras(tmp_path: Path) -> None:
    def network() -> Any:
        return keras.Sequential(
            [
                keras.Input((8, 8, 4)),
                keras.layers.Conv2D(4, 3, activation="gelu", name="square"),  # a wrong turn keeps its shape
                keras.layers.Conv2D(8, 3, groups=2, name="grouped"),
                keras.layers.BatchNormalization(name="norm"),
                keras.layers.SeparableConv2D(6, 2, name="separable"),
                keras.layers.Flatten(),
                keras.layers.Dense(3, name="head"),
            ]
        )

    keras.utils.set_random_seed(0)
    source, rng = network(), np.random.default_rng(0)
    trainer = oa.Trainer(oa.convert(source, trainable=True), optimizer=optimizers.SGD(0.05), ep="cpu")
    for _ in range(5):
        trainer.step(rng.random((8, 8, 8, 4), np.float32), rng.integers(0, 3, 8))
    path = trainer.export(tmp_path / "trained.onnx")
    x = rng.random((4, 8, 8, 4), np.float32)
    before = source(x, training=False).numpy()
    (expected,) = Session(Model.load(path)).run({trainer.model().input_names()[0]: x}).values()
    assert np.abs(before - expected).max() > 1e-2
    assert oa.tensorflow.load_trained(source, path) is source
    np.testing.assert_allclose(source(x, training=False).numpy(), expected, atol=1e-5)


def test_weights_of_another_network_are_refused() -> None:
    small, large = (
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(n, name="head")], name="net") for n in (2, 3)
    )
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="tail")], name="net")
    model = oa.convert(small, trainable=True)
    with pytest.raises(MissingWeights, match=r"head/kernel' has shape \[4, 2\].*\[4, 3\]"):
        oa.tensorflow.load_trained(large, model)
    with pytest.raises(MissingWeights, match="no weight 'net/head/kernel'"):
        oa.tensorflow.load_trained(other, model)
    with pytest.raises(ModelError, match="trainable=True"):
        oa.tensorflow.load_trained(small, oa.convert(small))


def test_dropout_within_attention_is_kept() -> None:
    x = keras.Input((8, 4))
    network = keras.Model(x, keras.layers.MultiHeadAttention(2, 4, dropout=0.2)(x, x))
    assert [n.op_type for n in oa.convert(network, trainable=True).graph].count("Dropout") == 1


# -- other formats ---------------------------------------------------------------------------------------


def tf1_network(folder: Path, training: bool) -> None:
    """A TF1 graph with reference and resource variables: checkpoint, frozen graph, SavedModel."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 6, 6, 2], "x")
        keep = v1.placeholder_with_default(1.0, [], "keep_prob")
        w = v1.get_variable("conv/w", [3, 3, 2, 4], initializer=v1.random_normal_initializer(0, 0.3, 1))
        b = v1.get_variable("conv/b", [4], initializer=v1.random_normal_initializer(0, 1, 2))
        flat = tf.reshape(tf.nn.relu(tf.nn.conv2d(x, w, 1, "SAME") + b), [-1, 144])
        w2 = v1.get_variable("fc/w", [144, 5], initializer=v1.random_normal_initializer(0, 0.1, 3))
        logits = tf.nn.bias_add(
            tf.matmul(v1.nn.dropout(flat, rate=1 - keep), w2),
            v1.get_variable("fc/b", [5], initializer=v1.random_normal_initializer(0, 1, 4)),
            name="logits",
        )
        if training:
            labels = v1.placeholder(tf.int64, [None], "labels")
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            )
            tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32), name="accuracy")
            v1.train.AdamOptimizer().minimize(loss, global_step=v1.train.get_or_create_global_step())
        saver = v1.train.Saver()
        with v1.Session(graph=graph) as session:
            session.run(v1.global_variables_initializer())
            saver.save(session, str(folder / "model.ckpt"), global_step=7)
            frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["logits"])
            (folder / "frozen.pb").write_bytes(frozen.SerializeToString())
            (folder / "frozen.pbtxt").write_text(str(frozen))
            (folder / "graph.pbtxt").write_text(str(graph.as_graph_def()))
            v1.saved_model.simple_save(session, str(folder / "saved"), {"x": x}, {"logits": logits})


@pytest.mark.parametrize("training", [False, True], ids=["inference graph", "training graph"])
def test_tf1_formats_are_one_network(training: bool, tmp_path: Path) -> None:
    tf1_network(tmp_path, training)
    x = np.random.default_rng(0).standard_normal((3, 6, 6, 2)).astype(np.float32)
    results = []
    for source, kind in [
        ("model.ckpt-7.meta", "checkpoint"),
        ("model.ckpt-7", "checkpoint"),
        ("model.ckpt-7.index", "checkpoint"),
        ("frozen.pb", "frozen-graph"),
        ("frozen.pbtxt", "frozen-graph"),
        ("saved", "saved-model"),
    ]:
        model = oa.convert(tmp_path / source, trainable=True)
        assert model.metadata.format == kind
        assert set(model.metadata.trainable or ()) == {"conv/w", "conv/b", "fc/w", "fc/b"}
        assert model.input_names() == ["x"] and model.output_names() == ["logits"]
        results.append(Session(model).run({"x": x})["logits"])
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-5)
    assert oa.convert(tmp_path / "frozen.pb", trainable=True, parameters=["fc/*"]).metadata.trainable == [
        "fc/w",
        "fc/b",
    ]
    with pytest.raises(ConversionError, match=r"variables have no values.*\.meta"):
        oa.convert(tmp_path / "graph.pbtxt")


def test_saved_model_keeps_variables_and_batch_norm(tmp_path: Path) -> None:
    network = batch_norm_net()
    network(np.random.default_rng(0).random((8, 8, 8, 3), np.float32), training=True)
    network.export(str(tmp_path / "model"), verbose=False)
    model = oa.convert(tmp_path / "model", trainable=True)
    assert model.metadata.trainable == [v.path for v in network.trainable_variables]
    found = [node for node in model.graph if node.op_type == "BatchNormalization"]
    assert [round(node.attributes["epsilon"].value, 6) for node in found] == [0.001, 0.001]
    trainer = oa.Trainer(model, optimizer=optimizers.SGD(0.01), ep="cpu")
    keras_trainer = oa.Trainer(oa.convert(network, trainable=True), optimizer=optimizers.SGD(0.01), ep="cpu")
    rng = np.random.default_rng(1)
    for _ in range(5):
        x, y = rng.random((8, 8, 8, 3), np.float32), rng.integers(0, 4, 8)
        assert trainer.step(x, y) == pytest.approx(keras_trainer.step(x, y), rel=1e-5)


def test_weights_of_a_loop_stay_constant_where_it_is_known_by_them(shared: Path) -> None:
    told: list[str] = []
    source = shared / "samples/tensorflow/kws_basic_lstm_s/model.pb"
    model = oa.convert(source, inputs=["Mfcc:0"], trainable=True, progress=told.append)
    assert len(model.metadata.trainable or ()) == 2 and any("weights of loops" in line for line in told)


def test_live_functions() -> None:
    import tensorflow as tf

    class Affine(tf.Module):
        def __init__(self) -> None:
            self.w = tf.Variable(tf.random.stateless_normal([4, 3], [1, 2]), name="w")
            self.b = tf.Variable(tf.ones(3), trainable=False, name="b")

        def __call__(self, x: Any) -> Any:
            return x @ self.w + self.b

    module, x = Affine(), np.ones((2, 4), np.float32)
    for source, example in [
        (module, (x,)),
        (tf.function(module.__call__), (x,)),
        (tf.function(module.__call__).get_concrete_function(tf.TensorSpec([None, 4])), ()),
    ]:
        model = oa.convert(source, *example, trainable=True)
        assert model.metadata.trainable == ["w"] and "b" in model.weights()
        (y,) = Session(model).run({model.input_names()[0]: x}).values()
        np.testing.assert_allclose(y, module(x).numpy(), atol=1e-5)
    with pytest.raises(ConversionError, match="give an example of its inputs"):
        oa.convert(tf.function(module.__call__))


class Doubled(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return x * 2.0


def test_custom_objects_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = keras.Sequential([keras.Input((3,)), Doubled(), keras.layers.Dense(2)])
    network.save(tmp_path / "m.keras")
    with pytest.raises(ConversionError, match="--custom-objects MODULE"):
        oa.convert(tmp_path / "m.keras")
    (tmp_path / "own_layers.py").write_text(
        "import keras\n\nclass Doubled(keras.layers.Layer):\n    def call(self, x):\n        return x * 2.0\n"
    )
    monkeypatch.chdir(tmp_path)
    model = oa.convert(tmp_path / "m.keras", custom_objects="own_layers", trainable=True)
    assert len(model.metadata.trainable or ()) == 2
    with pytest.raises(ConversionError, match="--custom-objects nothing_here: ModuleNotFoundError"):
        oa.convert(tmp_path / "m.keras", custom_objects="nothing_here")


def test_models_without_input_layers_take_an_example() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(x["a"]) + x["b"]

    example = {"a": np.ones((2, 4), np.float32), "b": np.ones((2, 3), np.float32)}
    model = oa.convert(Own(), example, trainable=True)
    assert model.input_names() == ["a", "b"] and len(model.metadata.trainable or ()) == 2
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(ConversionError, match="pass an example"):
        oa.convert(unbuilt)
    assert oa.convert(unbuilt, np.ones((2, 4), np.float32)).input_names() == ["input"]


def test_text_layers_name_the_cut() -> None:
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"], name="words")
    network = keras.Sequential(
        [keras.Input((3,), dtype="string"), lookup, keras.layers.Embedding(4, 2, name="table")]
    )
    with pytest.raises(ConversionError, match=r"layer 'words' \(StringLookup\).*--inputs words"):
        oa.convert(network)
    model = oa.convert(network, inputs=["words"], trainable=True)
    assert model.metadata.trainable == [v.path for v in network.trainable_variables]


def test_mixed_precision_converts_in_float32() -> None:
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        network = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    model = oa.convert(network, trainable=True)
    assert {array.dtype for array in model.weights().values()} == {np.dtype(np.float32)}
    assert network.layers[0].compute_dtype == "float16"  # the user's model is left as it was
