"""Reading a solver.prototxt."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from onnxaccel.bounds import read_text
from onnxaccel.converters.caffe.schema import parse_text
from onnxaccel.errors import ConversionError, TrainingError
from onnxaccel.graph.solver import Solver

_TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
"""Solver types in the order of the older ``solver_type``'s numbers."""


def read_solver(path: Path) -> Solver:
    """The solver of a prototxt; floats as Caffe holds them, in float32.

    Raises:
        ConversionError: The file cannot be read, has a syntax error, or a setting that is not possible.
    """
    proto = parse_text(read_text(path, ConversionError), "SolverParameter", str(path))
    try:
        return Solver.of(_settings(proto))
    except TrainingError as error:
        raise ConversionError(f"{path}: {error}") from None


def _settings(proto: Any) -> dict[str, Any]:
    known = {field.name for field in fields(Solver)}
    settings = {name.name: value for name, value in proto.ListFields() if name.name in known}
    settings["stepvalue"] = tuple(proto.stepvalue)
    settings["test_iter"] = max(proto.test_iter, default=0)
    if proto.HasField("solver_type"):
        if proto.HasField("type"):
            raise TrainingError("has both type and the older solver_type; keep one")
        settings["type"] = _TYPES[proto.solver_type]
    if proto.clip_gradients < 0:
        settings.pop("clip_gradients", None)
    if proto.random_seed < 0:
        settings.pop("random_seed", None)
    return settings
