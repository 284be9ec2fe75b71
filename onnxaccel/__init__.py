"""onnxaccel: convert TensorFlow, PyTorch and Caffe models to ONNX, train them on onnxruntime, compare.

Names are imported when they are first used: ``import onnxaccel`` loads neither a framework nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from onnxaccel.errors import AccelError, UnsupportedOperator
from onnxaccel.version import __version__

if TYPE_CHECKING:
    from onnxaccel import caffe as caffe
    from onnxaccel import protection as protection
    from onnxaccel import pytorch as pytorch
    from onnxaccel import tensorflow as tensorflow
    from onnxaccel.compare.frame import compare as compare
    from onnxaccel.converters import convert as convert
    from onnxaccel.data import Augmentation as Augmentation
    from onnxaccel.graph import losses as losses
    from onnxaccel.graph import optimizers as optimizers
    from onnxaccel.graph import schedules as schedules
    from onnxaccel.graph.autodiff import gradient as gradient
    from onnxaccel.graph.model import Model as Model
    from onnxaccel.runtime.evaluator import evaluate as evaluate
    from onnxaccel.runtime.trainer import Trainer as Trainer

_HOME = {
    "Augmentation": "onnxaccel.data",
    "Model": "onnxaccel.graph.model",
    "Trainer": "onnxaccel.runtime.trainer",
    "convert": "onnxaccel.converters",
    "evaluate": "onnxaccel.runtime.evaluator",
    "gradient": "onnxaccel.graph.autodiff",
}
_MODULES = {
    "caffe": "onnxaccel.caffe",
    "compare": "onnxaccel.compare",
    "losses": "onnxaccel.graph.losses",
    "optimizers": "onnxaccel.graph.optimizers",
    "protection": "onnxaccel.protection",
    "pytorch": "onnxaccel.pytorch",
    "schedules": "onnxaccel.graph.schedules",
    "tensorflow": "onnxaccel.tensorflow",
}

__all__ = [
    "AccelError",
    "Augmentation",
    "Model",
    "Trainer",
    "UnsupportedOperator",
    "__version__",
    "compare",
    "convert",
    "evaluate",
    "gradient",
    "losses",
    "optimizers",
    "schedules",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module 'onnxaccel' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
