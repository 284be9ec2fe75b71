"""Quantized TensorFlow Lite graphs in the arithmetic of its kernels.

tf2onnx writes a quantized operator as DequantizeLinear, the real operator, QuantizeLinear. Real numbers fall
on the other side of a half now and then; one step in the middle of a network is ten behind its softmax. So
products, additions and averages are written on the integers, rounded as TensorFlow Lite's interpreter rounds
on CPU (XNNPACK, and its own kernels for averages). Floats hold integers below 2^24 exactly, doubles all
others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxaccel.graph.builder import Builder, attribute, constant_of
from onnxaccel.graph.model import Model

_EXACT = 2**23
"""Bound on biases, so that they leave room in a float's 24 bits."""


@dataclass(frozen=True)
class Quantized:
    """A tensor of integers q that stands for ``scale (q - zero)``.

    Attributes:
        value: The integers.
        scale: One scale, or one for each channel.
        zero: The zero point.
    """

    value: ir.Value
    scale: npt.NDArray[np.float32]
    zero: int


@dataclass(frozen=True)
class Target:
    """What an operator's result is quantized to.

    Attributes:
        node: The QuantizeLinear node.
        scale: Its scale.
        zero: Its zero point.
        dtype: Its integer type.
        low: The smallest integer, with the activation before it.
        high: The largest integer.
    """

    node: ir.Node
    scale: np.float32
    zero: int
    dtype: ir.DataType
    low: int
    high: int


def exact(model: Model) -> bool:
    """Write quantized products, additions and averages in integer arithmetic, in place.

    Returns:
        Whether there are products that quantize their input as they run ("dynamic range").
    """
    rules: dict[str, Callable[[Model, ir.Node], bool]] = {
        "Conv": _product,
        "MatMul": _product,
        "Add": _addition,
        "AveragePool": _average,
    }
    dynamic = [rules[node.op_type](model, node) for node in list(model.graph) if node.op_type in rules]
    ir.passes.Sequential(passes.RemoveUnusedNodesPass(), passes.TopologicalSortPass())(model.ir)
    return any(dynamic)


def _product(model: Model, node: ir.Node) -> bool:
    """``zero + round(sum (x - zero_x) w * (scale_x scale_w / scale))``, halves to even, scales in float32."""
    x, w = _dequantized(node.inputs[0]), _dequantized(node.inputs[1])
    if w is None or w.zero or constant_of(w.value) is None:
        return False
    if x is None:
        return _hybrid(model, node, w)
    if x.scale.size != 1:
        return False
    result, bias = node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "MatMul" and (after := _only_reader(result)) is not None and after.op_type == "Add":
        bias = next(value for value in after.inputs if value is not result)
        result = after.outputs[0]
    target = _target(result)
    addend = _dequantized(bias)
    held = constant_of(addend.value) if addend is not None else None
    if target is None or (bias is not None and held is None):
        return False
    if held is not None and np.abs(held.astype(np.int64)).max(initial=0) >= _EXACT:
        return False
    op = Builder(model.graph, f"{target.node.name}/exact")

    weights = constant_of(w.value)
    assert weights is not None
    # a sum over many inputs may leave a float's 24 bits; onnxruntime multiplies doubles, but convolves none
    reach = 255 * np.abs(weights.astype(np.int64)).sum(-2).max()
    long = node.op_type == "MatMul" and reach >= _EXACT
    dtype = ir.DataType.DOUBLE if long else ir.DataType.FLOAT

    def integers(value: ir.Value, zero: int) -> ir.Value:
        number = op.Cast(value, to=dtype.value)
        return op.Sub(number, np.asarray(zero, dtype.numpy())) if zero else number

    inputs: list[ir.Value] = [integers(x.value, x.zero), integers(w.value, 0)]
    if node.op_type == "Conv" and held is not None:
        inputs.append(op.constant(held.astype(np.float32)))
    given = {name: found.value for name, found in node.attributes.items()}
    total = op.node(node.op_type, inputs, **given)[0]
    if node.op_type == "MatMul" and held is not None:
        total = op.Add(total, held.astype(dtype.numpy()))
    if long:
        total = op.Cast(total, to=ir.DataType.FLOAT.value)
    factor = (x.scale * w.scale / target.scale).astype(np.float32)
    if node.op_type == "Conv" and factor.size > 1:
        factor = factor.reshape(-1, *[1] * (weights.ndim - 2))
    # the Max changes nothing; it keeps onnxruntime from multiplying the factor into the weights
    apart = op.Max(total, np.finfo(np.float32).min)
    scaled = op.Mul(apart, factor if factor.size > 1 else np.float32(factor.item()))
    _replace(op, target, op.Add(op.Round(scaled), np.float32(target.zero)))
    return False


def _hybrid(model: Model, node: ir.Node, w: Quantized) -> bool:
    """A product of real numbers with quantized weights ("dynamic range"): it quantizes its input as it runs.

    XNNPACK's qd8: 8 bits between the smallest and the largest number (and 0) of each sample, or of each
    vector where the kernel is a plain product.
    """
    x, weights = node.inputs[0], constant_of(w.value)
    if x is None or weights is None or weights.dtype != np.int8 or attribute(node, "group", 1) != 1:
        return False
    plain = {*weights.shape[2:], *(attribute(node, "strides") or [1])} == {1}
    axes = [-1] if node.op_type == "MatMul" else [1] if plain else list(range(1, weights.ndim))
    op = Builder(model.graph, f"{node.name}/dynamic")
    x.type = x.type or ir.TensorType(ir.DataType.FLOAT)
    low = op.Min(op.ReduceMin(x, axes, keepdims=1), np.float32(0))
    high = op.Max(op.ReduceMax(x, axes, keepdims=1), np.float32(0))
    extent = op.Sub(high, low)
    one = op.constant(np.float32(1))
    scale = op.Where(op.Equal(extent, np.float32(0)), one, op.Div(np.float32(255), extent))
    scale.type = x.type
    below, above = op.Mul(low, scale), op.Mul(high, scale)
    nearer = op.Greater(op.Sub(op.Add(below, above), np.float32(1)), np.float32(0))
    zero = op.Where(nearer, op.Sub(np.float32(-128), below), op.Sub(np.float32(127), above))
    zero.type = x.type
    zero = op.Round(op.Clip(zero, np.float32(-128), np.float32(127)))
    rounded = op.Add(op.Round(op.Mul(x, scale)), zero)
    integers = op.Sub(op.Clip(rounded, np.float32(-128), np.float32(127)), zero)
    given = {name: found.value for name, found in node.attributes.items()}
    total = op.node(node.op_type, [integers, op.Cast(w.value, to=ir.DataType.FLOAT.value)], **given)[0]
    spatial = [1] * (weights.ndim - 2) if node.op_type == "Conv" else []
    factor = w.scale.reshape(-1, *spatial) if w.scale.size > 1 else np.float32(w.scale.item())
    result = op.Mul(op.Max(total, np.finfo(np.float32).min), op.Div(factor, scale))
    bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        result = op.Add(result, bias.reshape(-1, *spatial))
    elif len(node.inputs) > 2 and node.inputs[2] is not None:
        result = op.Add(result, op.Reshape(node.inputs[2], [-1, *spatial]))
    old = node.outputs[0]
    result.shape, name = old.shape, old.name
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    old.name, result.name = None, name
    return True


def _addition(model: Model, node: ir.Node) -> bool:
    """XNNPACK's qs8-vadd: ``zero + ((a ma + b mb + bias) >> shift)``, the larger factor of 21 bits."""
    a, b = _dequantized(node.inputs[0]), _dequantized(node.inputs[1])
    target = _target(node.outputs[0])
    if a is None or b is None or target is None or a.scale.size != 1 or b.scale.size != 1:
        return False
    ratios = [np.float32((side.scale / target.scale).item()) for side in (a, b)]
    shift = 20 - int(np.frexp(max(ratios))[1] - 1)
    factors = [float(np.rint(float(ratio) * 2.0**shift)) for ratio in ratios]
    bias = 2.0 ** (shift - 1) - factors[0] * a.zero - factors[1] * b.zero
    op = Builder(model.graph, f"{target.node.name}/exact")

    def term(side: Quantized, factor: float) -> ir.Value:
        number = op.Cast(side.value, to=ir.DataType.DOUBLE.value)
        return op.Mul(number, np.float64(factor * 2.0**-shift))

    total = op.Add(op.Add(term(a, factors[0]), term(b, factors[1])), np.float64(bias * 2.0**-shift))
    _replace(op, target, op.Add(op.Floor(total), np.float64(target.zero)))
    return False


def _average(model: Model, node: ir.Node) -> bool:
    """The mean of the integers themselves, halves away from zero: input and output are quantized alike."""
    x, target = _dequantized(node.inputs[0]), _target(node.outputs[0])
    if x is None or target is None or x.scale.size != 1:
        return False
    if x.zero != target.zero or not np.isclose(x.scale.item(), target.scale, rtol=1e-6):
        return False
    if any(attribute(node, "pads") or []) and x.zero:  # what is padded with is left out of the mean
        return False
    op = Builder(model.graph, f"{target.node.name}/exact")
    given = {name: found.value for name, found in node.attributes.items()}
    mean = op.node("AveragePool", [op.Cast(x.value, to=ir.DataType.FLOAT.value)], **given)[0]
    # a quotient is a half or at least 1 / (2 n) away from one; its own rounding is far smaller
    away = op.Mul(op.Sign(mean), op.Floor(op.Add(op.Abs(mean), np.float32(0.5 + 1e-5))))
    _replace(op, target, away)
    return False


def _replace(op: Builder, target: Target, result: ir.Value) -> None:
    """Put a result, whole numbers of a float type, in the place of the quantized one."""
    dtype = result.dtype or ir.DataType.FLOAT
    low, high = (np.asarray(limit, dtype.numpy()) for limit in (target.low, target.high))
    final = op.Cast(op.Clip(result, low, high), to=target.dtype.value)
    old = target.node.outputs[0]
    final.shape, name = old.shape, old.name
    ir.convenience.replace_all_uses_with(old, final, replace_graph_outputs=True)
    old.name, final.name = None, name


def _target(value: ir.Value) -> Target | None:
    """The QuantizeLinear that alone reads a value, through at most one activation."""
    last, low, high = _only_reader(value), -np.inf, np.inf
    if last is not None and last.op_type == "Relu":
        last, low = _only_reader(last.outputs[0]), 0.0
    elif last is not None and last.op_type == "Clip":
        limits = [constant_of(limit) for limit in [*last.inputs[1:3], None, None][:2]]
        if any(limit is None for limit in limits):
            return None
        low, high = (float(limit) for limit in limits if limit is not None)
        last = _only_reader(last.outputs[0])
    if last is None or last.op_type != "QuantizeLinear":
        return None
    scale, zero = constant_of(last.inputs[1]), constant_of(last.inputs[2])
    if scale is None or zero is None or scale.size != 1 or zero.dtype not in (np.int8, np.uint8):
        return None
    bounds, shift = np.iinfo(zero.dtype), int(zero.item())
    first = max(int(bounds.min), shift + round(low / float(scale.item())) if low > -np.inf else -(2**31))
    final = min(int(bounds.max), shift + round(high / float(scale.item())) if high < np.inf else 2**31)
    dtype = ir.DataType.from_numpy(zero.dtype)
    return Target(last, np.float32(scale.item()), shift, dtype, first, final)


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None


def _dequantized(value: ir.Value | None) -> Quantized | None:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    scale, zero = constant_of(node.inputs[1]), constant_of(node.inputs[2])
    if scale is None or zero is None or np.unique(zero).size != 1:
        return None
    return Quantized(node.inputs[0], np.asarray(scale, np.float32), int(zero.flat[0]))
