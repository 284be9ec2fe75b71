"""Keras models, from files or live, with every weight under its own name.

The model is traced with its weights as arguments (``stateless_call``), so that they are inputs of the graph
while it is transformed: nothing can fold, merge or drop them, and their bytes stay out of every proto. At the
end they become initializers. BatchNormalization is traced as TensorFlow's fused operator and Dropout leaves a
mark, so that both arrive in ONNX as nodes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.converters.contract import Arrays, Conversion, Options
from onnxaccel.converters.tensorflow.bridge import DROPOUT, import_tensorflow, quiet, to_onnx
from onnxaccel.converters.tensorflow.graphs import dynamic, finish
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import attribute
from onnxaccel.graph.model import Model, name_of

PERMUTATION = "onnxaccel.permutation"
"""Key of the axes that a weight was transposed by, in the metadata of its initializer."""

_INPUT = "onnxaccel_input_"
_WEIGHT = "onnxaccel_weight_"


def keras_file(path: Path, options: Options, suffix: str, source_format: str) -> Conversion:
    """A ``.keras`` archive or an HDF5 file with a whole model, whatever the file is called."""
    import_tensorflow()
    import keras

    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{suffix}"  # Keras goes by the suffix
        os.symlink(path.resolve(), link)
        with quiet():
            try:
                model = keras.models.load_model(link, compile=False, safe_mode=True)
            except Exception as error:  # Keras raises whatever its parsers raise
                raise ConversionError(f"{path}: {_explain(error)}") from None
    return keras_model(model, options, source_format)


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    remedy = "build the model in Python and pass it to onnxaccel.convert"
    if "lambda" in text.lower():
        return f"has a Lambda layer, which is code from the file, so it is not loaded; {remedy}"
    if "No model config found" in text or "model_config" in text:
        return f"holds weights without a model; {remedy}"
    if "Could not locate class" in text or "Unknown layer" in text:
        return f"has a layer that Keras does not know ({text[:120]}); {remedy}"
    return f"Keras cannot read it, it may be damaged ({text[:160]})"


def keras_model(model: Any, options: Options, source_format: str = "keras-model") -> Conversion:
    """A live Keras 3 model."""
    tf = import_tensorflow()
    if not getattr(model, "built", False) or not getattr(model, "inputs", None):
        raise ConversionError("the Keras model has no inputs yet; call it once, or give it an Input layer")
    if options.trainable:
        _refuse_other_noise(model)
    input_names = [_plain(t.name) for t in model.inputs]
    output_names = _output_names(model)
    specs = [
        tf.TensorSpec(_shape(t, options.shapes.get(name)), t.dtype, name=f"{_INPUT}{i}")
        for i, (t, name) in enumerate(zip(model.inputs, input_names, strict=True))
    ]
    trained = list(model.trainable_variables)
    weights = list(weight_names(model).values())
    names = list(weight_names(model))
    with quiet(), _traceable_layers():
        traced = _trace_with_weights(model, specs, len(trained), weights)
        graph_def, tensors = _inlined(traced)
        options.progress("mapping operators (tf2onnx)")
        outputs = [t.name for t in traced.outputs]
        renamed = dict(zip([*tensors, *outputs], [*names, *input_names, *output_names], strict=True))
        try:
            proto = to_onnx(graph_def, tensors, outputs, options.opset, renamed)
        except ConversionError as error:
            if options.trainable:
                raise ConversionError(f"{error}; without --trainable the model may convert") from None
            # some layers (LSTM) map only from constant weights
            constant = _trace(model, specs)
            graph_def, tensors = _inlined(constant)
            outputs = [t.name for t in constant.outputs]
            renamed = dict(zip([*tensors, *outputs], [*input_names, *output_names], strict=True))
            proto = to_onnx(graph_def, tensors, outputs, options.opset, renamed)
    result = Model.from_proto(proto)
    used = _to_initializers(result, dict(zip(names, (np.asarray(v) for v in weights), strict=True)))
    finish(result, source_format)
    if options.trainable:
        result.metadata.trainable = [name for name in names[: len(trained)] if name in used]
    result.metadata.frozen = _restore_batch_norm(result, model, weights, names)

    def reference(feed: Arrays) -> Arrays:
        arguments = [tf.constant(feed[name]) for name in input_names]
        results = model(arguments if len(arguments) > 1 else arguments[0], training=False)
        return dict(zip(output_names, [r.numpy() for r in tf.nest.flatten(results)], strict=True))

    import keras

    return Conversion(result, reference, f"Keras {keras.__version__}")


def _trace_with_weights(model: Any, specs: list[Any], trained: int, weights: list[Any]) -> Any:
    """The model as a concrete function of its weights, the trained ones first, and its inputs."""
    import tensorflow as tf

    weight_specs = [tf.TensorSpec(v.shape, v.dtype, name=f"{_WEIGHT}{i}") for i, v in enumerate(weights)]

    def forward(values: Any, inputs: Any) -> Any:
        argument = inputs if len(inputs) > 1 else inputs[0]
        outputs, _ = model.stateless_call(values[:trained], values[trained:], argument, training=False)
        return tf.nest.map_structure(tf.identity, outputs)

    return _concrete(forward, weight_specs, specs)


def _trace(model: Any, specs: list[Any]) -> Any:
    """The model as a concrete function of its inputs alone."""
    import tensorflow as tf

    def forward(inputs: Any) -> Any:
        outputs = model(inputs if len(inputs) > 1 else inputs[0], training=False)
        return tf.nest.map_structure(tf.identity, outputs)

    return _concrete(forward, specs)


def _concrete(function: Any, *specs: Any) -> Any:
    import tensorflow as tf

    try:
        return tf.function(function, jit_compile=False).get_concrete_function(*specs)
    except Exception as error:  # a model is code, and raises what it likes
        raise ConversionError(f"Keras cannot trace the model ({str(error).splitlines()[0][:160]})") from None


def _refuse_other_noise(model: Any) -> None:
    """Refuse layers whose randomness in training would be lost; only plain Dropout is kept."""
    for layer in model._flatten_layers():
        kind = type(layer).__name__
        plain = kind == "Dropout" and getattr(layer, "noise_shape", None) is None
        rates = [getattr(layer, name, 0) for name in ("rate", "stddev", "dropout", "recurrent_dropout")]
        random = kind.startswith("Random") or any(isinstance(r, (int, float)) and r > 0 for r in rates)
        # attention layers keep their rate in an inner Dropout as well, which is a layer of its own here
        inner = any(type(child).__name__ == "Dropout" for child in layer._layers)
        if random and not plain and not inner:
            raise ConversionError(
                f"layer {layer.name!r} ({kind}) is random in training in a way that the trainable form does "
                "not keep; use Dropout without noise_shape, or convert without --trainable"
            )


def weight_names(model: Any) -> dict[str, Any]:
    """A Keras model's variables, trainable ones first, by their names in the converted graph."""
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    return dict(zip(_unique([v.path for v in variables]), variables, strict=True))


@contextmanager
def _traceable_layers() -> Iterator[None]:
    """Let BatchNormalization and Dropout trace as single operators while the block runs."""
    import keras
    import tensorflow as tf

    normal, dropout = keras.layers.BatchNormalization.call, keras.layers.Dropout.call
    function = tf.function

    def inlinable(*args: Any, **settings: Any) -> Any:  # grouped convolutions ask for XLA, an opaque call
        return function(*args, **{**settings, "jit_compile": False})

    def fused(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        rank, axis = len(inputs.shape), self.axis % len(inputs.shape)
        if axis != rank - 1 or mask is not None:
            return normal(self, inputs, training=False, mask=mask)
        channels = [inputs.shape[-1]]
        scale = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones(channels, inputs.dtype)
        offset = tf.convert_to_tensor(self.beta) if self.center else tf.zeros(channels, inputs.dtype)
        mean, var = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
        # the fused operator takes [N, H, W, C]: other ranks are folded into H
        dynamic = tf.shape(inputs)
        plane = inputs if rank == 4 else tf.reshape(inputs, [dynamic[0], -1, 1, channels[0]])
        out, *_ = tf.compat.v1.nn.fused_batch_norm(
            plane, scale, offset, mean, var, epsilon=self.epsilon, is_training=False
        )
        if rank != 4:
            out = tf.reshape(out, dynamic)
            out.set_shape(inputs.shape)
        return out

    def marked(self: Any, inputs: Any, training: Any = False) -> Any:
        if not self.rate or self.noise_shape is not None:
            return dropout(self, inputs, training=training)
        return tf.debugging.check_numerics(inputs, f"{DROPOUT}{self.rate}", name="dropout")

    keras.layers.BatchNormalization.call, keras.layers.Dropout.call = fused, marked
    tf.function = inlinable
    try:
        yield
    finally:
        keras.layers.BatchNormalization.call, keras.layers.Dropout.call = normal, dropout
        tf.function = function


def _inlined(concrete: Any) -> tuple[Any, list[str]]:
    """The traced graph with functions inlined and captured constants in it, and the names of its inputs."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
    return frozen.graph.as_graph_def(add_shapes=True), [t.name for t in concrete.inputs][: len(frozen.inputs)]


def _to_initializers(model: Model, values: dict[str, npt.NDArray[Any]]) -> set[str]:
    """Turn the inputs that are weights into initializers; gives the names of those the graph uses.

    A Transpose that alone reads a weight, from Keras's layout to ONNX's, is applied to the weight itself.
    """
    graph = model.graph
    used = set()
    for value in list(graph.inputs):
        name = name_of(value)
        if name not in values:
            continue
        graph.inputs.remove(value)
        if not value.uses():
            continue
        used.add(name)
        data = values[name]
        readers = [node for node, _ in value.uses()]
        if len(readers) == 1 and readers[0].op_type == "Transpose" and data.ndim > 2:
            turned = readers[0].outputs[0]
            if not turned.is_graph_output():
                perm = attribute(readers[0], "perm")
                data = np.ascontiguousarray(data.transpose(perm))
                value.metadata_props[PERMUTATION] = " ".join(map(str, perm))
                ir.convenience.replace_all_uses_with(turned, value)
                graph.remove(readers[0], safe=True)
        value.const_value = ir.tensor(data, name=name)
        value.shape, value.type = ir.Shape(data.shape), ir.TensorType(ir.DataType.from_numpy(data.dtype))
        graph.register_initializer(value)
    return used


def _restore_batch_norm(model: Model, source: Any, weights: list[Any], names: list[str]) -> list[str]:
    """Give each BatchNormalization its layer's momentum; gives the names of those that stay frozen."""
    by_mean: dict[str, Any] = {}
    paths = {id(v): name for v, name in zip(weights, names, strict=True)}
    for layer in source._flatten_layers():
        if type(layer).__name__ == "BatchNormalization":
            by_mean[paths[id(layer.moving_mean)]] = layer
    frozen = []
    for node in model.graph:
        if node.op_type != "BatchNormalization":
            continue
        mean = node.inputs[3]
        layer = by_mean.get(mean.name or "") if mean is not None else None
        if layer is None or not layer.trainable:
            frozen.append(node.name or "")
        else:
            node.attributes["momentum"] = ir.AttrFloat32("momentum", float(layer.momentum))
    return frozen


def _output_names(model: Any) -> list[str]:
    import tensorflow as tf

    names = [name for name in getattr(model, "output_names", [])]
    count = len(tf.nest.flatten(model.outputs))
    return _unique(names) if len(names) == count else [f"output{i}" for i in range(count)]


def _shape(tensor: Any, given: Any) -> list[int | None]:
    return list(tensor.shape) if given is None else dynamic(given)


def _plain(name: str) -> str:
    return name.split(":")[0]


def _unique(names: list[str]) -> list[str]:
    """Names made distinct by a number where two are equal."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        result.append(f"{name}_{count}" if count else name)
    return result
