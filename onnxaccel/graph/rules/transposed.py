"""Transposed convolution, and the inverse of max pooling."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.graph.builder import Builder, attribute
from onnxaccel.graph.rules.convolution import Grads, kernel_of
from onnxaccel.graph.rules.convolution_weight import weight_gradient
from onnxaccel.graph.rules.registry import gradient
from onnxaccel.graph.rules.window import Window


@gradient("ConvTranspose")
def conv_transpose(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """The adjoint of Conv: dx = W * dy, dW = dy correlated with x, db = sum of dy."""
    x, weight = node.inputs[:2]
    assert x is not None and weight is not None
    window = Window.of(node, kernel_of(node, weight))
    axes = list(range(2, 2 + window.rank))
    dx = op.Conv(
        dy,
        weight,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        group=window.group,
    )
    # output_padding beyond the stride leaves room for windows that no x stands for
    dx = op.Slice(dx, [0] * window.rank, op.Shape(x, start=2), axes)
    return [dx, weight_gradient(op, dy, weight, x, window), op.ReduceSum(dy, [0, *axes], keepdims=0)]


@gradient("MaxUnpool")
def max_unpool(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx = dy at the indices; they count within the plane that was pooled, which output_shape may extend."""
    x, indices = node.inputs[:2]
    assert x is not None
    if len(node.inputs) > 2:
        window = Window.of(node, attribute(node, "kernel_shape"))
        steps = op.Mul(op.Sub(op.Shape(x, start=2), [1]), window.strides)
        cut = [k - p - q for k, p, q in zip(window.kernel, window.begin, window.end, strict=True)]
        axes = list(range(2, 2 + window.rank))
        dy = op.Slice(dy, [0] * window.rank, op.Add(steps, cut), axes)
    return op.reshape_like(op.Gather(op.Reshape(dy, [-1]), op.Reshape(indices, [-1])), x)
