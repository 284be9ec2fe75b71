"""Keras models, from files or live, with every weight under its own name.

The model is traced with its weights as arguments (``stateless_call``), so that they are inputs of the graph
while it is transformed: nothing can fold, merge or drop them, and their bytes stay out of every proto. At the
end they become initializers. Layers are traced as `layers` says.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxaccel.converters.contract import Arrays, Conversion, Options
from onnxaccel.converters.tensorflow import noise
from onnxaccel.converters.tensorflow.archive import check_keras
from onnxaccel.converters.tensorflow.bridge import import_tensorflow, quiet, to_onnx
from onnxaccel.converters.tensorflow.functions import finish, first_line, index_ranges, wide_indices
from onnxaccel.converters.tensorflow.graphs import unique
from onnxaccel.converters.tensorflow.interface import Interface, interface_of
from onnxaccel.converters.tensorflow.layers import full_precision, traceable
from onnxaccel.converters.tensorflow.weights import to_initializers
from onnxaccel.errors import ConversionError
from onnxaccel.files import scratch_folder
from onnxaccel.graph.model import Model

_WEIGHT = "onnxaccel_weight_"


def keras_file(path: Path, options: Options, suffix: str, source_format: str) -> Conversion:
    """A ``.keras`` archive or an HDF5 file with a whole model, whatever the file is called."""
    import_tensorflow()
    import keras

    check_keras(path, source_format, custom=options.custom_objects is not None)
    with scratch_folder() as folder, _custom_objects(options.custom_objects) as custom:
        link = folder / f"model{suffix}"  # Keras goes by the suffix
        os.symlink(path.resolve(), link)
        with quiet():
            try:
                model = keras.models.load_model(link, custom, compile=False, safe_mode=True)
            except Exception as error:  # Keras raises whatever its parsers raise
                model = _by_old_keras(link) if suffix == ".h5" else None
                if model is None:
                    raise ConversionError(f"{path}: {_explain(error)}") from None
    if not hasattr(model, "stateless_call"):
        from onnxaccel.converters.tensorflow.live import old_keras_model

        return old_keras_model(model, options, source_format)
    return keras_model(model, options, source_format)


@contextlib.contextmanager
def _custom_objects(module: str | None) -> Iterator[dict[str, Any] | None]:
    """The classes and functions of a module, by name; the working directory is searched too."""
    if module is None:
        yield None
        return
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module.removesuffix(".py").replace("/", "."))
    except Exception as error:  # the user's own code
        raise ConversionError(
            f"--custom-objects {module}: {type(error).__name__}: {first_line(error)}"
        ) from None
    finally:
        sys.path.remove("")
    own = {n: x for n, x in vars(found).items() if callable(x) and not n.startswith("_")}
    yield own


def _by_old_keras(path: Path) -> Any:
    """What tf_keras (Keras 2) makes of an HDF5 file that Keras 3 cannot read; None where it is missing."""
    try:
        import tf_keras
    except ImportError:
        return None
    try:
        return tf_keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception:  # Keras 3's own complaint says more
        return None


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    remedy = "build the model in Python and pass it to onnxaccel.convert"
    if "No model config found" in text or "model_config" in text:
        return f"holds weights without a model; {remedy}"
    if "Could not locate" in text or "Unknown layer" in text or "Could not interpret" in text:
        return (
            f"has custom objects that Keras does not know ({text[:120]}); name the module that defines them "
            f"with --custom-objects MODULE, or {remedy}"
        )
    if "Unrecognized keyword arguments" in text or "Error when deserializing" in text:
        return f"is of an older Keras ({text[:120]}); pip install tf_keras reads it"
    return f"Keras cannot read it, it may be damaged ({text[:160]})"


def keras_model(
    model: Any, options: Options, source_format: str = "keras-model", example: tuple[Any, ...] = ()
) -> Conversion:
    """A live Keras 3 model.

    Args:
        model: The model.
        options: What the user asked for; inputs and outputs are names of layers.
        source_format: The format's name, for the metadata.
        example: Inputs to call the model with, where it has no Input layers.
    """
    tf = import_tensorflow()
    import keras

    face = interface_of(model, options, example)
    model = face.model
    if options.trainable:
        noise.check(model, options)
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False) and getattr(layer, "states", None) is not None:
            raise ConversionError(
                f"layer {layer.name!r} is stateful: it carries its state from call to call, which a graph "
                "cannot; build the model with stateful=False"
            )
    own = weight_names(model)
    proto, output_names = _mapped(model, face, own, options)
    result = Model.from_proto(proto)
    used = to_initializers(result, own, options.trainable)
    finish(result, source_format)
    if options.trainable:
        wide_indices(result)
        count = len(model.trainable_variables)
        result.metadata.trainable = [name for name in list(own)[:count] if name in used]
    result.metadata.frozen = _restore_batch_norm(result, model, own)

    def reference(feed: Arrays) -> Arrays:
        arguments = [tf.constant(feed[name]) for name in face.names]
        with full_precision(model), quiet():
            results = model(*face.pack(arguments), **face.mode)
        return dict(zip(output_names, [r.numpy() for r in keras.tree.flatten(results)], strict=True))

    ranges = index_ranges(result)
    return Conversion(result, reference, f"Keras {keras.__version__}", ranges)


def _mapped(model: Any, face: Interface, own: dict[str, Any], options: Options) -> tuple[Any, list[str]]:
    """The ONNX proto, weights as inputs where they can be, and the names of its outputs."""
    weights, names = list(own.values()), list(own)
    layers = [layer.name for layer in getattr(model, "layers", [])]

    def cut(node: str) -> str | None:  # scopes are layers' names, numbered when a layer is called again
        parts = [re.sub(r"_\d+$", "", part) for part in node.split("/")] + node.split("/")
        return next((name for name in layers if name in parts), None)

    with quiet(), traceable(model, options.trainable):
        traced = _trace_with_weights(model, face, weights)
        output_names = face.output_names(traced.structured_outputs)
        _refuse_tables(model, traced)
        graph_def, tensors = _inlined(traced)
        options.progress("mapping operators (tf2onnx)")
        outputs = [t.name for t in traced.outputs]
        renamed = dict(zip([*tensors, *outputs], [*names, *face.names, *output_names], strict=True))
        try:
            proto = to_onnx(graph_def, tensors, outputs, options.opset, renamed, cut=cut)
            return proto, output_names
        except ConversionError as error:
            if options.trainable:
                raise ConversionError(f"{error}; without --trainable the model may convert") from None
        # some operators map only from constant weights
        constant = _trace(model, face)
        graph_def, tensors = _inlined(constant)
        outputs = [t.name for t in constant.outputs]
        renamed = dict(zip([*tensors, *outputs], [*face.names, *output_names], strict=True))
        return to_onnx(graph_def, tensors, outputs, options.opset, renamed, cut=cut), output_names


def _trace_with_weights(model: Any, face: Interface, weights: list[Any]) -> Any:
    """The model as a concrete function of its weights, the trained ones first, and its inputs."""
    import keras
    import tensorflow as tf

    weight_specs = [tf.TensorSpec(v.shape, v.dtype, name=f"{_WEIGHT}{i}") for i, v in enumerate(weights)]
    trained = len(model.trainable_variables)

    def forward(values: Any, inputs: Any) -> Any:
        outputs, _ = model.stateless_call(values[:trained], values[trained:], *face.pack(inputs), **face.mode)
        return keras.tree.map_structure(tf.identity, outputs)

    return _concrete(forward, weight_specs, face.specs)


def _trace(model: Any, face: Interface) -> Any:
    """The model as a concrete function of its inputs alone."""
    import keras
    import tensorflow as tf

    def forward(inputs: Any) -> Any:
        return keras.tree.map_structure(tf.identity, model(*face.pack(inputs), **face.mode))

    return _concrete(forward, face.specs)


def _concrete(function: Any, *specs: Any) -> Any:
    import tensorflow as tf

    try:
        return tf.function(function, jit_compile=False, autograph=False).get_concrete_function(*specs)
    except ConversionError:
        raise
    except Exception as error:  # a model is code, and raises what it likes
        lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
        places = [index for index, line in enumerate(lines) if "encountered when calling" in line]
        told = " ".join(line for line in lines[places[-1] if places else 0 :] if line)
        raise ConversionError(
            f"Keras cannot trace the model ({told[:240]}); a fixed size, --shape NAME=1,224,224,3, may help"
        ) from None


def _refuse_tables(model: Any, traced: Any) -> None:
    """Refuse look-up tables of strings and integers, which are no tensors; name the layer to cut behind."""
    if not any(tensor.dtype.name == "resource" for _, tensor in traced.graph.captures):
        return
    layers = [x for x in model._flatten_layers() if hasattr(x, "lookup_table") or hasattr(x, "_lookup_layer")]
    name = layers[0].name if layers else "the layer"
    kind = type(layers[0]).__name__ if layers else "a layer with a look-up table"
    raise ConversionError(
        f"layer {name!r} ({kind}) looks its input up in a table of strings or integers, which has no ONNX "
        f"form; cut the model behind it with --inputs {name}"
    )


def weight_names(model: Any) -> dict[str, Any]:
    """A Keras model's variables, trainable ones first, by their names in the converted graph."""
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    return dict(zip(unique([v.path for v in variables]), variables, strict=True))


def _inlined(concrete: Any) -> tuple[Any, list[str]]:
    """The traced graph with functions inlined and captured constants in it, and the names of its inputs."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
    return frozen.graph.as_graph_def(add_shapes=True), [t.name for t in concrete.inputs][: len(frozen.inputs)]


def _restore_batch_norm(model: Model, source: Any, own: dict[str, Any]) -> list[str]:
    """Give each BatchNormalization its layer's momentum; gives the names of those that stay frozen."""
    by_mean: dict[str, Any] = {}
    paths = {id(variable): name for name, variable in own.items()}
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
