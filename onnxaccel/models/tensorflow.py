"""What the Keras definitions share: PyTorch's layers in Keras, and its weights in Keras's layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.models.reference import Shape, Weights

Array = npt.NDArray[np.float32]


def convolution(
    x: Any, name: str, filters: int, kernel: int = 3, stride: int = 1, depthwise: bool = False
) -> Any:
    """A convolution without bias, padded by ``kernel // 2`` on every side.

    Keras's "same" pads a strided convolution on one side only, where PyTorch and Caffe pad both: zeros are
    put around the image instead.

    Args:
        x: The image, [N, H, W, C].
        name: The layer's name.
        filters: Channels of the result.
        kernel: Height and width of the window, odd.
        stride: Its step.
        depthwise: Whether each channel has a window of its own.
    """
    from keras import layers

    padding = "same" if stride == 1 else "valid"
    if padding == "valid" and kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}.pad")(x)
    settings = {"strides": stride, "padding": padding, "use_bias": False, "name": name}
    if depthwise:
        return layers.DepthwiseConv2D(kernel, **settings)(x)
    return layers.Conv2D(filters, kernel, **settings)(x)


def norm(x: Any, name: str) -> Any:
    """A batch normalization with PyTorch's ε and momentum."""
    from keras import layers

    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def set_weights(network: Any, weights: Weights, flattened: dict[str, Shape]) -> None:
    """Give a Keras model the weights that `initial_weights` drew.

    Args:
        network: The model; its layers have PyTorch's names.
        weights: By PyTorch's names, in its layouts.
        flattened: See `Reference.flattened`.
    """
    for layer in network.layers:
        if layer.weights:
            own = {
                key.removeprefix(f"{layer.name}."): value
                for key, value in weights.items()
                if key.startswith(f"{layer.name}.")
            }
            layout = _LAYOUTS.get(type(layer).__name__)
            if layout is not None:
                layer.set_weights(layout(layer, own))
            elif layer.name in flattened:
                layer.set_weights([_flattened(own["weight"], flattened[layer.name]), own["bias"]])
            else:
                layer.set_weights([_transposed(value) for value in own.values()])


def _transposed(value: Array) -> Array:
    """A weight in Keras's layout: [h, w, in, out] of [out, in, h, w], [in, out] of [out, in].

    A transposed convolution's is [h, w, out, in] of [in, out, h, w], by the same change.
    """
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _flattened(weight: Array, image: Shape) -> Array:
    """The weight of a dense layer that reads an image flattened as H, W, C."""
    return weight.reshape(-1, *image).transpose(2, 3, 1, 0).reshape(-1, len(weight))


def _attention(layer: Any, own: Weights) -> list[Array]:
    """Queries, keys and values as [width, heads, size], of PyTorch's one matrix; then the way back."""
    heads, size, width = layer.num_heads, layer.key_dim, own["out_proj.weight"].shape[0]
    parts = []
    for weight, bias in zip(
        np.split(own["in_proj_weight"], 3), np.split(own["in_proj_bias"], 3), strict=True
    ):
        parts += [weight.T.reshape(width, heads, size), bias.reshape(heads, size)]
    return [*parts, own["out_proj.weight"].T.reshape(heads, size, width), own["out_proj.bias"]]


def _lstm(layer: Any, own: Weights) -> list[Array]:
    """Keras has one bias where PyTorch has two, which add up; the gates come in the same order."""
    return [own["weight_ih_l0"].T, own["weight_hh_l0"].T, own["bias_ih_l0"] + own["bias_hh_l0"]]


_LAYOUTS: dict[str, Callable[[Any, Weights], list[Array]]] = {
    "DepthwiseConv2D": lambda layer, own: [own["weight"].transpose(2, 3, 0, 1)],
    "Embedding": lambda layer, own: [own["weight"]],
    "LSTM": _lstm,
    "MultiHeadAttention": _attention,
}
"""Of the layer types that do not follow the general rule, all weights in the layer's own order."""
