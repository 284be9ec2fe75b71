"""What a training graph must do without on a device, since onnxruntime has no kernel for it there."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxaccel.graph.builder import Builder, attribute, dims_of
from onnxaccel.graph.model import Model
from onnxaccel.graph.precision import emulate

_KERNELS = {
    ("cuda", "BFLOAT16"): frozenset(
        """Abs Add Cast Concat ConstantOfShape Div Dropout Erf Exp Expand Flatten Gather GatherElements
        GatherND Gemm Identity MatMul Max Min Mul Neg Pow ReduceSum Relu Reshape
        ScatterElements ScatterND Shape Sigmoid Sign Size Slice Softmax Split Squeeze Sub Sum
        Tanh Tile Transpose Unsqueeze Where""".split()
    )
}
"""Operators with kernels for a type on a device, where some have (onnxruntime's docs/OperatorKernels.md)."""


def narrow(model: Model, device: str, dtype: ir.DataType) -> None:
    """Compute in float32 and round, in place, what ``device`` has no kernels in ``dtype`` for.

    On the CPU that is everything; on CUDA in bfloat16 poolings, paddings and transposed convolutions.
    """
    if (device, dtype.name) != ("cuda", "FLOAT16"):
        emulate(model, dtype, _KERNELS.get((device, dtype.name), ()))


def lower(model: Model, device: str) -> None:
    """Replace, in place, the nodes that ``device`` has no kernel for, though other operators say the same.

    CUDA: BatchNormalization in training mode, which onnxruntime refuses there from opset 14 on.
    """
    if device != "cuda":
        return
    op = Builder(model.graph, prefix="lowered")
    for node in list(model.graph):
        if node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0):
            for old, new in zip(node.outputs, _batch_normalization(op, node), strict=False):
                new.type, new.shape = old.type, old.shape
                ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
                name, old.name = old.name, op.fresh("replaced")
                new.name = name
            model.graph.remove(node, safe=True)
    passes.TopologicalSortPass()(model.ir)


def _batch_normalization(op: Builder, node: ir.Node) -> list[ir.Value]:
    """Result and running statistics: ``scale (x - mean) / sqrt(var + epsilon) + B`` over all but channels."""
    x, scale, bias, running_mean, running_var = node.inputs
    assert x is not None
    rank = len(dims_of(x) or ())
    axes, channels = [0, *range(2, rank)], [1, -1, *[1] * (rank - 2)]

    def spread(vector: ir.Value | None) -> ir.Value:
        return op.Reshape(vector, channels)

    mean = op.ReduceMean(x, axes, keepdims=0)
    centred = op.Sub(x, spread(mean))
    var = op.ReduceMean(op.Mul(centred, centred), axes, keepdims=0)
    inverse = op.Reciprocal(op.Sqrt(op.Add(var, float(attribute(node, "epsilon", 1e-5)))))
    y = op.Add(op.Mul(centred, spread(op.Mul(inverse, scale))), spread(bias))
    momentum = float(attribute(node, "momentum", 0.9))
    if momentum == 0.0:
        return [y, mean, var]
    pairs = ((running_mean, mean), (running_var, var))
    return [y, *(op.Add(op.Mul(old, momentum), op.Mul(new, 1.0 - momentum)) for old, new in pairs)]
