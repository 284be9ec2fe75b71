"""The registry of gradient rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxaccel.registry import Registry

Rule = Callable[..., "ir.Value | Sequence[ir.Value | None] | None"]
"""``rule(op, node, *dys) -> dx`` or ``[dx0, dx1, ...]``.

Args:
    op: The `Builder` to write with.
    node: The node to differentiate, its inputs and outputs being the values of the forward pass.
    *dys: The gradient of each output, None where nothing depends on it.

Returns:
    The gradient of each input, None where there is none; a single value stands for the first input's.
"""

gradient: Registry[Rule] = Registry("gradient rule")
"""Gradient rules by operator: ``@gradient("Relu")``, ``@gradient("com.microsoft::Gelu")``."""

expansion: Registry[Callable[..., ir.Value | Sequence[ir.Value]]] = Registry("expansion")
"""``rule(op, node) -> outputs``: writes an operator in terms of others that have gradient rules."""
