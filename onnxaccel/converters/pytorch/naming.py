"""Names: inputs and outputs as the module calls them, tied parameters under the first of their names."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import ConversionError
from onnxaccel.graph.feeds import BATCH

if TYPE_CHECKING:
    import torch


def output_leaves(result: Any) -> tuple[list[str], list[torch.Tensor]]:
    """The tensors of a module's result and their names.

    A single tensor is "output"; an item of a dict or a field keeps its key, an item of a tuple is "output_0"
    and so on; within nested containers the parts are joined by dots.
    """
    import torch
    from torch.utils import _pytree as pytree

    _register_dataclasses(result)
    leaves, _ = pytree.tree_flatten_with_path(result)
    names, tensors = [], []
    for path, leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            name = ".".join(str(_part(key)) for key in path)
            names.append("output" if not path else f"output_{name}" if name[0].isdigit() else name)
            tensors.append(leaf)
    return names, tensors


def _register_dataclasses(result: Any) -> None:
    """Let torch look into dataclasses that a module returns, as it looks into tuples."""
    import torch
    from torch.utils import _pytree as pytree

    for leaf in pytree.tree_leaves(result):
        if dataclasses.is_dataclass(leaf):
            torch.export.register_dataclass(type(leaf))
            _register_dataclasses(leaf)


def _part(key: Any) -> Any:
    return next(getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field))


def rename_outputs(model: ir.Model, names: Sequence[str]) -> list[str]:
    """Give the outputs of a graph their names.

    Returns:
        The names, changed where they clash with an input's or a parameter's.

    Raises:
        ConversionError: The graph has another number of outputs.
    """
    graph = model.graph
    if len(graph.outputs) != len(names):
        raise ConversionError(
            f"the graph has {len(graph.outputs)} outputs where the module returns {len(names)} tensors"
        )
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    unique = [f"output_{name}" if name in taken else name for name in names]
    for index, value in enumerate(graph.outputs):
        if value.producer() is None or value in graph.outputs[:index]:  # an input, or given out twice already
            copy = ir.Node("", "Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
    wanted = set(unique)
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in wanted:
                value.name = f"{value.name}_inner"
    for value, name in zip(graph.outputs, unique, strict=True):
        value.name = name
    return unique


def rename_dims(model: ir.Model, dynamic: Sequence[Mapping[int, str]] = ()) -> None:
    """Call the dynamic dimensions as asked, or "batch" (axis 0) and "INPUT_AXIS", not by torch's symbols.

    Args:
        model: The exported graph; changed in place.
        dynamic: Names asked for, by axis, of each input.
    """
    symbols: dict[str, str] = {}
    for value, asked in itertools.zip_longest(model.graph.inputs, dynamic[: len(model.graph.inputs)]):
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, int) or dim.value is None or dim.value in symbols:
                continue
            first = BATCH if axis == 0 and BATCH not in symbols.values() else ""
            symbols[dim.value] = (asked or {}).get(axis) or first or f"{value.name}_{axis}"
    for value in [*model.graph.inputs, *(v for n in model.graph.all_nodes() for v in n.outputs)]:
        if value.shape is not None:
            # an expression of several symbols becomes unknown; onnxaccel infers what it needs
            value.shape = ir.Shape(
                [d if isinstance(d, int) else symbols.get(d.value or "") for d in value.shape]
            )


def canonical_parameters(model: ir.Model, tensors: Mapping[str, torch.Tensor]) -> None:
    """Bring tied parameters together under the first of their names.

    Args:
        model: The exported graph; changed in place.
        tensors: Parameters and buffers by every one of their names. Those that share memory are tied.
    """
    initializers = model.graph.initializers
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        keep = first.setdefault(
            (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (name,), name
        )
        if keep == name or name not in initializers:
            continue
        duplicate = initializers.pop(name)
        if keep in initializers:
            duplicate.replace_all_uses_with(initializers[keep])
        else:
            duplicate.name = keep
            initializers[keep] = duplicate


def trained(model: ir.Model, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> list[str]:
    """Names of the parameters that require a gradient and that the graph uses, in the module's order."""
    initializers = model.graph.initializers
    return [
        name
        for name, p in parameters
        if p.requires_grad and name in initializers and initializers[name].uses()
    ]


def own_weights(model: ir.Model) -> None:
    """Copy the weights, so that training the module any further does not change the graph."""
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            array = np.array(value.const_value.numpy())
            value.const_value = ir.Tensor(array, dtype=value.const_value.dtype, name=name)
