"""Normalisation layers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.broadcast import unbroadcast
from onnxaccel.graph.rules.registry import gradient

Grads = list[ir.Value | None]


@gradient("BatchNormalization")
def batch_normalization(
    op: Builder, node: ir.Node, dy: ir.Value, dmean: ir.Value | None = None, dvar: ir.Value | None = None
) -> Grads:
    """y = scale n + B with n = (x - mean) / s, s = sqrt(var + epsilon), per channel (Ioffe and Szegedy 2015).

    dB = sum(dy), dscale = sum(dy n). In inference mode dx = dy scale / s. In training mode mean and var are
    those of the m values of the batch, and dx = scale / s (dy - dB / m - n dscale / m), written over the
    centred x, so that each full-size tensor is read and written as seldom as can be.
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
    centred = op.Sub(x, _per_channel(op, mean, len(dims)))
    product = op.ReduceSum(op.Mul(dy, centred), axes, keepdims=0)
    dscale = op.Mul(product, inverse)
    dbias = op.ReduceSum(dy, axes, keepdims=0)
    gain = op.Mul(scale, inverse)
    if not training:
        dmean_in = op.Neg(op.Mul(dbias, gain))
        dvar_in = op.Mul(op.Mul(dscale, op.Mul(gain, inverse)), -0.5)
        return [op.Mul(dy, _per_channel(op, gain, len(dims))), dscale, dbias, dmean_in, dvar_in]
    count = op.Cast(op.Div(op.Size(x), op.Size(scale)), to=dy.dtype.value)
    pull = op.Div(op.Mul(op.Mul(gain, inverse), dscale), count)
    shift = op.Neg(op.Div(op.Mul(gain, dbias), count))
    dx = op.Sub(_affine(op, dy, gain, shift), op.Mul(centred, _per_channel(op, pull, len(dims))))
    momentum = float(attribute(node, "momentum", 0.9))
    if dmean is not None:  # running = momentum running + (1 - momentum) batch, for mean and variance
        dx = op.Add(dx, _per_channel(op, op.Div(op.Mul(dmean, 1.0 - momentum), count), len(dims)))
    if dvar is not None:
        share = op.Div(op.Mul(dvar, 2.0 * (1.0 - momentum)), count)
        dx = op.Add(dx, op.Mul(centred, _per_channel(op, share, len(dims))))
    carried = [None if d is None else op.Mul(d, momentum) for d in (dmean, dvar)]
    return [dx, dscale, dbias, *carried]


def _affine(op: Builder, x: ir.Value, scale: ir.Value, shift: ir.Value) -> ir.Value:
    """``scale x + shift`` per channel in one pass: a BatchNormalization with mean 0 and variance 1."""
    assert x.dtype is not None
    dtype = x.dtype.numpy()
    zero, one = (op.Expand(np.array(v, dtype), op.Shape(scale)) for v in (0, 1))
    return op.BatchNormalization(x, scale, shift, zero, one, epsilon=0.0)


def _per_channel(op: Builder, values: ir.Value, rank: int) -> ir.Value:
    """A vector over channels, shaped to broadcast against [N, C, ...]."""
    return op.Reshape(values, [1, -1, *[1] * (rank - 2)]) if rank > 1 else values


@gradient("LayerNormalization")
def layer_normalization(op: Builder, node: ir.Node, dy: ir.Value | None, *dstats: ir.Value | None) -> Grads:
    """y = n scale + B over the axes from ``axis`` on (Ba, Kiros and Hinton 2016); see `_standardize`."""
    x, scale, bias = [*node.inputs, None][:3]
    assert x is not None and scale is not None
    rank = _rank(node, x)
    axes = list(range(attribute(node, "axis", -1) % rank, rank))
    epsilon = float(attribute(node, "epsilon", 1e-5))
    mean, inverse = _statistics(op, x, axes, epsilon)
    normal = op.Mul(op.Sub(x, mean), inverse)
    dy = op.zeros_like(node.outputs[0]) if dy is None else dy
    dmean, dinverse = [*dstats, None, None][:2]
    dx = _standardize(op, op.Mul(dy, scale), normal, inverse, axes)
    if dmean is not None:
        dx = op.Add(dx, op.Div(op.CastLike(dmean, x), _count(op, x, mean)))
    if dinverse is not None:  # 1 / s = (var + epsilon)^(-1/2), so d(1 / s) / dx = -n / (s^2 m)
        pull = op.Mul(op.Mul(op.CastLike(dinverse, x), op.Mul(inverse, inverse)), normal)
        dx = op.Sub(dx, op.Div(pull, _count(op, x, mean)))
    dscale = unbroadcast(op, op.Mul(dy, normal), scale, x)
    return [dx, dscale, None if bias is None else unbroadcast(op, dy, bias, x)]


@gradient("InstanceNormalization")
def instance_normalization(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """y = n scale + B, n being each plane of each sample standardised (Ulyanov et al. 2016)."""
    x, scale, _ = node.inputs
    assert x is not None and scale is not None
    rank = _rank(node, x)
    axes = list(range(2, rank))
    mean, inverse = _statistics(op, x, axes, float(attribute(node, "epsilon", 1e-5)))
    normal = op.Mul(op.Sub(x, mean), inverse)
    dx = _standardize(op, op.Mul(dy, _per_channel(op, scale, rank)), normal, inverse, axes)
    return [
        dx,
        op.ReduceSum(op.Mul(dy, normal), [0, *axes], keepdims=0),
        op.ReduceSum(dy, [0, *axes], keepdims=0),
    ]


@gradient("GroupNormalization")
def group_normalization(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """y = n scale + B, n being each group of channels of each sample standardised (Wu and He 2018).

    scale and B have one element per channel from opset 21 on, one per group before.
    """
    x, scale, bias = node.inputs
    assert x is not None and scale is not None and bias is not None
    groups, channels = attribute(node, "num_groups"), (dims_of(x) or [None, None])[1]
    sizes = dims_of(scale) or [None]
    if not isinstance(channels, int) or sizes[0] not in (groups, channels):
        raise UnsupportedOperator(f"{describe(node)}: the number of channels must be known")
    rows = op.Reshape(x, [0, groups, -1])
    mean, inverse = _statistics(op, rows, [2], float(attribute(node, "epsilon", 1e-5)))
    normal = op.Mul(op.Sub(rows, mean), inverse)
    # [N, groups, channels per group, elements]: the axes that a scale per group or per channel runs over
    shape = [1, groups, channels // groups if sizes[0] == channels else 1, 1]
    summed = [0, 3] if sizes[0] == channels else [0, 2, 3]
    fine = [0, groups, channels // groups, -1]
    dfine = op.Reshape(dy, fine)
    scaled = op.Reshape(op.Mul(dfine, op.Reshape(scale, shape)), [0, groups, -1])
    dscale = op.ReduceSum(op.Mul(dfine, op.Reshape(normal, fine)), summed, keepdims=0)
    dbias = op.ReduceSum(dfine, summed, keepdims=0)
    dx = op.reshape_like(_standardize(op, scaled, normal, inverse, [2]), x)
    return [dx, op.reshape_like(dscale, scale), op.reshape_like(dbias, bias)]


@gradient("LpNormalization")
def lp_normalization(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = x / norm: dx = (dy - u sum(dy y)) / norm, 0 where norm = 0; u = y for p = 2, sign(x) for p = 1."""
    x, y, axis = node.inputs[0], node.outputs[0], attribute(node, "axis", -1)
    euclidean = attribute(node, "p", 2) == 2
    norm = (op.ReduceL2 if euclidean else op.ReduceL1)(x, [axis], keepdims=1)
    pull = op.Mul(y if euclidean else op.Sign(x), op.ReduceSum(op.Mul(dy, y), [axis], keepdims=1))
    return op.Where(op.Equal(norm, 0.0), 0.0, op.Div(op.Sub(dy, pull), norm))


@gradient("LRN")
def lrn(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = x s^-b with s = bias + alpha / size sum(x^2) over near channels (Krizhevsky et al. 2012).

    dx = dy s^-b - 2 b alpha / size x sum(dy x s^(-b-1)), this sum over the channels whose s had this x.
    """
    x = node.inputs[0]
    assert x is not None
    size, beta = attribute(node, "size"), float(attribute(node, "beta", 0.75))
    alpha = float(attribute(node, "alpha", 1e-4))
    before, after = (size - 1) // 2, size // 2

    def around(values: ir.Value, before: int, after: int) -> ir.Value:
        plane = op.Reshape(values, op.Concat(op.Shape(x, start=0, end=2), [-1], axis=0))
        plane = op.Unsqueeze(plane, [1])  # [N, 1, C, elements]: a window over channels is one over rows
        mean = op.AveragePool(plane, kernel_shape=[size, 1], pads=[before, 0, after, 0], count_include_pad=1)
        return op.reshape_like(op.Mul(mean, float(size)), x)

    s = op.Add(op.Mul(around(op.Mul(x, x), before, after), alpha / size), float(attribute(node, "bias", 1.0)))
    scaled = op.Mul(dy, op.Pow(s, -beta))
    pull = op.Mul(x, around(op.Div(op.Mul(scaled, x), s), after, before))
    return op.Sub(scaled, op.Mul(pull, 2 * beta * alpha / size))


def _rank(node: ir.Node, x: ir.Value) -> int:
    if x.shape is None:
        raise UnsupportedOperator(f"{describe(node)}: the input's rank is not known; export with shapes")
    return len(x.shape)


def _count(op: Builder, x: ir.Value, mean: ir.Value) -> ir.Value:
    """How many elements each mean is of, in the type of x."""
    assert x.dtype is not None
    return op.Cast(op.Div(op.Size(x), op.Size(mean)), to=x.dtype.value)


def _statistics(op: Builder, x: ir.Value, axes: list[int], epsilon: float) -> tuple[ir.Value, ir.Value]:
    """Mean and 1 / sqrt(variance + epsilon), the reduced axes kept."""
    mean = op.ReduceMean(x, axes, keepdims=1)
    centred = op.Sub(x, mean)
    variance = op.ReduceMean(op.Mul(centred, centred), axes, keepdims=1)
    return mean, op.Reciprocal(op.Sqrt(op.Add(variance, epsilon)))


def _standardize(
    op: Builder, grad: ir.Value, normal: ir.Value, inverse: ir.Value, axes: list[int]
) -> ir.Value:
    """Gradient of n = (x - mean) / s: dx = (dn - mean(dn) - n mean(dn n)) / s."""
    centred = op.Sub(grad, op.ReduceMean(grad, axes, keepdims=1))
    pull = op.Mul(normal, op.ReduceMean(op.Mul(grad, normal), axes, keepdims=1))
    return op.Mul(op.Sub(centred, pull), inverse)
