"""Gradient rules, one file per family of operators; a rule reads like its formula.

In the docstrings x, w, b are inputs, y is the output, and d stands before a value's gradient.
"""

from onnxaccel.graph.rules import (  # importing a family registers its rules
    activations,
    attention,
    control,
    convolution,
    einsum,
    elementwise,
    expansions,
    indexing,
    linear,
    normalization,
    pooling,
    products,
    recurrent,
    reduction,
    regions,
    resample,
    sampling,
    selection,
    shape,
    spectral,
    transposed,
    trigonometry,
)
from onnxaccel.graph.rules.registry import Rule, expansion, gradient

__all__ = [
    "Rule",
    "activations",
    "attention",
    "control",
    "convolution",
    "einsum",
    "elementwise",
    "expansion",
    "expansions",
    "gradient",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "products",
    "recurrent",
    "reduction",
    "regions",
    "resample",
    "sampling",
    "selection",
    "shape",
    "spectral",
    "transposed",
    "trigonometry",
]
