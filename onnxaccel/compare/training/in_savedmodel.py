"""TensorFlow's side of a training where the source is a SavedModel: its signature under a gradient tape."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.compare.training.curve import are_probabilities, in_turns
from onnxaccel.compare.training.in_tensorflow import loss_of, optimizer_of, quiet_tensorflow
from onnxaccel.errors import ConversionError

Array = npt.NDArray[Any]


class Side:
    """See `onnxaccel.compare.training.curve`; what was frozen or dropped when it was saved stays so."""

    axis = -1

    def __init__(self, setup: dict[str, Any], x: Array, y: Array) -> None:
        tf = quiet_tensorflow(setup)
        self.notes: list[str] = []
        self._model = tf.saved_model.load(setup["files"][0])
        signatures = dict(self._model.signatures)
        if not signatures:
            raise ConversionError("the SavedModel has no signature to train through")
        signature = signatures.get("serving_default") or next(iter(signatures.values()))
        weights = list(signature.trainable_variables)
        name, *others = signature.structured_input_signature[1]
        if not weights or others:
            raise ConversionError("the SavedModel has no variable that is trained, or takes several inputs")
        self._forward: Any = lambda batch: next(iter(signature(**{name: batch}).values()))
        probabilities = setup["labels"] and are_probabilities(self.scores(x), self.axis)
        loss, optimizer = loss_of(setup["loss"], not probabilities), optimizer_of(setup)
        optimizer.build(weights)

        def step(inputs: Any, targets: Any) -> Any:
            with tf.GradientTape() as tape:
                value = loss(targets, self._forward(inputs))
            optimizer.apply(tape.gradient(value, weights), weights)
            return value

        self._step = tf.function(step, jit_compile=setup["mode"] == "xla")

    def ready(self, x: Array, y: Array) -> Any:
        """The batch as tensors."""
        import tensorflow as tf

        return tf.constant(x), tf.constant(y)

    def step(self, batch: Any) -> float:
        """One step."""
        return float(self._step(*batch))

    def timed(self, batches: list[Any]) -> Any:
        """Steps on these batches."""
        return in_turns(self.step, batches)

    def scores(self, x: Array) -> Array:
        """The scores of the signature."""
        import tensorflow as tf

        found: Array = np.asarray(self._forward(tf.constant(x)))
        return found
