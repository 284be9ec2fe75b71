"""Source models of TensorFlow, PyTorch and Caffe into ONNX, each proven equal to its source."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxaccel.converters.contract import Conversion, Options
from onnxaccel.converters.detect import Detected, detect
from onnxaccel.errors import ConversionError
from onnxaccel.graph.model import OPSET, Model
from onnxaccel.version import __version__

TOLERANCE = 1e-4
"""Largest relative error between the source framework and the converted model, unless given."""


def convert(
    *source: Any,
    trainable: bool = False,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    factory: str | None = None,
    parameters: Sequence[str] = (),
    custom_objects: str | None = None,
    opset: int = OPSET,
    tolerance: float = TOLERANCE,
    verify: bool = True,
    solver: str | os.PathLike[str] | None = None,
    trust_pickle: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Model:
    """Convert a model to ONNX and prove that it computes the same.

    Args:
        *source: Paths of the model's files (``"deploy.prototxt", "net.caffemodel"``), or one live model: a
            Keras model, a tf.function, or a torch module, followed by example inputs where they are needed.
        trainable: Keep every parameter under its name, and BatchNormalization and Dropout as nodes.
        inputs: Tensor names to cut the source graph at; inferred when empty.
        outputs: Tensor names to end the source graph at; inferred when empty.
        shapes: Shape by input name, -1 or a name for a dynamic dimension: ``{"ids": ("batch", "sequence")}``.
        factory: "module:callable" that builds the torch module a state dict belongs to.
        parameters: Names or patterns of the constants of a frozen TensorFlow graph that are parameters, for
            ``trainable``; by default they are found by rule.
        custom_objects: Module that defines the custom layers and functions of a Keras file; it is imported.
        opset: The ONNX opset to write.
        tolerance: Largest relative error allowed, ``max|y - r| / max|r|`` per output.
        verify: Whether to compare with the source framework.
        solver: Caffe's solver.prototxt: layers without weights start from the prototxt's fillers, and the
            model keeps how Caffe would train it. Implies ``trainable``.
        trust_pickle: Allow files that run code when they are loaded.
        progress: Called with one line per stage.

    Returns:
        The model, with ``metadata.max_relative_error`` filled in if it was compared.

    Raises:
        ConversionError: One of its subclasses, see `onnxaccel.errors`.
        MissingDependency: The source framework is not installed.
    """
    if not source:
        raise ConversionError("nothing to convert: give the path of a model, or a live model")
    options = Options(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        shapes={
            n: tuple(-1 if isinstance(d, str) else d for d in dims) for n, dims in (shapes or {}).items()
        },
        dim_names={
            n: {axis: d for axis, d in enumerate(dims) if isinstance(d, str)}
            for n, dims in (shapes or {}).items()
        },
        factory=factory,
        parameters=tuple(parameters),
        custom_objects=custom_objects,
        opset=opset,
        trainable=trainable,
        solver=Path(solver) if solver is not None else None,
        trust_pickle=trust_pickle,
        progress=progress,
    )
    conversion = _convert_files(source, options) if _is_path(source[0]) else _convert_live(source, options)
    try:
        model = conversion.model
        model.metadata.version = __version__
        model.check()
        if verify:
            from onnxaccel.converters.gate import verify as compare

            progress(f"comparing with {conversion.reference_name}")
            model.metadata.max_relative_error = compare(conversion, tolerance)
        return model
    finally:
        conversion.close()


def _is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def _convert_files(source: Sequence[Any], options: Options) -> Conversion:
    detected: Detected = detect([Path(s) for s in source])
    options.progress(f"reading {detected.format} ({detected.framework})")
    module = importlib.import_module(f"onnxaccel.converters.{detected.framework}")
    conversion: Conversion = module.convert_files(detected, options)
    return conversion


def _convert_live(source: Sequence[Any], options: Options) -> Conversion:
    model, *example = source
    ancestors = {c.__module__.split(".")[0] for c in type(model).__mro__}
    framework = next((f for f, names in _LIVE.items() if ancestors & names), None)
    if framework is None:
        raise ConversionError(
            f"cannot convert a {type(model).__name__}; give a Keras model, a torch.nn.Module or a path"
        )
    module = importlib.import_module(f"onnxaccel.converters.{framework}")
    conversion: Conversion = module.convert_live(model, tuple(example), options)
    return conversion


_LIVE = {"pytorch": {"torch"}, "tensorflow": {"keras", "tf_keras", "tensorflow"}}
