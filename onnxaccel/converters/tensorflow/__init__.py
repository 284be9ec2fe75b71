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
    if options.trainable:
        raise ConversionError(
            f"{path}: --trainable needs a Keras model; in a {detected.format} the parameters have "
            "lost their names. Without --trainable it converts for inference"
        )
    if detected.format == "frozen-graph":
        return graphs.frozen_graph(path, options)
    if detected.format == "saved-model":
        return graphs.saved_model(path, options)
    return tflite.tflite_file(path, options)


def convert_live(model: Any, example: tuple[Any, ...], options: Options) -> Conversion:
    """Convert a live Keras model; ``example`` is not needed.

    Raises:
        ConversionError: It is no Keras model, or cannot be traced.
        MissingDependency: tf2onnx is not installed.
    """
    from onnxaccel.converters.tensorflow import keras

    if not hasattr(model, "stateless_call"):
        raise ConversionError(f"cannot convert a {type(model).__name__}; give a Keras 3 model")
    return keras.keras_model(model, options)
