"""TensorFlow as its users run it: Keras, tf.function, XLA, SavedModels, graphs of TensorFlow 1, and Lite."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxaccel.compare.native.common import Array, Run, by_name, steps
from onnxaccel.files import scratch_folder


def candidate(setup: Mapping[str, Any]) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """See `onnxaccel.compare.native.common`; "format", "files" and "mode" say what to run."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    tf.config.threading.set_intra_op_parallelism_threads(setup["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)
    run = _FORMATS[setup["format"]](tf, setup)
    return steps(setup, run), {"versions": {"tensorflow": tf.__version__}}


def _keras(tf: Any, setup: Mapping[str, Any]) -> Run:
    import keras

    suffix = ".keras" if setup["format"] == "keras" else ".h5"
    with scratch_folder() as folder:
        link = folder / f"model{suffix}"  # Keras goes by the suffix
        link.symlink_to(Path(setup["files"][0]).resolve())
        try:
            model = keras.models.load_model(link, compile=False, safe_mode=True)
        except Exception:
            if suffix == ".keras":
                raise
            import tf_keras  # an HDF5 file of Keras 2

            model = tf_keras.models.load_model(link, compile=False, safe_mode=True)
    own = [tensor.name.split(":")[0] for tensor in model.inputs]
    structure = getattr(model, "_inputs_struct", model.inputs)
    single = len(own) == 1 and not isinstance(structure, dict)

    def pack(flat: Sequence[Any]) -> Any:
        ordered = by_name(setup["names"], own, flat)
        return ordered[0] if single else keras.tree.pack_sequence_as(structure, ordered)

    if setup["mode"] == "keras":
        return lambda feed: [*map(_array, keras.tree.flatten(model.predict_on_batch(pack(feed))))]
    return _traced(tf, lambda *flat: model(pack(flat), training=False), setup)


def _saved_model(tf: Any, setup: Mapping[str, Any]) -> Run:
    path = setup["files"][0]
    try:
        loaded = tf.saved_model.load(path)
    except AttributeError:  # slots of an optimizer, which only the Keras that wrote them restores
        from onnxaccel.converters.tensorflow.graphs import only_tensors

        with only_tensors(Path(path)) as folder:
            loaded = tf.saved_model.load(str(folder))
    signatures = dict(loaded.signatures)
    signature = signatures.get("serving_default") or next(iter(signatures.values()))
    own = list(signature.structured_input_signature[1])

    def call(*flat: Any) -> Any:
        ordered = by_name(setup["names"], own, flat) if len(own) > 1 else flat
        return signature(**dict(zip(own, ordered, strict=True)))

    call.held = loaded  # type: ignore[attr-defined]  # its variables live as long as it does
    if setup["mode"] == "xla":
        return _traced(tf, call, setup)
    return lambda feed: _arrays(tf, call(*map(tf.constant, feed)))


def _graph(tf: Any, setup: Mapping[str, Any]) -> Run:
    from google.protobuf import text_format

    graph_def = tf.compat.v1.GraphDef()
    data = Path(setup["files"][0]).read_bytes()
    if data[:4096].isascii() and b"{" in data[:4096]:
        text_format.Parse(data.decode(), graph_def)
    else:
        graph_def.ParseFromString(data)
    imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
    function = imported.prune(_tensors(setup["names"]), _tensors(setup["outputs"]))
    if setup["mode"] == "xla":
        return _traced(tf, function, setup)
    return lambda feed: _arrays(tf, function(*map(tf.constant, feed)))


def _checkpoint(tf: Any, setup: Mapping[str, Any]) -> Run:
    path = Path(setup["files"][0])
    metas = (
        sorted(path.glob("*.meta")) if path.is_dir() else [Path(f"{path}.meta"), path.with_suffix(".meta")]
    )
    meta = next(file for file in reversed(metas) if file.is_file())
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        settings = v1.ConfigProto(
            intra_op_parallelism_threads=setup["threads"], inter_op_parallelism_threads=1
        )
        session = v1.Session(graph=graph, config=settings)
        v1.train.import_meta_graph(str(meta), clear_devices=True).restore(session, str(meta.with_suffix("")))
    names, outputs = _tensors(setup["names"]), _tensors(setup["outputs"])
    call = session.make_callable(outputs, feed_list=names)
    return lambda feed: call(*feed)


def _lite(tf: Any, setup: Mapping[str, Any]) -> Run:
    interpreter = tf.lite.Interpreter(model_path=setup["files"][0], num_threads=setup["threads"])
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    own = [detail["name"].removesuffix(":0") for detail in inputs]
    shapes: list[tuple[int, ...]] = []

    def run(feed: Sequence[Array]) -> list[Array]:
        arrays = by_name(setup["names"], own, feed)
        wanted = [array.shape for array in arrays]
        if wanted != shapes:
            for detail, shape in zip(inputs, wanted, strict=True):
                interpreter.resize_tensor_input(detail["index"], shape)
            interpreter.allocate_tensors()
            shapes[:] = wanted
        for detail, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        return [interpreter.get_tensor(detail["index"]) for detail in outputs]

    return run


_FORMATS: dict[str, Callable[[Any, Mapping[str, Any]], Run]] = {
    "keras": _keras,
    "keras-h5": _keras,
    "saved-model": _saved_model,
    "frozen-graph": _graph,
    "checkpoint": _checkpoint,
    "tflite": _lite,
}


def _traced(tf: Any, function: Callable[..., Any], setup: Mapping[str, Any]) -> Run:
    """A function as a graph, compiled by XLA where the mode says so; each batch size is traced anew."""
    traced = tf.function(function, jit_compile=setup["mode"] == "xla", autograph=False)
    return lambda feed: _arrays(tf, traced(*map(tf.constant, feed)))


def _arrays(tf: Any, results: Any) -> list[Array]:
    return [_array(result) for result in tf.nest.flatten(results)]


def _array(result: Any) -> Array:
    return result.numpy() if hasattr(result, "numpy") else result


def _tensors(names: Sequence[str]) -> list[str]:
    return [name if ":" in name else f"{name}:0" for name in names]
