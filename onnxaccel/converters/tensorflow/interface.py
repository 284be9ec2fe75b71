"""What a Keras model takes and gives: names, shapes, and how its arguments are packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxaccel.converters.contract import Options
from onnxaccel.converters.tensorflow.functions import dynamic
from onnxaccel.converters.tensorflow.graphs import unique
from onnxaccel.errors import ConversionError


@dataclass
class Interface:
    """How a Keras model is called.

    Attributes:
        model: The model.
        names: Names of its inputs, flat.
        specs: TensorFlow's specification of each.
        pack: From flat tensors to the model's positional arguments.
        outputs: Names of its outputs, where the model has them.
    """

    model: Any
    names: list[str]
    specs: list[Any]
    pack: Callable[[Sequence[Any]], Sequence[Any]]
    outputs: list[str]

    @property
    def mode(self) -> dict[str, bool]:
        """What tells the model that this is inference, where it takes that."""
        return {"training": False} if getattr(self.model, "_call_has_training_arg", True) else {}

    def output_names(self, results: Any) -> list[str]:
        """A name for each output, from the structure that the model returned."""
        import keras

        count = len(keras.tree.flatten(results))
        if isinstance(results, dict) and len(results) == count:
            return [str(key) for key in sorted(results)]
        if len(self.outputs) == count:
            return unique(self.outputs)
        return [f"output{i}" for i in range(count)]


def interface_of(model: Any, options: Options, example: tuple[Any, ...]) -> Interface:
    """Read a model's interface off its Input layers, off an example, or off the shapes it was built with.

    Raises:
        ConversionError: The model was never called, and there is no example.
    """
    import keras

    if options.inputs or options.outputs:
        model = _cut(model, options)
    if example:
        return _from_arguments(model, example, options)
    if getattr(model, "inputs", None) and getattr(model, "built", False):
        structure = getattr(model, "_inputs_struct", model.inputs)
        names = [tensor.name.split(":")[0] for tensor in model.inputs]
        single = not keras.tree.is_nested(structure)

        def pack(flat: Sequence[Any]) -> Sequence[Any]:
            return [flat[0] if single else keras.tree.pack_sequence_as(structure, list(flat))]

        specs = [
            _spec(name, tensor.shape, tensor.dtype, options)
            for name, tensor in zip(names, model.inputs, strict=True)
        ]
        return Interface(model, names, specs, pack, list(getattr(model, "output_names", [])))
    shapes = getattr(model, "_build_shapes_dict", None)
    if getattr(model, "built", False) and shapes and len(shapes) == 1:
        (shape,) = shapes.values()
        if shape and all(isinstance(d, int) or d is None for d in shape):
            return _from_arguments(model, (np.zeros([d or 1 for d in shape], np.float32),), options)
    raise ConversionError(
        "the Keras model has no inputs yet; pass an example of its input, convert(model, x), or give it an "
        "Input layer"
    )


def _from_arguments(model: Any, example: tuple[Any, ...], options: Options) -> Interface:
    """The interface of a call with these arguments; first dimensions are the batch."""
    import keras

    flat = [np.asarray(x) for x in keras.tree.flatten(list(example))]
    keys = sorted(example[0]) if len(example) == 1 and isinstance(example[0], dict) else []
    names = [str(key) for key in keys]
    if len(names) != len(flat):
        names = ["input"] if len(flat) == 1 else [f"input_{i}" for i in range(len(flat))]
    if not getattr(model, "built", False):
        model(*example)

    def pack(tensors: Sequence[Any]) -> Sequence[Any]:
        packed: Sequence[Any] = keras.tree.pack_sequence_as(list(example), list(tensors))
        return packed

    specs = [
        _spec(name, [None, *array.shape[1:]] if array.ndim else [], array.dtype.name, options)
        for name, array in zip(names, flat, strict=True)
    ]
    return Interface(model, names, specs, pack, [])


def _spec(name: str, shape: Sequence[int | None], dtype: str, options: Options) -> Any:
    import tensorflow as tf

    given = options.shapes.get(name)
    dims = list(shape) if given is None else dynamic(given)
    if dtype == "float64":
        dtype = "float32"
    return tf.TensorSpec(dims, dtype, name=f"onnxaccel_input_{name}".replace(":", "_").replace("/", "_"))


def _cut(model: Any, options: Options) -> Any:
    """The part of a functional model between named layers."""
    import keras

    layers = {layer.name: layer for layer in getattr(model, "layers", [])}
    names = [name.removesuffix(":0") for name in [*options.inputs, *options.outputs]]
    missing = [name for name in names if name not in layers]
    if missing or not getattr(model, "inputs", None):
        known = ", ".join(list(layers)[:12])
        raise ConversionError(
            f"there is no layer {missing[0]!r} to cut the model at; it has {known}"
            if missing
            else "only functional and sequential Keras models can be cut; pass the part as a model"
        )
    inputs = [layers[name.removesuffix(":0")].output for name in options.inputs] or model.inputs
    outputs = [layers[name.removesuffix(":0")].output for name in options.outputs] or model.outputs
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs if len(outputs) > 1 else outputs[0])
