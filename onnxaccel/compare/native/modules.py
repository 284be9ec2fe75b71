"""PyTorch modules that onnxaccel builds: of reference models, and by a factory with a file of weights.

What it imports for that is there before the measuring starts, and counts as nobody's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxaccel import models
from onnxaccel.compare.native.pytorch import serve
from onnxaccel.converters.pytorch import archive, factory


def candidate(setup: Mapping[str, Any]) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """See `onnxaccel.compare.native.common`; "reference" or "factory" say what to build."""
    return serve(build(setup).eval().to(setup["device"]), setup)


def build(setup: Mapping[str, Any]) -> Any:
    """The module that "reference", or "factory" and "files", say."""
    return _reference(setup) if setup["reference"] else _from_weights(setup)


def _reference(setup: Mapping[str, Any]) -> Any:
    shape = tuple(setup["shape"])
    return models.build(setup["reference"], "pytorch", setup["seed"], shape, setup["classes"])


def _from_weights(setup: Mapping[str, Any]) -> Any:
    import torch

    path = Path(setup["files"][0])
    state = archive.read_state(path, setup["format"], setup["trust_pickle"])
    if isinstance(state, torch.nn.Module):
        return state.float()
    module = factory.build(setup["factory"]).float()
    factory.load_weights(module, state, path)
    return module
