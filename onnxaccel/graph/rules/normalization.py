"""Normalisation layers."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.registry import gradient

Grads = list[ir.Value | None]


@gradient("BatchNormalization")
def batch_normalization(
    op: Builder, node: ir.Node, dy: ir.Value, dmean: ir.Value | None = None, dvar: ir.Value | None = None
) -> Grads:
    """y = scale n + B with n = (x - mean) / s, s = sqrt(var + epsilon), per channel (Ioffe and Szegedy 2015).

    dB = sum(dy), dscale = sum(dy n). In inference mode dx = dy scale / s. In training mode mean and var are
    those of the m values of the batch, and dx = scale / s (dy - dB / m - n dscale / m).
    """
    x, scale, _, mean, var = node.inputs
    assert x is not None and scale is not None and mean is not None and dy.dtype is not None
    dims = dims_of(x)
    if dims is None:
        raise UnsupportedOperator(
            f"{describe(node)}: the input's rank is not known; export the model with shapes"
        )
    axes = [0, *range(2, len(dims))]
    training = bool(attribute(node, "training_mode", 0))
    if training:
        if attribute(node, "momentum", 0.9) == 0.0 and len(node.outputs) == 3:
            mean, var = node.outputs[1:]  # with momentum 0 the running statistics are the batch's
        else:
            mean = op.ReduceMean(x, axes, keepdims=0)
            centred = op.Sub(x, _per_channel(op, mean, len(dims)))
            var = op.ReduceMean(op.Mul(centred, centred), axes, keepdims=0)
    inverse = op.Reciprocal(op.Sqrt(op.Add(var, float(attribute(node, "epsilon", 1e-5)))))
    normal = op.Mul(op.Sub(x, _per_channel(op, mean, len(dims))), _per_channel(op, inverse, len(dims)))
    dscale = op.ReduceSum(op.Mul(dy, normal), axes, keepdims=0)
    dbias = op.ReduceSum(dy, axes, keepdims=0)
    gain = _per_channel(op, op.Mul(scale, inverse), len(dims))
    if not training:
        dmean_in = op.Neg(op.Mul(dbias, op.Mul(scale, inverse)))
        dvar_in = op.Mul(op.Mul(dscale, op.Mul(scale, op.Mul(inverse, inverse))), -0.5)
        return [op.Mul(dy, gain), dscale, dbias, dmean_in, dvar_in]
    count = op.Cast(op.Div(op.Size(x), op.Size(scale)), to=dy.dtype.value)
    pull = op.Add(
        _per_channel(op, op.Div(dbias, count), len(dims)),
        op.Mul(normal, _per_channel(op, op.Div(dscale, count), len(dims))),
    )
    return [op.Mul(op.Sub(dy, pull), gain), dscale, dbias, None, None]


def _per_channel(op: Builder, values: ir.Value, rank: int) -> ir.Value:
    """A vector over channels, shaped to broadcast against [N, C, ...]."""
    return op.Reshape(values, [1, -1, *[1] * (rank - 2)]) if rank > 1 else values
