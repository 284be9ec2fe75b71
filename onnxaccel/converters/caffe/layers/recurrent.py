"""Recurrent layers. Blobs are [T, N, ...]; ``cont`` [T, N] is 0 where a sequence begins, else 1.

Caffe keeps the last state for its next forward pass; here each run begins with zeros, as Caffe's first one
does. Layers with ``expose_hidden`` take and give the state as blobs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe.builder import FixedBatch, NetBuilder, count, dims, layer_type, need
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Builder

_UNROLLED = 64
"""Times up to which a layer is written out step by step; more become a Scan, which has no gradient here."""

Step = Callable[[Builder, list[ir.Value], ir.Value, ir.Value], "tuple[list[ir.Value], ir.Value]"]
"""(op, state, x_t, cont_t [N, 1]) -> (new state, output)."""


@layer_type("LSTM")
def lstm(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """i, f, o = sigmoid, g = tanh of W_xc x + b_c + W_hc (cont h); c = cont f c + i g; h = o tanh(c)."""
    hidden = layer.proto.recurrent_param.num_output
    x, cont, static, states = _bottoms(layer, bottoms, 2)
    gates = _transform(net, layer, x, static, 4 * hidden)
    recurrent = net.parameter(layer, "recurrent_weight", 2 + (static is not None), 4 * hidden, hidden)
    transposed = net.op.Transpose(recurrent, perm=[1, 0])

    def step(
        op: Builder, state: list[ir.Value], x_t: ir.Value, cont_t: ir.Value
    ) -> tuple[list[ir.Value], ir.Value]:
        h, c = state
        z = op.Add(x_t, op.MatMul(op.Mul(h, cont_t), transposed))
        h, c = _lstm_unit(op, c, z, cont_t, hidden)
        return [h, c], h

    return _unroll(net, layer, gates, cont, states, hidden, 2, step)


@layer_type("RNN")
def rnn(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """H = tanh(W_xh x + b_h + W_hh (cont h)); o = tanh(W_ho h + b_o)."""
    hidden = layer.proto.recurrent_param.num_output
    x, cont, static, states = _bottoms(layer, bottoms, 1)
    inner = _transform(net, layer, x, static, hidden)
    first = 2 + (static is not None)
    recurrent = net.parameter(layer, "recurrent_weight", first, hidden, hidden)
    outer = net.parameter(layer, "output_weight", first + 1, hidden, hidden)
    bias = net.parameter(layer, "output_bias", first + 2, hidden)
    recurrent, outer = (net.op.Transpose(w, perm=[1, 0]) for w in (recurrent, outer))

    def step(
        op: Builder, state: list[ir.Value], x_t: ir.Value, cont_t: ir.Value
    ) -> tuple[list[ir.Value], ir.Value]:
        h = op.Tanh(op.Add(x_t, op.MatMul(op.Mul(state[0], cont_t), recurrent)))
        return [h], op.Tanh(op.Add(op.MatMul(h, outer), bias))

    return _unroll(net, layer, inner, cont, states, hidden, 1, step)


@layer_type("LSTMUnit")
def lstm_unit(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """One step of `lstm`: bottoms c [1, N, H], the gates' sums [1, N, 4 H], cont [1, N]; tops c, h."""
    need(layer, bottoms, 3)
    c, z, cont = bottoms
    hidden = count(layer, dims(c)[2:3])
    h, c = _lstm_unit(net.op, c, z, net.op.Unsqueeze(cont, [2]), hidden)
    return [net.like(c, bottoms[0], layer), net.like(h, bottoms[0], layer)]


def _lstm_unit(
    op: Builder, c: ir.Value, z: ir.Value, cont: ir.Value, hidden: int
) -> tuple[ir.Value, ir.Value]:
    i, f, o, g = op.node("Split", [z, [hidden] * 4], outputs=4, axis=-1)
    c = op.Add(op.Mul(op.Mul(cont, op.Sigmoid(f)), c), op.Mul(op.Sigmoid(i), op.Tanh(g)))
    return op.Mul(op.Sigmoid(o), op.Tanh(c)), c


def _bottoms(
    layer: Layer, bottoms: list[ir.Value], states: int
) -> tuple[ir.Value, ir.Value, ir.Value | None, list[ir.Value]]:
    """x, cont, what does not change with time (or None), and the initial states that are given."""
    given = states if layer.proto.recurrent_param.expose_hidden else 0
    need(layer, bottoms, 2 + given, 3 + given)
    if not layer.proto.recurrent_param.num_output:
        raise ConversionError(f"{layer}: has no num_output")
    static = bottoms[2] if len(bottoms) == 3 + given else None
    return bottoms[0], bottoms[1], static, bottoms[len(bottoms) - given :]


def _transform(net: NetBuilder, layer: Layer, x: ir.Value, static: ir.Value | None, width: int) -> ir.Value:
    """W x + b for all times at once, [T, N, width], with the static part added."""
    inputs = count(layer, dims(x)[2:])
    rows = x if len(dims(x)) == 3 else net.op.Reshape(x, [0, 0, inputs])
    weight = net.parameter(layer, "weight", 0, width, inputs)
    bias = net.parameter(layer, "bias", 1, width)
    y = net.op.Add(net.op.MatMul(rows, net.op.Transpose(weight, perm=[1, 0])), bias)
    if static is not None:
        flat = static if len(dims(static)) == 2 else net.op.Flatten(static, axis=1)
        fixed = net.parameter(layer, "static_weight", 2, width, count(layer, dims(static)[1:]))
        y = net.op.Add(y, net.op.MatMul(flat, net.op.Transpose(fixed, perm=[1, 0])))
    return y


def _unroll(
    net: NetBuilder,
    layer: Layer,
    x: ir.Value,
    cont: ir.Value,
    given: list[ir.Value],
    hidden: int,
    number: int,
    step: Step,
) -> list[ir.Value]:
    """The outputs [T, N, hidden] and, where the layer exposes them, the last states [1, N, hidden]."""
    times, items = dims(cont)[:2]
    marks = net.op.Unsqueeze(cont, [2])  # [T, N, 1]
    if given:
        states = [net.op.Squeeze(state, [0]) for state in given]
    else:
        shape = net.op.Concat(net.op.Shape(cont, start=1, end=2), net.op.constant([hidden]), axis=0)
        zeros = net.op.ConstantOfShape(shape, value=ir.tensor(np.zeros(1, np.float32)))
        zeros.type = ir.TensorType(ir.DataType.FLOAT)
        states = [zeros] * number
    if times == "batch" and net.dynamic_batch:
        raise FixedBatch(f"{layer} has a fixed number of times")
    if isinstance(times, int) and (times <= _UNROLLED or net.trainable):
        outputs = []
        x_steps, marks_steps = (
            net.op.node("Split", [v, [1] * times], outputs=times, axis=0) if times > 1 else [v]
            for v in (x, marks)
        )
        for x_t, cont_t in zip(x_steps, marks_steps, strict=True):
            states, y = step(net.op, states, net.op.Squeeze(x_t, [0]), net.op.Squeeze(cont_t, [0]))
            outputs.append(net.op.Unsqueeze(y, [0]))
        y = net.op.Concat(*outputs, axis=0)
    else:
        states, y = _scan(net, states, x, marks, hidden, step)
    tops = [net.shaped(y, [times, items, hidden], layer)]
    if layer.proto.recurrent_param.expose_hidden:
        tops += [net.shaped(net.op.Unsqueeze(s, [0]), [1, items, hidden], layer) for s in states]
    return tops


def _scan(
    net: NetBuilder, states: list[ir.Value], x: ir.Value, marks: ir.Value, hidden: int, step: Step
) -> tuple[list[ir.Value], ir.Value]:
    """`step` for each time, as ONNX Scan: the number of times is known at run time only."""

    def fresh(stem: str) -> ir.Value:
        return ir.val(net.op.fresh(stem), ir.DataType.FLOAT)

    olds = [fresh("state") for _ in states]
    x_t, cont_t = fresh("x"), fresh("cont")
    body = ir.Graph([*olds, x_t, cont_t], [], nodes=[], opset_imports=net.op.graph.opset_imports, name="step")
    op = Builder(body, prefix=net.op.fresh("step"))
    news, y = step(op, olds, x_t, cont_t)
    body.outputs.extend([*(op.Identity(new) for new in news), op.Identity(y)])
    results = net.op.node(
        "Scan",
        [*states, x, marks],
        outputs=len(states) + 1,
        body=ir.AttrGraph("body", body),
        num_scan_inputs=2,
    )
    for result in results:
        result.type = ir.TensorType(ir.DataType.FLOAT)
    return list(results[:-1]), results[-1]
