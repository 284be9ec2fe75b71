"""Losses with torch's formulas and names, or Caffe's: the value of a batch, the gradient at the output.

A loss is where differentiation starts, so each writes its own first cotangent: one subtraction for cross
entropy, where the chain rule through softmax, logarithm and mean would write ten nodes.
"""

from __future__ import annotations

from onnxaccel.graph.losses.base import (
    LABELS,
    NOTHING,
    SEQUENCES,
    TARGET,
    VALUES,
    Loss,
    Written,
    as_loss,
    create,
    loss,
)
from onnxaccel.graph.losses.caffe import CaffeEuclidean, CaffeSigmoidCrossEntropy
from onnxaccel.graph.losses.classes import NLL, CrossEntropy, MultiMargin
from onnxaccel.graph.losses.ctc import CTC
from onnxaccel.graph.losses.heads import fitting
from onnxaccel.graph.losses.values import (
    BCE,
    L1,
    MSE,
    BCEWithLogits,
    Cosine,
    Hinge,
    Huber,
    KLDiv,
    Output,
    SmoothL1,
)

__all__ = [
    "BCE",
    "CTC",
    "L1",
    "LABELS",
    "MSE",
    "NLL",
    "NOTHING",
    "SEQUENCES",
    "TARGET",
    "VALUES",
    "BCEWithLogits",
    "CaffeEuclidean",
    "CaffeSigmoidCrossEntropy",
    "Cosine",
    "CrossEntropy",
    "Hinge",
    "Huber",
    "KLDiv",
    "Loss",
    "MultiMargin",
    "Output",
    "SmoothL1",
    "Written",
    "as_loss",
    "create",
    "fitting",
    "loss",
]
