"""Products of many elements: Det and CumProd; and Col2Im, the sum of what windows hold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, constant_of, describe, dims_of
from onnxaccel.graph.rules.registry import expansion, gradient


@gradient("Det")
def det(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx_ij = dy times the cofactor of x_ij, (-1)^(i+j) times the determinant without row i and column j."""
    x = node.inputs[0]
    dims = dims_of(x) if x is not None else None
    if x is None or dims is None or not isinstance(dims[-1], int):
        raise UnsupportedOperator(f"{describe(node)}: the size of the matrices must be known")
    rank, n = len(dims), dims[-1]
    if n == 1:
        return op.Mul(op.Unsqueeze(dy, [-2, -1]), op.Add(op.Mul(x, 0.0), 1.0))
    others = np.array([[k for k in range(n) if k != i] for i in range(n)], np.int64)
    minors = op.Gather(op.Gather(x, others, axis=rank - 2), others, axis=rank)  # [..., n, n-1, n, n-1]
    lead = list(range(rank - 2))
    minors = op.Transpose(minors, perm=[*lead, rank - 2, rank, rank - 1, rank + 1])
    sign = np.array([[float((-1) ** (i + j)) for j in range(n)] for i in range(n)])
    assert x.dtype is not None
    cofactors = op.Mul(op.Det(minors), sign.astype(x.dtype.numpy()))
    return op.Mul(op.Unsqueeze(dy, [-2, -1]), cofactors)


@expansion("CumProd")
def cum_prod(op: Builder, node: ir.Node) -> ir.Value:
    """One factor after the other, by Scan: exact where factors are zero."""
    x, which = node.inputs
    axis = constant_of(which)
    if x is None or x.shape is None or x.dtype is None or axis is None:
        raise UnsupportedOperator(f"{describe(node)}: its axis must be a constant")
    place, reverse = int(axis) % len(x.shape), int(attribute(node, "reverse", 0))
    body = ir.Graph([], [], nodes=[], name="factors")
    inner = op.within(body)
    row = ir.Shape([dim for i, dim in enumerate(x.shape) if i != place])
    before, factor = (ir.val(inner.fresh(name), x.dtype, row) for name in ("before", "factor"))
    after = inner.Mul(before, factor)
    result = inner.Identity(before if attribute(node, "exclusive", 0) else after)
    body.inputs.extend([before, factor])
    body.outputs.extend([after, result])
    ones = op.Add(op.Mul(op.ReduceSum(x, [place], keepdims=0), 0.0), 1.0)
    ones.shape = row
    results = op.node(
        "Scan",
        [ones, x],
        outputs=2,
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[place],
        scan_output_axes=[place],
        scan_input_directions=[reverse],
        scan_output_directions=[reverse],
    )
    for value in results:
        value.type = x.type
    return results[1]


@gradient("Col2Im")
def col2im(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """Each element of the image is a sum over windows: dx = what each window sees of dy.

    Seen by a convolution with one filter per place in the window, which picks that place.
    """
    x, _, block = node.inputs
    kernel = constant_of(block)
    assert x is not None
    if kernel is None or dy.dtype is None:
        raise UnsupportedOperator(f"{describe(node)}: its block_shape must be a constant")
    rank, places = len(kernel), int(np.prod(kernel))
    picks = np.eye(places).reshape(places, 1, *kernel.tolist()).astype(dy.dtype.numpy())
    planes = op.Reshape(dy, op.Concat([-1, 1], op.Shape(dy, start=2), axis=0))
    seen = op.Conv(
        planes,
        picks,
        pads=attribute(node, "pads", [0] * 2 * rank),
        strides=attribute(node, "strides", [1] * rank),
        dilations=attribute(node, "dilations", [1] * rank),
    )
    return op.reshape_like(seen, x)
