"""Keras's random layers in the trainable form: Dropout is the one operator whose training mode is switched.

Inference and training form differ in Dropout's mode alone (`graph.training_form`), so every other noise is
written in terms of it: ``Dropout(1)`` is 1 in inference, and 0 or 1 / (1 - rate) in training.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxaccel.converters.contract import Options
from onnxaccel.converters.tensorflow.operators import Writer, mark, marked
from onnxaccel.errors import ConversionError

_KEPT = frozenset(
    """Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianNoise GaussianDropout
    StochasticDepth""".split()
)
"""Random layers that the trainable form keeps."""

_AUGMENTING = ("Random", "MixUp", "CutMix", "AutoContrast", "AugMix", "RandAugment")
"""How the names of layers that augment images begin."""

_ALPHA = 1.6732632423543772848170429916717 * 1.0507009873554804934193349852946
"""Minus the value that AlphaDropout puts in the place of dropped ones (Klambauer et al., 2017)."""


def check(model: Any, options: Options) -> None:
    """Refuse layers whose randomness in training would be lost, and tell of augmentation, which is left out.

    Raises:
        ConversionError: A layer is random, or changes its weights, in a way that the trainable form cannot.
    """
    augmenting, unknown = [], []
    for layer in model._flatten_layers():
        kind = type(layer).__name__
        if kind in _KEPT:
            continue
        if kind.startswith(_AUGMENTING):
            augmenting.append(layer.name)
            continue
        if kind == "SpectralNormalization":
            raise ConversionError(
                f"layer {layer.name!r} (SpectralNormalization) changes its weights beside the gradient in "
                "training, which the trainable form cannot; convert without --trainable"
            )
        own = type(layer).__module__.split(".")[0] != "keras"
        if own and layer is not model and getattr(layer, "_call_has_training_arg", False):
            unknown.append(layer.name)
        rates = {n: getattr(layer, n, 0) for n in ("rate", "stddev", "dropout", "recurrent_dropout")}
        if kind in ("LSTM", "GRU", "SimpleRNN") or kind.endswith("Cell"):
            del rates["dropout"]  # the input's, which is kept
        random = [name for name, rate in rates.items() if isinstance(rate, (int, float)) and rate > 0]
        # attention layers keep their rate in an inner Dropout as well, which is a layer of its own here
        if random and not any(type(child).__name__ == "Dropout" for child in layer._layers):
            raise ConversionError(
                f"layer {layer.name!r} ({kind}, {random[0]}={rates[random[0]]}) is random in training in a "
                "way that the trainable form does not keep; set it to 0, or convert without --trainable"
            )
    if unknown:
        options.progress(f"{', '.join(unknown)}: custom layers keep their inference behaviour in training")
    if augmenting:
        options.progress(
            f"{', '.join(augmenting)}: augmentation is not part of the trainable form; augment the data"
        )


def patches(layers: Any) -> dict[Any, Any]:
    """What replaces the ``call`` of Keras's random layers, by class; ``layers`` is keras.layers."""

    def dropout(self: Any, inputs: Any, training: Any = False) -> Any:
        shape = getattr(self, "noise_shape", None)
        return _mark("dropout", inputs, self.rate, shape and [s or 0 for s in shape])

    def spatial(self: Any, inputs: Any, training: Any = False) -> Any:
        rank = len(inputs.shape)
        first = getattr(self, "data_format", None) == "channels_first"
        return shared_dropout(inputs, self.rate, [*range(2, rank)] if first else [*range(1, rank - 1)])

    def alpha(self: Any, inputs: Any, training: Any = False) -> Any:
        shape = self.noise_shape
        return _mark("alpha_dropout", inputs, self.rate, shape and [s or 0 for s in shape])

    def gaussian_noise(self: Any, inputs: Any, training: Any = False) -> Any:
        return _mark("gaussian_noise", inputs, self.stddev)

    def gaussian_dropout(self: Any, inputs: Any, training: Any = False) -> Any:
        return _mark("gaussian_dropout", inputs, self.rate)

    return {
        layers.Dropout: dropout,
        layers.SpatialDropout1D: spatial,
        layers.SpatialDropout2D: spatial,
        layers.SpatialDropout3D: spatial,
        layers.AlphaDropout: alpha,
        layers.GaussianNoise: gaussian_noise,
        layers.GaussianDropout: gaussian_dropout,
    }


def shared_dropout(inputs: Any, rate: float, axes: list[int]) -> Any:
    """Dropout whose mask is the same along ``axes``."""
    return _mark("dropout", inputs, rate, [1 if axis in axes else 0 for axis in range(len(inputs.shape))])


def _mark(kind: str, x: Any, rate: float, shape: Any = None) -> Any:
    if not rate:
        return x
    return mark(kind, [x], [(x.shape, x.dtype)], rate=float(rate), shape=shape or None)[0]


@marked("dropout")
def dropout(op: Writer) -> str:
    """Dropout; a mask of another shape is a Dropout of ones that the input is multiplied by."""
    if op.settings["shape"] is None:
        return _dropout(op, op.x[0], op.settings["rate"])
    return op.Mul(op.x[0], _dropout(op, _ones(op), op.settings["rate"]))


@marked("alpha_dropout")
def alpha_dropout(op: Writer) -> str:
    """``a (x k - alpha (1 - k)) + b`` in training with k in {0, 1}, x in inference."""
    (x,), rate = op.x, op.settings["rate"]
    one = op.like(1, x)
    kept = op.Min(_dropout(op, _ones(op), rate), one)
    scale = float(((1 - rate) * (1 + rate * _ALPHA**2)) ** -0.5)
    mode = _training(op)
    dropped = op.Sub(op.Mul(x, kept), op.Mul(op.Sub(one, kept), op.like(_ALPHA, x)))
    # a is 1 and b is 0 in inference
    a = op.Add(one, op.Mul(mode, op.like(scale - 1, x)))
    b = op.Mul(mode, op.like(scale * _ALPHA * rate, x))
    return op.Add(op.Mul(dropped, a), b)


@marked("gaussian_noise")
def gaussian_noise(op: Writer) -> str:
    """``x + n`` with n normal of the given standard deviation."""
    return op.Add(op.x[0], op.Mul(_training(op), _normal(op, op.settings["rate"])))


@marked("gaussian_dropout")
def gaussian_dropout(op: Writer) -> str:
    """``x (1 + n)`` with n normal of standard deviation sqrt(rate / (1 - rate))."""
    rate = op.settings["rate"]
    factor = op.Mul(_training(op), _normal(op, (rate / (1 - rate)) ** 0.5))
    return op.Mul(op.x[0], op.Add(op.like(1, op.x[0]), factor))


def _normal(op: Writer, deviation: float) -> str:
    return op.RandomNormalLike(op.x[0], scale=float(deviation))


def _dropout(op: Writer, x: str, rate: float) -> str:
    return op.Dropout(x, np.float32(rate), np.array(False))


def _training(op: Writer) -> str:
    """1 in training, 0 in inference: ``|Dropout(1) - 1|`` at rate 1/2, where Dropout gives 0 or 2."""
    first = op.Slice(op.Reshape(op.x[0], [-1]), [0], [1])
    return op.Abs(op.Sub(_dropout(op, _one(op, first), 0.5), op.like(1, op.x[0])))


def _ones(op: Writer) -> str:
    """Ones of the mask's shape: the input's, 1 where the mask is shared."""
    shared = [axis for axis, size in enumerate(op.settings["shape"] or ()) if size == 1]
    return _one(op, op.Slice(op.x[0], [0] * len(shared), [1] * len(shared), shared) if shared else op.x[0])


def _one(op: Writer, x: str) -> str:
    """1 in the shape of ``x``: it hangs on x's values, for onnxruntime folds a Dropout of constants."""
    return op.Cast(op.Not(op.IsNaN(x)), to=op.ctx.get_dtype(op.x[0]))
