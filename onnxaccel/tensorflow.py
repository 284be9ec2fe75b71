"""What a Keras user needs besides `onnxaccel.convert`: trained weights back in the Keras model."""

from __future__ import annotations

import os
from typing import Any

from onnxaccel.errors import MissingWeights, ModelError
from onnxaccel.graph.model import Model, tensor_of


def load_trained(keras_model: Any, trained: str | os.PathLike[str] | Model) -> Any:
    """Put the weights that onnxaccel trained back into the Keras model that they came from.

        model = oa.convert(keras_model, trainable=True)
        trainer = oa.Trainer(model)
        ...
        load_trained(keras_model, trainer.export("trained.onnx"))

    Trained weights and running statistics are assigned in place, in Keras's own layout; what the graph does
    not use stays as it is.

    Args:
        keras_model: The Keras model that was converted, or another of the same layers, names and sizes.
        trained: A model converted with ``trainable=True``, or the path of its file.

    Returns:
        ``keras_model``.

    Raises:
        ModelError: The file is no readable model, or no trainable form of a Keras model.
        MissingWeights: The Keras model lacks a weight of the graph, or has it in another shape; nothing is
            changed.
    """
    from onnxaccel.converters.tensorflow.keras import weight_names
    from onnxaccel.converters.tensorflow.weights import in_source_layout

    model = trained if isinstance(trained, Model) else Model.load(trained)
    if model.metadata.framework != "tensorflow" or model.metadata.trainable is None:
        raise ModelError("not a trainable form of a Keras model; convert it with trainable=True")
    own = weight_names(keras_model)
    for name in model.metadata.trainable:
        if name not in own:
            raise MissingWeights(f"{keras_model.name} has no weight {name!r}, which the model trained")
    weights = {
        name: in_source_layout(value, tensor_of(value))
        for name, value in model.graph.initializers.items()
        if name in own
    }
    for name, array in weights.items():
        if array.shape != tuple(own[name].shape):
            raise MissingWeights(
                f"{name!r} has shape {list(array.shape)} in the trained model, {list(own[name].shape)} in "
                f"{keras_model.name}"
            )
    for name, array in weights.items():
        own[name].assign(array)
    return keras_model
