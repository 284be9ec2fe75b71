"""TensorFlow models: frozen graphs, SavedModels, Keras and TensorFlow Lite models, through tf2onnx."""

from __future__ import annotations

from typing import Any

from onnxaccel.converters.contract import Conversion, Options
from onnxaccel.converters.detect import Detected
from onnxaccel.errors import ConversionError


def convert_files(detected: Detected, options: Options) -> Conversion:
    """Convert a model file or folder.

    Raises:
        ConversionError: The model cannot be read or mapped.
        MissingDependency: TensorFlow or tf2onnx is not installed.
    """
    from onnxaccel.converters.tensorflow import graphs, keras, tflite

    path = detected.paths[0]
    if detected.format in ("keras", "keras-h5"):
        suffix = ".keras" if detected.format == "keras" else ".h5"
        return keras.keras_file(path, options, suffix, detected.format)
    if detected.format == "tflite":
        if options.trainable:
            raise ConversionError(
                f"{path}: TensorFlow Lite models are made for inference and cannot be trained; give the "
                "model that it was made from, or convert without --trainable"
            )
        return tflite.tflite_file(path, options)
    readers = {
        "frozen-graph": graphs.frozen_graph,
        "saved-model": graphs.saved_model,
        "checkpoint": graphs.checkpoint,
    }
    return readers[detected.format](path, options)


def convert_live(model: Any, example: tuple[Any, ...], options: Options) -> Conversion:
    """Convert a live Keras model, tf.function, concrete function or tf.Module.

    Args:
        model: What to convert.
        example: Example inputs, where the model does not know its inputs' shapes.
        options: What the user asked for.

    Raises:
        ConversionError: It cannot be called, or cannot be traced.
        MissingDependency: tf2onnx is not installed.
    """
    from onnxaccel.converters.tensorflow import keras, live

    if hasattr(model, "stateless_call"):
        return keras.keras_model(model, options, example=example)
    if type(model).__module__.split(".")[0] == "tf_keras" or hasattr(model, "_keras_api_names"):
        return live.old_keras_model(model, options, "keras-model")
    return live.live_function(model, options, example)
