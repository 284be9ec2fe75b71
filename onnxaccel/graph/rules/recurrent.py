"""RNN, GRU and LSTM, written out into operators that have gradient rules.

Few steps, whose number is fixed, stand one after the other; any others become a Scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, Dim, attribute, describe, dims_of
from onnxaccel.graph.rules.registry import expansion

_UNROLLED = 128
"""Up to so many steps are written one after the other, which runs faster than Scan."""

Activation = Callable[[Builder, ir.Value], ir.Value]
_PLAIN = frozenset({"Sigmoid", "Tanh", "Relu", "Softsign", "Softplus"})
_SETTINGS: dict[str, tuple[float | None, float | None]] = {
    "Affine": (1.0, 0.0),
    "LeakyRelu": (0.01, None),
    "ThresholdedRelu": (1.0, None),
    "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, None),
}
"""Activations with settings: default alpha and beta, None where there is none (ONNX: LSTM)."""
_INDEX_MAX = 2**63 - 1

State = tuple[ir.Value, ...]
"""What a cell carries from step to step: h, and c for LSTM; each [batch, hidden]."""


@dataclass(frozen=True)
class Cell:
    """One direction of one recurrent layer.

    Attributes:
        op: The builder.
        weight: Transposed input weights, [input, gates * hidden].
        recurrence: Transposed recurrent weights, [hidden, gates * hidden].
        bias: Input bias, [gates * hidden], or None.
        recurrent_bias: Recurrent bias, [gates * hidden], or None.
        peephole: LSTM's peephole weights for i, o and f, [3 * hidden], or None.
        activations: The functions f, g and h of ONNX's formulas.
        clip: Bound on what activations are applied to, or None.
        linear_before_reset: GRU's form: reset after the recurrent product.
        input_forget: LSTM's coupling f = 1 - i.
    """

    op: Builder
    weight: ir.Value
    recurrence: ir.Value
    bias: ir.Value | None
    recurrent_bias: ir.Value | None
    peephole: ir.Value | None
    activations: Sequence[Activation]
    clip: float | None
    linear_before_reset: bool
    input_forget: bool

    def act(self, index: int, x: ir.Value) -> ir.Value:
        """Apply activation number ``index``; like onnxruntime, LSTM's last one to what is not clipped."""
        if self.clip is not None and index != 2:
            x = self.op.Clip(x, -self.clip, self.clip)
        return self.activations[index](self.op, x)

    def biased(self, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        """``x + bias``."""
        return x if bias is None else self.op.Add(x, bias)

    def recur(self, h: ir.Value) -> ir.Value:
        """``h R^T + Rb``."""
        return self.biased(self.op.MatMul(h, self.recurrence), self.recurrent_bias)


def _rnn(cell: Cell, x: ir.Value, state: State) -> State:
    """h' = f(x W^T + h R^T + Wb + Rb)."""
    return (cell.act(0, cell.op.Add(x, cell.recur(state[0]))),)


def _gru(cell: Cell, x: ir.Value, state: State) -> State:
    """h' = (1 - z) n + z h with gates z, r and candidate n (ONNX: GRU)."""
    op, (h,) = cell.op, state
    xz, xr, xn = op.node("Split", [x], outputs=3, axis=-1, num_outputs=3)
    hz, hr, hn = op.node("Split", [cell.recur(h)], outputs=3, axis=-1, num_outputs=3)
    z, r = cell.act(0, op.Add(xz, hz)), cell.act(0, op.Add(xr, hr))
    if cell.linear_before_reset:
        n = cell.act(1, op.Add(xn, op.Mul(r, hn)))
    else:
        _, _, recurrence = op.node("Split", [cell.recurrence], outputs=3, axis=-1, num_outputs=3)
        recurrent = op.MatMul(op.Mul(r, h), recurrence)
        if cell.recurrent_bias is not None:
            bias = op.node("Split", [cell.recurrent_bias], outputs=3, axis=-1, num_outputs=3)[2]
            recurrent = op.Add(recurrent, bias)
        n = cell.act(1, op.Add(xn, recurrent))
    return (op.Add(op.Mul(op.Sub(1.0, z), n), op.Mul(z, h)),)


def _lstm(cell: Cell, x: ir.Value, state: State) -> State:
    """c' = f c + i g, h' = o h(c') with gates i, o, f and candidate g (ONNX: LSTM)."""
    op, (h, c) = cell.op, state
    i, o, f, g = op.node("Split", [op.Add(x, cell.recur(h))], outputs=4, axis=-1, num_outputs=4)
    peep: Sequence[ir.Value | None] = [None] * 3
    if cell.peephole is not None:
        peep = op.node("Split", [cell.peephole], outputs=3, axis=-1, num_outputs=3)

    def look(gate: ir.Value, at: ir.Value, weight: ir.Value | None) -> ir.Value:
        return gate if weight is None else op.Add(gate, op.Mul(at, weight))

    i = cell.act(0, look(i, c, peep[0]))
    f = op.Sub(1.0, i) if cell.input_forget else cell.act(0, look(f, c, peep[2]))
    c = op.Add(op.Mul(f, c), op.Mul(i, cell.act(1, g)))
    o = cell.act(0, look(o, c, peep[1]))
    return op.Mul(o, cell.act(2, c)), c


Step = Callable[[Cell, ir.Value, State], State]
_CELLS: dict[str, tuple[Step, int, list[str]]] = {
    "RNN": (_rnn, 1, ["Tanh"]),
    "GRU": (_gru, 1, ["Sigmoid", "Tanh"]),
    "LSTM": (_lstm, 2, ["Sigmoid", "Tanh", "Tanh"]),
}
"""Step, number of states and default activations by operator."""


@expansion("RNN", "GRU", "LSTM")
def recurrent(op: Builder, node: ir.Node) -> list[ir.Value]:
    """Y, Y_h (and Y_c), each direction on its own."""
    step, states, defaults = _CELLS[node.op_type]
    x, w, r, b, lengths, *rest = [*node.inputs, *[None] * 8][:8]
    assert x is not None and w is not None and r is not None
    batch_first = bool(attribute(node, "layout", 0))
    steps = (dims_of(x) or [None, None])[1 if batch_first else 0]
    hidden = (dims_of(r) or [None])[-1]
    if not isinstance(hidden, int):
        raise UnsupportedOperator(f"{describe(node)}: the shape of its weights is not known")
    direction = attribute(node, "direction", "forward")
    reverses = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    activations = _activations(node, defaults * len(reverses))
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])

    def part(value: ir.Value | None, axis: int, index: int) -> ir.Value | None:
        return None if value is None else op.Gather(value, index, axis=axis)

    sequences, finals = [], []
    for index, reverse in enumerate(reverses):
        weights, recurrence, bias = part(w, 0, index), part(r, 0, index), part(b, 0, index)
        biases: Sequence[ir.Value | None] = [None, None]
        if bias is not None:
            biases = op.node("Split", [bias], outputs=2, axis=0, num_outputs=2)
        cell = Cell(
            op,
            op.Transpose(weights, perm=[1, 0]),
            op.Transpose(recurrence, perm=[1, 0]),
            biases[0],
            biases[1],
            part(rest[2], 0, index) if node.op_type == "LSTM" else None,
            activations[index * len(defaults) : (index + 1) * len(defaults)],
            attribute(node, "clip"),
            bool(attribute(node, "linear_before_reset", 0)),
            bool(attribute(node, "input_forget", 0)),
        )
        initial = [part(value, 1 if batch_first else 0, index) for value in rest[:states]]
        sequence, final = _unroll(cell, step, x, steps, hidden, lengths, initial, reverse)
        sequences.append(op.Unsqueeze(sequence, [1]))
        finals.append([op.Unsqueeze(value, [0]) for value in final])
    outputs = [_join(op, sequences, 1), *(_join(op, list(f), 0) for f in zip(*finals, strict=True))]
    if batch_first:
        outputs = [op.Transpose(outputs[0], perm=[2, 0, 1, 3])] + [
            op.Transpose(value, perm=[1, 0, 2]) for value in outputs[1:]
        ]
    return outputs


def _unroll(
    cell: Cell,
    step: Step,
    x: ir.Value,
    steps: Dim,
    hidden: int,
    lengths: ir.Value | None,
    initial: Sequence[ir.Value | None],
    reverse: bool,
) -> tuple[ir.Value, State]:
    """All h, [steps, batch, hidden], and the last states; beyond its length a sequence stands still."""
    op = cell.op
    if reverse and lengths is not None:
        x = op.ReverseSequence(x, op.Cast(lengths, to=ir.DataType.INT64.value))
    elif reverse:
        x = _reversed(op, x)
    products = cell.biased(op.MatMul(x, cell.weight), cell.bias)
    nothing = op.Expand(op.CastLike(0.0, x), op.Concat(op.Shape(x, start=1, end=2), [hidden], axis=0))
    nothing.type, nothing.shape = x.type, ir.Shape([(dims_of(x) or [None] * 2)[1], hidden])
    state: State = tuple(nothing if value is None else value for value in initial)
    ends = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT64.value)
    if isinstance(steps, int) and steps <= _UNROLLED:
        rows = []
        for t in range(steps):
            state, row = _advance(cell, step, op.Gather(products, t, axis=0), state, ends, t)
            rows.append(op.Unsqueeze(row, [0]))
        sequence = _join(op, rows, 0)
    else:
        sequence, state = _scan(cell, step, products, state, ends)
    if reverse and lengths is not None:
        sequence = op.ReverseSequence(sequence, op.Cast(lengths, to=ir.DataType.INT64.value))
    elif reverse:
        sequence = _reversed(op, sequence)
    return sequence, state


def _advance(
    cell: Cell, step: Step, x: ir.Value, state: State, ends: ir.Value | None, t: ir.Value | int
) -> tuple[State, ir.Value]:
    """The state after step ``t`` and the row of Y; a sequence that has ended keeps its state and gives 0."""
    op, new = cell.op, step(cell, x, state)
    if ends is None:
        return new, new[0]
    running = op.Unsqueeze(op.Greater(ends, t), [1])
    kept = tuple(op.Where(running, a, b) for a, b in zip(new, state, strict=True))
    return kept, op.Where(running, new[0], 0.0)


def _scan(
    cell: Cell, step: Step, products: ir.Value, state: State, ends: ir.Value | None
) -> tuple[ir.Value, State]:
    """All steps by one Scan: rows of Y, [steps, batch, hidden], and the last state."""
    body = ir.Graph([], [], nodes=[], name="steps")
    inner = cell.op.within(body)
    dtype = products.dtype or ir.DataType.FLOAT
    before = [ir.val(inner.fresh("state"), dtype, value.shape) for value in state]
    x = ir.val(inner.fresh("x"), dtype)
    t = ir.val(inner.fresh("t"), ir.DataType.INT64, ir.Shape([]))
    after, row = _advance(replace(cell, op=inner), step, x, tuple(before), ends, t)
    row = inner.Identity(row)  # the state is an output of its own
    body.inputs.extend([*before, x, t])
    body.outputs.extend([*after, row])
    count = cell.op.Squeeze(cell.op.Shape(products, start=0, end=1), [0])
    scanned = [*state, products, cell.op.Range(0, count, 1)]
    results = cell.op.node("Scan", scanned, outputs=len(state) + 1, body=body, num_scan_inputs=2)
    for result in results:
        result.type = ir.TensorType(dtype)
    return results[-1], tuple(results[:-1])


def _activations(node: ir.Node, defaults: list[str]) -> list[Activation]:
    """The activation functions; those with settings take the next of activation_alpha and _beta."""
    alphas = iter(attribute(node, "activation_alpha") or ())
    betas = iter(attribute(node, "activation_beta") or ())

    def settings(name: str) -> Activation:
        alpha, beta = _SETTINGS[name]
        a = float(next(alphas, alpha)) if alpha is not None else 0.0
        b = float(next(betas, beta)) if beta is not None else 0.0
        if name == "Affine":
            return lambda op, x: op.Add(op.Mul(x, a), b)
        if name == "ScaledTanh":
            return lambda op, x: op.Mul(op.Tanh(op.Mul(x, b)), a)
        return lambda op, x: op.node(name, [x], alpha=a, beta=None if beta is None else b)[0]

    def plain(name: str) -> Activation:
        return lambda op, x: op.node(name, [x])[0]

    names = attribute(node, "activations") or defaults
    unknown = set(names) - _PLAIN - set(_SETTINGS)
    if unknown:
        raise UnsupportedOperator(f"{describe(node)}: activation {min(unknown)} has no gradient rule")
    return [settings(name) if name in _SETTINGS else plain(name) for name in names]


def _reversed(op: Builder, x: ir.Value) -> ir.Value:
    return op.Slice(x, [-1], [-_INDEX_MAX], [0], [-1])


def _join(op: Builder, parts: list[ir.Value], axis: int) -> ir.Value:
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=axis)
