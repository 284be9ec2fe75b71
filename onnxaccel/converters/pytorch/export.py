"""From a torch module to an ONNX graph by torch.export and torch.onnx, in inference or in trainable form."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxaccel.converters.pytorch import recurrent
from onnxaccel.converters.pytorch.archive import first_line
from onnxaccel.converters.pytorch.example import Example
from onnxaccel.converters.pytorch.signature import restore_names, tidy
from onnxaccel.converters.pytorch.substitutes import substitutes
from onnxaccel.converters.pytorch.trainable import (
    refuse_what_trains_otherwise,
    to_trainable,
    without_own_gradients,
)
from onnxaccel.errors import ConversionError
from onnxaccel.graph.feeds import BATCH

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@contextlib.contextmanager
def mode(module: torch.nn.Module, training: bool) -> Iterator[None]:
    """Run a block with ``module`` in training or inference mode; every part has its own mode back afterwards.

    A module that is training already is left as it is, since its parts in inference mode are frozen on
    purpose.
    """
    before = {part: part.training for part in module.modules()}
    try:
        if not (training and module.training):
            module.train(training)
        yield
    finally:
        for part, flag in before.items():
            part.training = flag


def export_module(
    module: torch.nn.Module, example: Example, opset: int, trainable: bool
) -> tuple[ir.Model, list[str]]:
    """Export a live module.

    Args:
        module: The module; its parameters, buffers and modes are left as they are.
        example: Its inputs, and which axes are dynamic.
        opset: The opset to write.
        trainable: Whether to keep parameters, BatchNormalization and Dropout, see `trainable`.

    Returns:
        The graph, and the names of its BatchNormalization nodes that stay in inference mode in training.

    Raises:
        ConversionError: torch cannot export the module.
    """
    import torch

    with mode(module, training=trainable), quiet(), torch.set_grad_enabled(trainable):
        with without_own_gradients() if trainable else contextlib.nullcontext():
            program = trace(module, example)
        return export_program(program, opset, trainable)


def trace(module: torch.nn.Module, example: Example) -> ExportedProgram:
    """Trace a module with torch.export, with the dynamic axes of ``example``.

    In a module that has layers with ``batch_first=False``, axis 1 may be the batch: both axes are dynamic
    where that is possible, else the one that can be; ``example`` says so afterwards.
    """
    asked = example.dynamic
    time_first = any(getattr(part, "batch_first", True) is False for part in module.modules())
    candidates = [asked]
    if time_first and not any(set(axes) - {0} for axes in asked):
        ranks = [tensor.ndim for tensor in example.tensors()]
        both = [axes | {1: ""} if rank == 3 else axes for axes, rank in zip(asked, ranks, strict=True)]
        candidates = [both, asked, [{1: BATCH} if rank > 1 else {} for rank in ranks]]
    failures = []
    for example.dynamic in candidates:
        try:
            return _traced(module, example)
        except ConversionError as error:
            failures.append(error)
    raise failures[candidates.index(asked)]


def _traced(module: torch.nn.Module, example: Example) -> ExportedProgram:
    import torch

    names = [name for axes in example.dynamic for name in axes.values()]
    # a Dim is one size wherever it stands, and any size; other dimensions may have a least or largest one
    dims: dict[str, Any] = {
        name: torch.export.Dim(name) for name in names if name == BATCH or (names.count(name) > 1 and name)
    }

    def dynamic(tensor: torch.Tensor, position: int) -> dict[int, Any]:
        axes = example.dynamic[position]
        return {axis: dims.get(axes[axis], torch.export.Dim.DYNAMIC) for axis in sorted(axes)}

    args, kwargs = example.map(dynamic, other=lambda leaf: None)
    shapes = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    try:
        with substitutes():
            return torch.export.export(module, example.args, example.kwargs, dynamic_shapes=dict(shapes))
    except ConversionError:  # of a substitute
        raise
    except Exception as error:  # torch's exceptions share no base class
        raise ConversionError(_advice(type(module).__name__, error)) from None


def _advice(name: str, error: Exception) -> str:
    text = str(error)
    if "data-dependent" in text.lower() or "dynamic control flow" in text.lower():
        return (
            f"{name} takes a branch that depends on its input's values, so one graph would be wrong for the "
            f"others; write the branch with torch.cond or torch.where ({first_line(error)})"
        )
    if "Constraints violated" in text:
        lines = [line.strip(" -") for line in text.splitlines()]
        fixed = next((line for line in lines if "constant" in line or "Not all values" in line), text)
        return (
            f"{name} fixes a dimension that should be dynamic ({fixed.split('. ')[0]}); read sizes from "
            f"x.shape instead of writing numbers, or say which axes are dynamic, for instance "
            f"--shape x=7,batch,5"
        )
    return f"torch.export cannot trace {name}: {first_line(error)}"


def export_program(program: ExportedProgram, opset: int, trainable: bool) -> tuple[ir.Model, list[str]]:
    """Export a traced program; returns what `export_module` returns.

    Raises:
        ConversionError: An operator has no ONNX form.
    """
    import torch

    if trainable:
        refuse_what_trains_otherwise(program)
    tidy(program)
    try:
        with quiet(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                external_data=False,
                optimize=not trainable,
                custom_translation_table=recurrent.translations(),
                verbose=False,
            )
    except Exception as error:
        raise ConversionError(_without_form(error.__cause__ or error)) from None
    assert exported is not None
    model = exported.model
    restore_names(model, program)
    return model, to_trainable(model, program) if trainable else []


def _without_form(error: BaseException) -> str:
    operator = re.search(r"target=torch\.ops\.([\w.]+)\]", str(error))
    if operator:
        return f"torch.onnx has no ONNX form of {operator[1]}; write that part with other operators"
    return f"torch.onnx cannot export the module: {first_line(error)}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's exporter, whose warnings are about itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
