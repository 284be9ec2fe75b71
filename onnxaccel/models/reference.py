"""What a reference model is: one architecture, three definitions, one set of initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.registry import Registry

Weights = dict[str, npt.NDArray[np.float32]]
"""Weights by PyTorch's names, in its layouts: ``conv.weight`` [out, in, h, w], ``fc.weight`` [out, in]."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Reference:
    """One architecture in three frameworks.

    Attributes:
        description: One line for people.
        input_shape: Default shape of one sample: (C, H, W), or (features,).
        shapes: Shape of every weight, in order, for an input shape and a number of classes.
        pytorch: Builds the ``torch.nn.Module``; its parameters have the names of ``shapes``.
        tensorflow: Builds the Keras model; its layers have the names of ``shapes`` without ".weight".
        caffe: The layers of the net between the "data" and the "score" blob, as prototxt.
        flattened: For each dense layer that reads a flattened image, its (C, H, W): Keras flattens H, W, C.
    """

    description: str
    input_shape: Shape
    shapes: Callable[[Shape, int], dict[str, Shape]]
    pytorch: Callable[[Shape, int], Any]
    tensorflow: Callable[[Shape, int], Any]
    caffe: Callable[[Shape, int], str]
    flattened: Callable[[Shape], dict[str, Shape]] = lambda shape: {}


reference: Registry[Reference] = Registry("reference model")
"""Reference models by name: ``reference("mlp")(Reference(...))``."""


def initial_weights(model: Reference, seed: int, input_shape: Shape, classes: int) -> Weights:
    """Fresh weights, uniform in ``±1 / sqrt(fan_in)`` (PyTorch's default), a pure function of the seed."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    bound = 1.0
    for name, shape in model.shapes(input_shape, classes).items():
        if name.endswith(".weight"):  # the bias that follows shares its fan-in
            bound = 1 / math.sqrt(math.prod(shape[1:]))
        weights[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return weights


def to_keras(
    name: str, weight: npt.NDArray[np.float32], flattened: dict[str, Shape]
) -> npt.NDArray[np.float32]:
    """A weight in Keras's layout: [h, w, in, out] for convolutions, [in, out] for dense layers."""
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0)
    if weight.ndim == 2:
        layer = name.removesuffix(".weight")
        if layer in flattened:
            rows = weight.reshape(len(weight), *flattened[layer]).transpose(0, 2, 3, 1)
            weight = rows.reshape(len(weight), -1)
        return weight.T
    return weight
