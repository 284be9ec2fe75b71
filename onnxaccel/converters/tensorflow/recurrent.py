"""Keras's LSTM, GRU and SimpleRNN as ONNX's LSTM, GRU and RNN.

TensorFlow traces them as loops. Here a layer's loop is replaced by a mark that keeps its weights as they are,
in Keras's layout and under Keras's names, and becomes one ONNX node. Masked steps are taken out of the series
before (ONNX knows only series that end early) and their outputs filled in behind it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxaccel.converters.tensorflow.noise import shared_dropout
from onnxaccel.converters.tensorflow.operators import Writer, mark, marked

_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "tanh": ("Tanh", None, None),
    "sigmoid": ("Sigmoid", None, None),
    "relu": ("Relu", None, None),
    "softsign": ("Softsign", None, None),
    "softplus": ("Softplus", None, None),
    "linear": ("Affine", 1.0, 0.0),
    "elu": ("Elu", 1.0, None),
    "leaky_relu": ("LeakyRelu", 0.2, None),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5),
}
"""ONNX's name, alpha and beta by Keras's name."""

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

_UNROLL = 64
"""Loops of up to so many steps are written out in the trainable form, since a Loop has no gradient."""


def patches(layers: Any, trainable: bool) -> dict[Any, Any]:
    """What replaces ``inner_loop`` of Keras's recurrent layers, by class; ``layers`` is keras.layers."""
    loops = {kind: kind.inner_loop for kind in (layers.RNN, layers.LSTM, layers.GRU, layers.SimpleRNN)}

    def replaced(kind: Any) -> Any:
        def inner_loop(
            self: Any, sequences: Any, initial_state: Any, mask: Any = None, training: Any = False
        ) -> Any:
            cells = list(getattr(self.cell, "cells", [self.cell]))
            if all(_expressible(cell, layers, trainable) for cell in cells):
                return _as_marks(self, cells, layers, sequences, initial_state, mask, trainable)
            unroll, steps = self.unroll, sequences.shape[1]
            self.unroll = unroll or (trainable and steps is not None and steps <= _UNROLL)
            try:
                return loops[kind](self, sequences, initial_state, mask, training=False)
            finally:
                self.unroll = unroll

        return inner_loop

    return {kind: replaced(kind) for kind in loops}


def _expressible(cell: Any, layers: Any, trainable: bool) -> bool:
    if type(cell) not in (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell):
        return False
    names = {cell.activation.__name__, getattr(cell, "recurrent_activation", cell.activation).__name__}
    return names <= set(_ACTIVATIONS) and cell.compute_dtype == "float32"


def _as_marks(
    layer: Any, cells: list[Any], layers: Any, x: Any, states: Any, mask: Any, trainable: bool
) -> tuple[Any, Any, list[Any]]:
    """Last output, all outputs, last states: what ``inner_loop`` gives."""
    import tensorflow as tf

    states = tf.nest.flatten(states)
    mask = tf.nest.flatten(mask)[0] if mask is not None else None
    backwards = layer.go_backwards
    if mask is not None:
        if backwards:
            x, mask, backwards = tf.reverse(x, [1]), tf.reverse(mask, [1]), False
        kept = tf.cast(mask, tf.int32)
        steps = tf.shape(kept)[1]
        # kept steps first, each group in its order: the keys are distinct
        order = tf.math.top_k(kept * steps - tf.range(steps), k=steps).indices
        x = tf.gather(x, order, batch_dims=1)
    final: list[Any] = []
    for cell in cells:
        count = 2 if type(cell) is layers.LSTMCell else 1
        own, states = states[:count], states[count:]
        if trainable and cell.dropout:
            x = shared_dropout(x, cell.dropout, [1])
        lengths = None if mask is None else tf.reduce_sum(kept, 1)
        x, last = _mark_of(cell, layers, x, own, lengths, backwards)
        final += last
        if backwards:  # Keras gives outputs in the order in which they were computed
            x = tf.reverse(x, [1])
            backwards = False
    last_output = final[-count]
    if mask is not None:
        done = tf.cumsum(kept, 1)
        x = tf.gather(x, tf.maximum(done - 1, 0), batch_dims=1)
        shown = kept if layer.zero_output_for_mask else done
        x = tf.where(tf.expand_dims(shown > 0, -1), x, tf.zeros_like(x))
        last_output = tf.where(shown[:, -1:] > 0, last_output, tf.zeros_like(last_output))
    return last_output, x, final


def _mark_of(
    cell: Any, layers: Any, x: Any, states: list[Any], lengths: Any, backwards: bool
) -> tuple[Any, list[Any]]:
    import tensorflow as tf

    kind = {layers.LSTMCell: "LSTM", layers.GRUCell: "GRU", layers.SimpleRNNCell: "RNN"}[type(cell)]
    inputs = [x, tf.convert_to_tensor(cell.kernel), tf.convert_to_tensor(cell.recurrent_kernel)]
    if cell.use_bias:
        inputs.append(tf.convert_to_tensor(cell.bias))
    if lengths is not None:
        inputs.append(lengths)
    started = not all(_is_zero(state) for state in states)
    if started:
        inputs += states
    activation = cell.activation.__name__
    names = [activation] if kind == "RNN" else [cell.recurrent_activation.__name__, activation]
    if kind == "LSTM":
        names.append(activation)
    final = [((x.shape[0], cell.units), x.dtype)] * len(states)
    sequence, *last = mark(
        "recurrent",
        inputs,
        [((x.shape[0], x.shape[1], cell.units), x.dtype), *final],
        op_type=kind,
        hidden=cell.units,
        activations=names,
        bias=bool(cell.use_bias),
        lengths=lengths is not None,
        started=started,
        reset_after=bool(getattr(cell, "reset_after", False)),
        backwards=backwards,
    )
    return sequence, last


def _is_zero(state: Any) -> bool:
    """Whether a tensor of the graph being traced is known to be zero."""
    import tensorflow as tf

    if state.op.type == "Fill":
        state = state.op.inputs[1]
    value = tf.get_static_value(state)
    return value is not None and not np.any(value)


@marked("recurrent")
def recurrent(op: Writer) -> list[str]:
    """One LSTM, GRU or RNN; its weights are turned from Keras's layout into ONNX's in the graph."""
    given, inputs = op.settings, iter(op.x)
    kind, hidden = given["op_type"], given["hidden"]
    x = op.Transpose(next(inputs), perm=[1, 0, 2])
    w, r = _weights(op, next(inputs)), _weights(op, next(inputs))
    b = _bias(op, next(inputs)) if given["bias"] else None
    lengths = op.Cast(next(inputs), to=6) if given["lengths"] else None
    states = [op.Unsqueeze(state, [0]) for state in inputs]
    functions = [_ACTIVATIONS[name] for name in given["activations"]]
    attributes: dict[str, Any] = {
        "hidden_size": hidden,
        "direction": "reverse" if given["backwards"] else "forward",
    }
    if given["activations"] != {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}.get(
        kind, ["tanh"]
    ):
        attributes["activations"] = [name for name, _, _ in functions]
        # onnxruntime hands these out in order to the functions that take them
        attributes["activation_alpha"] = [alpha for _, alpha, _ in functions if alpha is not None]
        attributes["activation_beta"] = [beta for _, _, beta in functions if beta is not None]
    if kind == "GRU":
        attributes["linear_before_reset"] = int(given["reset_after"])
    attributes = {key: value for key, value in attributes.items() if value != []}
    count = 3 if kind == "LSTM" else 2
    sequence, *final = op.node(kind, [x, w, r, b, lengths, *states], outputs=count, **attributes)
    return [
        op.Transpose(op.Squeeze(sequence, [1]), perm=[1, 0, 2]),
        *(op.Squeeze(value, [0]) for value in final),
    ]


def _weights(op: Writer, kernel: str) -> str:
    """[input, gates * hidden] to [1, gates * hidden, input]."""
    return op.Unsqueeze(_gates(op, op.Transpose(kernel, perm=[1, 0]), 0), [0])


def _gates(op: Writer, value: str, axis: int) -> str:
    """LSTM's gates from Keras's order i, f, c, o to ONNX's i, o, f, c; the others agree."""
    if op.settings["op_type"] != "LSTM":
        return value
    i, f, c, o = op.node("Split", [value, [op.settings["hidden"]] * 4], outputs=4, axis=axis)
    return op.Concat(i, o, f, c, axis=axis)


def _bias(op: Writer, bias: str) -> str:
    """The input's and the recurrence's bias, [1, 2 * gates * hidden]; Keras has the second in GRU alone."""
    given = op.settings
    if given["op_type"] == "GRU" and given["reset_after"]:
        return op.Reshape(bias, [1, -1])
    nothing = np.zeros((1, _GATES[given["op_type"]] * given["hidden"]), np.float32)
    return op.Concat(op.Unsqueeze(_gates(op, bias, 0), [0]), nothing, axis=1)
