"""Trigonometric and hyperbolic functions, their inverses, and the error function."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from onnxaccel.graph.builder import Builder
from onnxaccel.graph.rules.registry import gradient

_SLOPE: dict[str, Callable[[Builder, ir.Value, ir.Value], ir.Value]] = {
    "Sin": lambda op, x, y: op.Cos(x),
    "Cos": lambda op, x, y: op.Neg(op.Sin(x)),
    "Tan": lambda op, x, y: op.Add(op.Mul(y, y), 1.0),
    "Asin": lambda op, x, y: op.Reciprocal(op.Sqrt(op.Sub(1.0, op.Mul(x, x)))),
    "Acos": lambda op, x, y: op.Neg(op.Reciprocal(op.Sqrt(op.Sub(1.0, op.Mul(x, x))))),
    "Atan": lambda op, x, y: op.Reciprocal(op.Add(op.Mul(x, x), 1.0)),
    "Sinh": lambda op, x, y: op.Cosh(x),
    "Cosh": lambda op, x, y: op.Sinh(x),
    "Asinh": lambda op, x, y: op.Reciprocal(op.Sqrt(op.Add(op.Mul(x, x), 1.0))),
    "Acosh": lambda op, x, y: op.Reciprocal(op.Sqrt(op.Sub(op.Mul(x, x), 1.0))),
    "Atanh": lambda op, x, y: op.Reciprocal(op.Sub(1.0, op.Mul(x, x))),
    "Erf": lambda op, x, y: op.Mul(op.Exp(op.Neg(op.Mul(x, x))), 2 / math.sqrt(math.pi)),
}
"""y' by operator, from x and y."""


@gradient(*_SLOPE)
def function_of_one(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy y'."""
    x = node.inputs[0]
    assert x is not None
    return op.Mul(dy, _SLOPE[node.op_type](op, x, node.outputs[0]))
