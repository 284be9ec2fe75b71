"""Optimizers with torch's formulas and names, or Caffe's, each written into the training graph.

An optimizer holds its settings; `Optimizer.update` writes one parameter's update. The learning rate is an
input of the training graph (a schedule changes it), the state is carried from step to step.
"""

from __future__ import annotations

from onnxaccel.graph.optimizers.adam import Adam, AdamW, NAdam, RAdam
from onnxaccel.graph.optimizers.adaptive import Adadelta, Adagrad, RMSprop
from onnxaccel.graph.optimizers.base import NO_DECAY_ON_BIAS_AND_NORM, Group, Optimizer, create, optimizer
from onnxaccel.graph.optimizers.caffe import (
    CaffeAdaDelta,
    CaffeAdaGrad,
    CaffeAdam,
    CaffeNesterov,
    CaffeRMSProp,
    CaffeSGD,
)
from onnxaccel.graph.optimizers.large_batch import LAMB, Lion
from onnxaccel.graph.optimizers.sgd import SGD

__all__ = [
    "LAMB",
    "NO_DECAY_ON_BIAS_AND_NORM",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "CaffeAdaDelta",
    "CaffeAdaGrad",
    "CaffeAdam",
    "CaffeNesterov",
    "CaffeRMSProp",
    "CaffeSGD",
    "Group",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "create",
    "optimizer",
]
