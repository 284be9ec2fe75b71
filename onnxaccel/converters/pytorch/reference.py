"""The module as the parity gate's reference, and what its integer inputs may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxaccel.converters.contract import Arrays
from onnxaccel.converters.pytorch.archive import first_line
from onnxaccel.converters.pytorch.example import Example
from onnxaccel.converters.pytorch.export import mode
from onnxaccel.converters.pytorch.naming import output_leaves
from onnxaccel.errors import ConversionError

if TYPE_CHECKING:
    import torch

_THROUGH = frozenset(
    {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand", "Slice"}
)


def run(module: Callable[..., object], example: Example, feed: list[torch.Tensor]) -> list[torch.Tensor]:
    """Call ``module`` with the tensors of ``example`` replaced by ``feed``; return its tensors in order.

    Raises:
        ConversionError: The module does not run on inputs of these sizes.
    """
    import torch

    args, kwargs = example.map(lambda old, position: feed[position].to(old.device))
    try:
        with torch.no_grad():
            return output_leaves(module(*args, **kwargs))[1]
    except Exception as error:  # the module's own code
        shapes = ", ".join(str(list(tensor.shape)) for tensor in feed)
        raise ConversionError(
            f"the model itself does not run on inputs of another size ({shapes}): {first_line(error)}"
        ) from None


def reference(
    module: torch.nn.Module, example: Example, inputs: list[str], outputs: list[str]
) -> Callable[[Arrays], Arrays]:
    """A function that runs ``module`` in inference mode on arrays by name."""
    import torch

    def call(feed: Arrays) -> Arrays:
        with mode(module, training=False):
            results = run(module, example, [torch.from_numpy(feed[name]) for name in inputs])
        return {name: t.detach().cpu().numpy() for name, t in zip(outputs, results, strict=True)}

    return call


def integer_ranges(model: ir.Model) -> dict[str, tuple[int, int]]:
    """Half-open ranges of integer inputs: the rows of the smallest table that each is an index into."""
    ranges = {}
    for value in model.graph.inputs:
        if value.dtype is not None and value.dtype.is_integer():
            rows = _rows(value, set())
            if rows:
                assert value.name is not None
                ranges[value.name] = (0, min(rows))
    return ranges


def _rows(value: ir.Value, seen: set[int]) -> list[int]:
    """Sizes of the axes that ``value`` indexes in Gather nodes, through operators that only move it."""
    rows: list[int] = []
    if id(value) in seen:
        return rows
    seen.add(id(value))
    for node, index in value.uses():
        if node.op_type == "Gather" and index == 1:
            table = node.inputs[0]
            axis = node.attributes.get_int("axis", 0)
            if table is not None and table.shape is not None and isinstance(table.shape[axis], int):
                rows.append(table.shape[axis])  # type: ignore[arg-type]
        elif node.op_type in _THROUGH and index == 0:
            rows += _rows(node.outputs[0], seen)
    return rows
