"""Fillers: the weights that Caffe starts a training from, one function per type, with Caffe's formula.

Each blob's numbers follow from the seed, its layer's name and its place in the layer, so that a network with
a layer more draws the same ones for the others. Caffe's own generator would draw others.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.converters.caffe.net import Layer
from onnxaccel.converters.caffe.schema import message
from onnxaccel.errors import ConversionError
from onnxaccel.registry import Registry

Shape = tuple[int, ...]
Filler = Callable[[Any, Shape, np.random.Generator], npt.NDArray[Any]]

filler: Registry[Filler] = Registry("Caffe filler")
"""Fillers by type: ``@filler("xavier")`` over ``(FillerParameter, shape, generator)``."""

_WEIGHT_AND_BIAS = ("weight_filler", "bias_filler")
_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "BN": ("bn_param", ("slope_filler", "shift_filler")),
    "Bias": ("bias_param", ("filler",)),
    "Convolution": ("convolution_param", _WEIGHT_AND_BIAS),
    "ConvolutionDepthwise": ("convolution_param", _WEIGHT_AND_BIAS),
    "Deconvolution": ("convolution_param", _WEIGHT_AND_BIAS),
    "DepthwiseConvolution": ("convolution_param", _WEIGHT_AND_BIAS),
    "Embed": ("embed_param", _WEIGHT_AND_BIAS),
    "InnerProduct": ("inner_product_param", _WEIGHT_AND_BIAS),
    "LSTM": ("recurrent_param", _WEIGHT_AND_BIAS),
    "Normalize": ("norm_param", ("scale_filler",)),
    "PReLU": ("prelu_param", ("filler",)),
    "RNN": ("recurrent_param", _WEIGHT_AND_BIAS),
    "Scale": ("scale_param", ("filler", "bias_filler")),
}
"""Where a layer type keeps the fillers of its blobs, in the blobs' order."""

_START = {("BN", 0): 1.0, ("Normalize", 0): 1.0, ("PReLU", 0): 0.25, ("Scale", 0): 1.0}
"""What blobs start from where the prototxt states no filler, if it is not 0."""


def filled(seed: int) -> Callable[[Layer, int, Shape], npt.NDArray[np.float32]]:
    """What fills the blobs of layers without weights: ``fill(layer, index, shape)``.

    Raises:
        ConversionError: A filler has a type that is not known, or does not fit the blob's shape.
    """

    def fill(layer: Layer, index: int, shape: Shape) -> npt.NDArray[np.float32]:
        settings = _settings(layer, index, shape)
        function = filler.get(settings.type)
        if function is None:
            raise ConversionError(
                f"{layer}: unknown filler {settings.type!r}; choose one of {', '.join(filler)}"
            )
        rng = np.random.default_rng([seed, zlib.crc32(layer.name.encode()), index])
        try:
            return np.ascontiguousarray(function(settings, shape, rng), np.float32)
        except ValueError as error:
            raise ConversionError(f"{layer}: filler {settings.type!r}: {error}") from None

    return fill


def _settings(layer: Layer, index: int, shape: Shape) -> Any:
    """The FillerParameter of a blob; that of constant 0 for blobs that have none, as BatchNorm's."""
    section, names = _FIELDS.get(layer.type, ("", ()))
    if layer.type in ("LSTM", "RNN"):  # their biases are the vectors among their blobs
        index = int(len(shape) == 1)
    elif layer.type == "Scale" and len(layer.bottoms) == 2:  # the factor is a bottom
        index = 1
    if index < len(names):
        parameter = getattr(layer.proto, section)
        if parameter.HasField(names[index]):
            return getattr(parameter, names[index])
    return message("FillerParameter")(type="constant", value=_START.get((layer.type, index), 0.0))


@filler("constant")
def constant(p: Any, shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
    """``value`` everywhere."""
    return np.full(shape, p.value)


@filler("uniform")
def uniform(p: Any, shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Uniform over ``min`` to ``max``."""
    return rng.uniform(p.min, p.max, shape)


@filler("gaussian")
def gaussian(p: Any, shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Normal with ``mean`` and ``std``; of each output's weights ``sparse``, on average, are not zero."""
    if p.std < 0:
        raise ValueError(f"std must not be negative, it is {p.std:g}")
    values: npt.NDArray[Any] = rng.normal(p.mean, p.std, shape)
    if p.sparse < 0:
        return values
    values *= rng.random(shape) < min(p.sparse / shape[0], 1.0)
    return values


@filler("positive_unitball")
def positive_unitball(p: Any, shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Uniform over 0 to 1, divided by the sum over each output's weights."""
    rows: npt.NDArray[Any] = rng.random((shape[0], math.prod(shape[1:])))
    rows /= rows.sum(axis=1, keepdims=True)
    return rows.reshape(shape)


@filler("xavier")
def xavier(p: Any, shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Uniform over ±sqrt(3 / n) (Glorot and Bengio 2010); n: see `_fan`."""
    bound = math.sqrt(3 / _fan(p, shape))
    return rng.uniform(-bound, bound, shape)


@filler("msra")
def msra(p: Any, shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Normal with standard deviation sqrt(2 / n) (He et al. 2015); n: see `_fan`."""
    return rng.normal(0.0, math.sqrt(2 / _fan(p, shape)), shape)


@filler("bilinear")
def bilinear(p: Any, shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
    """w(x, y) = (1 - |x / f - c|) (1 - |y / f - c|) with f = ceil(k / 2), c = (2f - 1 - f mod 2) / 2f.

    It upsamples by f when it is a Deconvolution's weight of a group per channel.
    """
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(f"needs a square kernel, the blob has shape {list(shape)}")
    factor = math.ceil(shape[3] / 2)
    centre = (2 * factor - 1 - factor % 2) / (2.0 * factor)
    line = 1 - np.abs(np.arange(shape[3]) / factor - centre)
    return np.broadcast_to(np.outer(line, line), shape)


def _fan(p: Any, shape: Shape) -> float:
    """The n of xavier and msra: weights per output, per input, or their mean, as ``variance_norm`` asks."""
    size = math.prod(shape)
    inward = size // shape[0]
    outward = size // shape[1] if len(shape) > 1 else size
    return (float(inward), float(outward), (inward + outward) / 2)[p.variance_norm]
