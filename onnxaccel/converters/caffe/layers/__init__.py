"""Caffe's layers as ONNX, one function per layer type, with Caffe's formula in its docstring."""

from onnxaccel.converters.caffe.layers import (  # importing a family registers its layers
    activation,
    combine,
    convolution,
    detection,
    head,
    normalization,
    pooling,
    recurrent,
    resize,
    shape,
)

__all__ = [
    "activation",
    "combine",
    "convolution",
    "detection",
    "head",
    "normalization",
    "pooling",
    "recurrent",
    "resize",
    "shape",
]
