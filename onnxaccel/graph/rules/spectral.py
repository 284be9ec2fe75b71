"""Fourier transforms."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, constant_of, describe, dims_of
from onnxaccel.graph.rules.registry import expansion, gradient

_AXIS_IS_INPUT = 20
"""From this opset on, the axis of DFT is an input and no attribute."""


@gradient("DFT")
def dft(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = F x along one axis, F complex: dx = conj(F)^T dy, which is the transform of the other direction.

    The inverse carries the factor 1 / n, so dx = n DFT^-1(dy) for the transform and dx = DFT(dy) / n for its
    inverse. A one-sided transform leaves out what a real input makes redundant: dy is filled up with zeros.
    A one-sided inverse has a real result, in which each left-out element counts through its conjugate.
    """
    x, y = node.inputs[0], node.outputs[0]
    dims = dims_of(x) if x is not None else None
    if x is None or dims is None or not isinstance(dims[-1], int) or dy.dtype is None:
        raise UnsupportedOperator(f"{describe(node)}: the input's shape is not known; export with shapes")
    inverse, onesided = bool(attribute(node, "inverse", 0)), bool(attribute(node, "onesided", 0))
    axis = _axis(op, node) % len(dims)
    size = op.Shape(x, start=axis, end=axis + 1)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    halved = onesided and not inverse
    if given is not None:
        n = op.Reshape(given, [1])
    elif onesided and inverse:
        n = op.Shape(y, start=axis, end=axis + 1)
    else:
        n = size
    count = op.Cast(op.Squeeze(n, [0]), to=dy.dtype.value)
    dx = transform(op, _fit(op, dy, n, axis) if halved else dy, axis, inverse=not inverse)
    dx = op.Div(dx, count) if inverse else op.Mul(dx, count)
    if onesided and inverse:
        k = op.Unsqueeze(op.Range(0, op.Squeeze(n, [0]), 1), list(range(1, len(dims) - axis)))
        single = op.Or(op.Equal(k, [0]), op.Equal(op.Mul(k, [2]), n))
        dx = op.Where(single, dx, op.Mul(dx, 2.0))
    dx = _fit(op, dx, size, axis)
    return dx if dims[-1] == 2 else op.Slice(dx, [0], [1], [len(dims) - 1])


def transform(op: Builder, x: ir.Value, axis: int, **settings: int | bool) -> ir.Value:
    """A DFT node along ``axis``, in the form of the graph's opset."""
    given = {name: int(value) for name, value in settings.items()}
    if op.opset < _AXIS_IS_INPUT:
        return op.DFT(x, axis=axis, **given)
    return op.DFT(x, None, op.constant(axis), **given)


def _axis(op: Builder, node: ir.Node) -> int:
    if op.opset < _AXIS_IS_INPUT:
        return int(attribute(node, "axis", 1))
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return -2
    axis = constant_of(node.inputs[2])
    if axis is None:
        raise UnsupportedOperator(f"{describe(node)}: its axis must be a constant")
    return int(axis)


def _fit(op: Builder, x: ir.Value, size: ir.Value, axis: int) -> ir.Value:
    """``x`` cut or filled up with zeros at the end of an axis."""
    more = op.Sub(size, op.Shape(x, start=axis, end=axis + 1))
    return op.Pad(x, op.Concat([0], more, axis=0), None, [axis])


@expansion("STFT")
def stft(op: Builder, node: ir.Node) -> ir.Value:
    """The DFT of each frame times the window."""
    signal, step, window, length = [*node.inputs, None, None][:4]
    assert signal is not None
    if len(dims_of(signal) or []) == 2:
        signal = op.Unsqueeze(signal, [2])
    if length is None:
        if window is None:
            raise UnsupportedOperator(f"{describe(node)}: it has neither a window nor a frame_length")
        length = op.Squeeze(op.Shape(window, start=0, end=1), [0])
    size, step, length = op.Shape(signal, start=1, end=2), op.Reshape(step, [1]), op.Reshape(length, [1])
    size, step, length = (op.Cast(v, to=ir.DataType.INT64.value) for v in (size, step, length))
    frames = op.Add(op.Div(op.Sub(size, length), step), [1])
    begins = op.Mul(op.Range(0, op.Squeeze(frames, [0]), 1), step)
    places = op.Add(op.Unsqueeze(begins, [1]), op.Range(0, op.Squeeze(length, [0]), 1))
    seen = op.Gather(signal, places, axis=1)  # [batch, frames, length, 1 or 2]
    if window is not None:
        seen = op.Mul(seen, op.Unsqueeze(window, [1]))
    return transform(op, seen, 2, onesided=attribute(node, "onesided", 1))
