"""Convolution in 1, 2 and 3 dimensions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, Dim, attribute, describe, dims_of
from onnxaccel.graph.rules.registry import gradient

Grads = list[ir.Value | None]


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution: one entry per spatial axis.

    Attributes:
        kernel: Kernel size.
        strides: Step of the window.
        dilations: Distance between kernel elements.
        begin: Padding before.
        end: Padding after.
        group: Number of groups the channels are split into.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    group: int

    @classmethod
    def of(cls, node: ir.Node, kernel: list[int]) -> Window:
        """Read the attributes of a normalised Conv or ConvTranspose."""
        rank = len(kernel)
        pads = attribute(node, "pads", [0] * 2 * rank)
        return cls(
            list(kernel),
            list(attribute(node, "strides", [1] * rank)),
            list(attribute(node, "dilations", [1] * rank)),
            list(pads[:rank]),
            list(pads[rank:]),
            attribute(node, "group", 1),
        )

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def extent(self) -> list[int]:
        """Size of the dilated kernel, ``d (k - 1) + 1``."""
        return [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]

    @property
    def pads(self) -> list[int]:
        """Padding as ONNX's attribute: all begins, then all ends."""
        return self.begin + self.end


@gradient("Conv")
def conv(op: Builder, node: ir.Node, dy: ir.Value) -> Grads:
    """y = W * x + b: dx = the transposed convolution of dy, dW = x correlated with dy, db = sum of dy."""
    x, weight = node.inputs[:2]
    assert x is not None and weight is not None
    window = Window.of(node, _kernel(node, weight))
    db = op.ReduceSum(dy, [0, *range(2, 2 + window.rank)], keepdims=0)
    return [_input_gradient(op, x, weight, dy, window), _weight_gradient(op, x, weight, dy, window), db]


def _kernel(node: ir.Node, weight: ir.Value) -> list[int]:
    kernel = attribute(node, "kernel_shape") or [d for d in (dims_of(weight) or [])[2:] if isinstance(d, int)]
    if not kernel:
        raise UnsupportedOperator(
            f"{describe(node)}: the kernel's size is not known; export the model with shapes"
        )
    return list(kernel)


def _input_gradient(op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, window: Window) -> ir.Value:
    """ConvTranspose, then up to stride - 1 zeros for the rows of x that no window reached."""
    sizes = (dims_of(x) or [])[2:]
    settings = {
        "kernel_shape": window.kernel,
        "strides": window.strides,
        "dilations": window.dilations,
        "group": window.group,
    }
    if len(sizes) == window.rank and all(isinstance(n, int) for n in sizes):
        missed = [
            (n + p + q - e) % s
            for n, p, q, e, s in zip(
                [int(n or 0) for n in sizes],
                window.begin,
                window.end,
                window.extent,
                window.strides,
                strict=True,
            )
        ]
        return op.ConvTranspose(dy, weight, pads=window.pads, output_padding=missed, **settings)
    full = op.ConvTranspose(dy, weight, **settings)
    spatial = range(2, 2 + window.rank)
    begin = [-p for p in window.begin]
    size_x, size_full = op.Shape(x, start=2), op.Shape(full, start=2)
    end = op.Sub(op.Add(size_x, window.begin), size_full)
    return op.Pad(full, op.Concat(begin, end, axis=0), None, list(spatial))


def _weight_gradient(op: Builder, x: ir.Value, weight: ir.Value, dy: ir.Value, window: Window) -> ir.Value:
    """One matrix product per kernel position, or one over all positions side by side.

    With channels first and everything else flattened, ``dW[:, :, k] = dY X_k^T`` where ``X_k`` is what kernel
    position k saw. Groups become a batch of products.
    """
    spatial = range(2, 2 + window.rank)
    swapped = [1, 0, *spatial]
    rows_dy = op.Reshape(
        op.Transpose(dy, perm=swapped), [window.group, _per_group(weight, 0, window.group), -1]
    )
    seen = _seen_by_kernel(op, op.Transpose(x, perm=swapped), dy, window)
    columns = [op.Reshape(part, [window.group, _per_group(weight, 1, 1), -1]) for part in seen]
    if window.group == 1:
        flat_dy = op.Reshape(rows_dy, [_per_group(weight, 0, 1), -1])
        stacked = op.Concat(*columns, axis=1) if len(columns) > 1 else columns[0]
        product = op.Gemm(
            flat_dy, op.Reshape(stacked, [len(columns) * _per_group(weight, 1, 1), -1]), transB=1
        )
    else:
        stacked = op.Concat(*columns, axis=1) if len(columns) > 1 else columns[0]
        product = op.MatMul(rows_dy, op.Transpose(stacked, perm=[0, 2, 1]))
    # [out, kernel positions, in] to [out, in, kernel positions]
    split = op.Reshape(product, [_per_group(weight, 0, 1), len(columns), _per_group(weight, 1, 1)])
    return op.reshape_like(op.Transpose(split, perm=[0, 2, 1]), weight)


def _per_group(weight: ir.Value, axis: int, group: int) -> int:
    size: Dim = (dims_of(weight) or [])[axis]
    assert isinstance(size, int), "a weight has a fixed shape"
    return size // group


def _seen_by_kernel(op: Builder, x: ir.Value, dy: ir.Value, window: Window) -> list[ir.Value]:
    """For each kernel position the elements of x that it was multiplied with; x is channels first.

    Position k starts at offset ``k dilation`` of the padded x and advances by the stride, as often as dy is
    long.
    """
    axes = list(range(2, 2 + window.rank))
    if any(window.pads):
        x = op.Pad(x, [0, 0, *window.begin, 0, 0, *window.end])
    if window.kernel == [1] * window.rank and window.strides == [1] * window.rank:
        return [x]
    sizes = (dims_of(dy) or [])[2:]
    static = len(sizes) == window.rank and all(isinstance(n, int) for n in sizes)
    parts = []
    for position in itertools.product(*(range(k) for k in window.kernel)):
        starts = [p * d for p, d in zip(position, window.dilations, strict=True)]
        if static:
            reach = [(int(n or 0) - 1) * s + 1 for n, s in zip(sizes, window.strides, strict=True)]
            ends: ir.Value | list[int] = [a + r for a, r in zip(starts, reach, strict=True)]
        else:
            count = op.Shape(dy, start=2)
            ends = op.Add(op.Mul(op.Sub(count, [1]), window.strides), [a + 1 for a in starts])
        parts.append(op.Slice(x, starts, ends, axes, window.strides))
    return parts
