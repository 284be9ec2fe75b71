"""Gradient rules, one file per family of operators; a rule reads like its formula.

In the docstrings x, w, b are inputs, y is the output, and d stands before a value's gradient.
"""

from onnxaccel.graph.rules import (  # importing a family registers its rules
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    reduction,
    shape,
)
from onnxaccel.graph.rules.registry import Rule, gradient

__all__ = [
    "Rule",
    "convolution",
    "elementwise",
    "gradient",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "reduction",
    "shape",
]
