"""TensorFlow's side of a training: the step that Keras's fit runs, as a tf.function or compiled by XLA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.compare.training.curve import are_probabilities
from onnxaccel.converters.tensorflow.bridge import import_tensorflow, quiet
from onnxaccel.errors import ConversionError
from onnxaccel.files import scratch_folder

Array = npt.NDArray[Any]


class Side:
    """See `onnxaccel.compare.training.curve`."""

    axis = -1

    def __init__(self, setup: dict[str, Any], x: Array, y: Array) -> None:
        quiet_tensorflow(setup)
        self.notes: list[str] = []
        self._model = _model(setup)
        self._planar = x.ndim == 4 and tuple(x.shape[1:]) != tuple(self._model.input_shape[1:])
        logits = not (setup["labels"] and are_probabilities(self.scores(x), self.axis))
        if not self._model.trainable_variables:
            raise ConversionError("the model has no weight that is trained")
        if any(variable.regularizer is not None for variable in self._model.trainable_variables):
            self.notes.append(
                "the Keras model's penalties on its weights are left out: no other side has them"
            )
            for variable in self._model.trainable_variables:
                variable.regularizer = None
        drops = _dropout(self._model, off=not setup["dropout"])
        self.notes += ["dropout"] if drops and setup["dropout"] else []
        self._model.compile(
            optimizer_of(setup),
            loss_of(setup["loss"], logits),
            jit_compile=setup["mode"] == "xla",
        )
        self._model.make_train_function()

    def ready(self, x: Array, y: Array) -> Any:
        """The batch as tensors, images as [N, H, W, C]."""
        import tensorflow as tf

        return tf.constant(self._laid_out(x)), tf.constant(y)

    def step(self, batch: Any) -> float:
        """One step; Keras gives the mean since its last reset, which is this step alone."""
        import tensorflow as tf

        self._model.reset_metrics()
        logs = self._model.train_function(iter(tf.data.Dataset.from_tensors(batch)))
        return float(np.ravel(logs["loss"])[0])

    def timed(self, batches: list[Any]) -> Any:
        """Steps on these batches, through a tf.data pipeline as in fit."""
        import tensorflow as tf

        stacked = tuple(tf.stack(parts) for parts in zip(*batches, strict=True))
        pipeline = iter(tf.data.Dataset.from_tensor_slices(stacked).repeat())
        return lambda: float(np.ravel(self._model.train_function(pipeline)["loss"])[0])

    def scores(self, x: Array) -> Array:
        """The scores in inference mode."""
        found: Array = np.asarray(self._model.predict_on_batch(self._laid_out(x)))
        return found

    def _laid_out(self, x: Array) -> Array:
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if self._planar else x


def _model(setup: dict[str, Any]) -> Any:
    """The Keras model."""
    if setup["reference"]:
        from onnxaccel import models

        return models.build(
            setup["reference"],
            "tensorflow",
            setup["seed"],
            tuple(setup["shape"]),
            setup["classes"],
        )
    suffix = {"keras": ".keras", "keras-h5": ".h5"}.get(setup["format"])
    if suffix is None:
        raise ConversionError(
            f"TensorFlow trains no {setup['format']} by itself, there is no model left in it that Keras "
            "could fit; give the .keras or .h5 file"
        )
    import keras

    path = Path(setup["files"][0]).resolve()
    with scratch_folder() as folder, quiet():
        link = folder / f"model{suffix}"  # Keras goes by the suffix
        link.symlink_to(path)
        return keras.models.load_model(link, compile=False, safe_mode=True)


def _dropout(model: Any, off: bool) -> bool:
    """Whether there is Dropout, in layers of its own or within others; ``off`` sets its rates to 0."""
    found = False
    for layer in model._flatten_layers():
        for name in ("rate", "dropout", "_dropout", "recurrent_dropout"):
            rate = getattr(layer, name, None)
            if isinstance(rate, float) and rate > 0:
                found = True
                if off:
                    setattr(layer, name, 0.0)
    return found


def quiet_tensorflow(setup: dict[str, Any]) -> Any:
    """TensorFlow with so many threads, and Dropout's masks from the seed."""
    tf = import_tensorflow()
    import keras

    tf.config.threading.set_intra_op_parallelism_threads(setup["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(setup["seed"])
    return tf


def loss_of(name: str, logits: bool) -> Any:
    """Keras's loss of this name; ``logits``: the scores are no probabilities yet."""
    import keras

    if name == "cross_entropy":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    if name == "bce_with_logits":
        return keras.losses.BinaryCrossentropy(from_logits=True)
    return keras.losses.MeanSquaredError()


def optimizer_of(setup: dict[str, Any]) -> Any:
    """Keras's optimizer by the names of `onnxaccel.compare.training.plan.Plan`.

    Raises:
        ConversionError: Keras's has another formula.
    """
    import keras

    name, given = setup["optimizer"], dict(setup["settings"])
    given["learning_rate"], decay = given.pop("lr"), given.pop("weight_decay")
    if name == "sgd":
        if decay and given["momentum"]:
            raise ConversionError(
                "Keras's SGD takes weight decay off the weights, outside of the momentum: another formula "
                "than torch's; compare with weight_decay 0"
            )
        return keras.optimizers.SGD(**given, weight_decay=decay or None)
    given["beta_1"], given["beta_2"], given["epsilon"] = (given.pop(k) for k in ("beta1", "beta2", "eps"))
    if name == "adamw":
        return keras.optimizers.AdamW(**given, weight_decay=decay)
    if decay:
        raise ConversionError(
            "Keras's Adam has no weight decay within the gradient; compare with adamw, or weight_decay 0"
        )
    return keras.optimizers.Adam(**given)
