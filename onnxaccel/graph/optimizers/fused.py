"""Updates written into the matrix product that the gradient comes from.

A dense layer's weight gradient is a Gemm, and Gemm adds ``beta C`` to its product. So what an update does
first with the gradient needs no pass of its own over the weight, and such passes are a good part of a small
model's step.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.graph.builder import Builder, attribute, estimated_size


def plus(op: Builder, x: ir.Value, factor: float, g: ir.Value) -> ir.Value:
    """``factor x + g``."""
    product = _product(g)
    if product is None:
        return op.Add(g, x if factor == 1.0 else op.Mul(x, factor))
    return op.Gemm(*product.inputs, x, beta=factor, **_transposed(product))


def step_back(op: Builder, p: ir.Value, direction: ir.Value, rate: ir.Value) -> ir.Value:
    """``p - rate direction``; in a product the rate scales an operand, if one is smaller than the weight."""
    product = _product(direction)
    if product is not None:
        a, b = product.inputs
        assert a is not None and b is not None
        small = min(a, b, key=estimated_size)
        if estimated_size(small) < estimated_size(p):
            operands = [op.Mul(x, rate) if x is small else x for x in (a, b)]
            return op.Gemm(*operands, p, alpha=-1.0, **_transposed(product))
    return op.Sub(p, op.Mul(direction, rate))


def _product(g: ir.Value) -> ir.Node | None:
    """The plain Gemm that g comes from, if nothing has read g yet."""
    node = g.producer()
    if (
        node is None
        or node.op_type != "Gemm"
        or len(node.inputs) != 2
        or attribute(node, "alpha", 1.0) != 1.0
    ):
        return None
    return None if g.uses() or g.is_graph_output() else node


def _transposed(product: ir.Node) -> dict[str, int]:
    return {name: attribute(product, name, 0) for name in ("transA", "transB")}
