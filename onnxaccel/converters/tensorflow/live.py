"""Live objects that are no Keras 3 models: tf.functions, tf.Modules, and models of tf_keras (Keras 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxaccel.converters.contract import Conversion, Options
from onnxaccel.converters.tensorflow.bridge import import_tensorflow, quiet
from onnxaccel.converters.tensorflow.functions import dynamic, first_line
from onnxaccel.converters.tensorflow.graphs import function
from onnxaccel.errors import ConversionError


def live_function(source: Any, options: Options, example: tuple[Any, ...]) -> Conversion:
    """A concrete function, a tf.function or a tf.Module that can be called."""
    tf = import_tensorflow()
    if hasattr(source, "structured_input_signature"):
        return function(source, options, "tf-function")
    if not callable(source):
        raise ConversionError(
            f"cannot convert a {type(source).__name__}; give a Keras model or a tf.function"
        )
    if not hasattr(source, "get_concrete_function"):
        source = tf.function(source.__call__, jit_compile=False)
    specs = [
        tf.TensorSpec([None, *np.shape(x)[1:]] if np.ndim(x) else [], np.asarray(x).dtype) for x in example
    ]
    try:
        with quiet():
            concrete = source.get_concrete_function(*specs)
    except Exception as error:  # a model is code, and raises what it likes
        hint = "" if example else "; give an example of its inputs, convert(function, x)"
        raise ConversionError(f"TensorFlow cannot trace it ({first_line(error)}){hint}") from None
    return function(concrete, options, "tf-function")


def old_keras_model(model: Any, options: Options, source_format: str) -> Conversion:
    """A model of tf_keras, traced in inference mode."""
    tf = import_tensorflow()
    if not getattr(model, "inputs", None):
        raise ConversionError("the tf_keras model has no inputs yet; give it an Input layer")
    names = [tensor.name.split(":")[0] for tensor in model.inputs]
    specs = [
        tf.TensorSpec(dynamic(options.shapes[n]) if n in options.shapes else t.shape, t.dtype, name=n)
        for n, t in zip(names, model.inputs, strict=True)
    ]

    def call(*inputs: Any) -> Any:
        return model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)

    with quiet():
        concrete = tf.function(call, jit_compile=False).get_concrete_function(*specs)
    return function(concrete, options, source_format, names)
