"""What a reference model is: one architecture, up to three definitions, one set of initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxaccel.errors import ConversionError
from onnxaccel.models.prototxt import Layers
from onnxaccel.registry import Registry

Weights = dict[str, npt.NDArray[np.float32]]
"""Weights by PyTorch's names, in its layouts: ``conv.weight`` [out, in, h, w], ``fc.weight`` [out, in]."""

Shape = tuple[int, ...]

Targets = Literal["class", "pixels"]
"""What a label is given to: the whole sample, or each of its pixels."""

HE = math.sqrt(6)
"""The scale of weights that keep the variance through a rectifier (He et al. 2015)."""


@dataclass(frozen=True)
class Inputs:
    """What a reference model reads.

    Attributes:
        kind: What one sample is: "vector" (features,), "image" (C, H, W) or "tokens" (length,).
        shape: Its default shape, channels first; Keras's images are (H, W, C).
        multiple: Height and width are multiples of it, so that every pooling window is whole: Caffe rounds
            pooled sizes up where TensorFlow and PyTorch round them down.
        smallest: The least height and width.
        vocabulary: Tokens are whole numbers below it; 0 for other kinds.
    """

    kind: Literal["vector", "image", "tokens"]
    shape: Shape
    multiple: int = 1
    smallest: int = 1
    vocabulary: int = 0

    @property
    def dtype(self) -> str:
        """The element type of a sample: "int64" for tokens, else "float32"."""
        return "int64" if self.kind == "tokens" else "float32"

    def check(self, name: str, shape: Shape) -> None:
        """Refuse a shape of one sample that the model called ``name`` cannot read.

        Raises:
            ConversionError: It cannot.
        """
        if len(shape) != len(self.shape) or min(shape) < 1:
            form = {"vector": "features", "image": "channels,height,width", "tokens": "length"}[self.kind]
            raise ConversionError(
                f"{name} takes samples of shape {form}, for instance {_text(self.shape)}, not {_text(shape)}"
            )
        if self.kind == "image" and any(n % self.multiple or n < self.smallest for n in shape[1:]):
            raise ConversionError(
                f"{name} takes images whose height and width are multiples of {self.multiple} and at least "
                f"{self.smallest}, for instance {_text(self.shape)}, not {_text(shape)}"
            )


@dataclass(frozen=True)
class Reference:
    """One architecture in two or three frameworks.

    Attributes:
        description: One line for people.
        inputs: What it reads.
        shapes: Shape of every weight, in order, for an input shape and a number of classes.
        pytorch: Builds the ``torch.nn.Module``; its parameters have the names of ``shapes``.
        tensorflow: Builds the Keras model; its layers have the names of ``shapes`` without ".weight".
        caffe: Adds the layers of the net between the "data" and the "score" blob; None where Caffe lacks one.
        targets: What labels are given to.
        scale: Convolutions' weights are drawn from ±scale / sqrt(fan_in); 1 is PyTorch's default.
        flattened: For each dense layer that reads a flattened image, its (C, H, W): Keras flattens H, W, C.
    """

    description: str
    inputs: Inputs
    shapes: Callable[[Shape, int], dict[str, Shape]]
    pytorch: Callable[[Shape, int], Any]
    tensorflow: Callable[[Shape, int], Any]
    caffe: Callable[[Layers, Shape, int], None] | None
    targets: Targets = "class"
    scale: float = 1.0
    flattened: Callable[[Shape], dict[str, Shape]] = lambda shape: {}


reference: Registry[Reference] = Registry("reference model")
"""Reference models by name: ``reference("mlp")(Reference(...))``."""


def norm_shapes(name: str, channels: int) -> dict[str, Shape]:
    """The weights of a batch normalization called ``name``."""
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def initial_weights(model: Reference, seed: int, input_shape: Shape, classes: int) -> Weights:
    """Fresh weights, a pure function of the seed.

    Uniform in ``±scale / sqrt(fan_in)``, where the scale is 1 but for convolutions. A normalization's weight
    and running variance are 1, its bias and running mean 0. A recurrent layer's two biases add up: the second
    is 0.
    """
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    bound = 0.0
    for name, shape in model.shapes(input_shape, classes).items():
        part = name.rpartition(".")[2]
        if "weight" in part and len(shape) > 1:  # the bias that follows shares its fan-in
            bound = (model.scale if len(shape) == 4 else 1.0) / math.sqrt(math.prod(shape[1:]))
        elif part in ("weight", "running_var"):
            weights[name], bound = np.ones(shape, np.float32), 0.0  # and so does a normalization's bias
            continue
        if part == "running_mean" or part.startswith("bias_hh"):
            weights[name] = np.zeros(shape, np.float32)
        else:
            weights[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return weights


def _text(shape: Shape) -> str:
    return ",".join(map(str, shape))
