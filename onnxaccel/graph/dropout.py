"""Dropout's masks as a pure function of seed, node, step and element, in standard operators.

onnxruntime's own Dropout draws from a generator that starts anew with every session, so that a resumed
training would see other masks. Here the only state is the number of the step, which is carried with the
parameters and saved in checkpoints.

A mask over ``[N, ...]`` takes a random word ``a_i`` for each row, new in every step, and ``b_j`` for each
element of a row, and keeps the element where ``(a_i + b_j)^2 mod 2^32`` is at least ``ratio 2^32``. The sum
is odd, and squares of odd words are uniform over the words that are 1 mod 8, so the share kept is right to
2^-29; the square makes sums that differ by a constant differ by a random word. The words come from Squares
(Widynski 2020, "Squares: a fast counter-based RNG"), four rounds of squaring and rotation. Per element that
leaves an addition, a multiplication and a comparison, a fraction of what drawing a number costs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxaccel.graph.builder import Builder

DRAWS = "onnxaccel.draws"
"""Name of the carried uint64 scalar that counts the steps for which masks were drawn."""

_UINT32, _UINT64 = ir.DataType.UINT32.value, ir.DataType.UINT64.value


class Masks:
    """Writes masks into a training graph.

    Args:
        op: The builder over the graph.
        seed: Seed of all masks.

    Attributes:
        draws: The number of the step, a uint64 scalar that the step must carry on; None without any mask.
    """

    def __init__(self, op: Builder, seed: int) -> None:
        self.draws: ir.Value | None = None
        self._op = op
        self._keys = np.random.SeedSequence(seed)

    def keep(self, x: ir.Value, ratio: float) -> ir.Value:
        """Which elements of ``x`` are kept, a bool tensor of its shape; ``x`` has at least one axis."""
        op = self._op
        if self.draws is None:
            self.draws = ir.val(DRAWS, ir.DataType.UINT64, ir.Shape([]))
        # an odd key has no bit pattern that squaring would lose; each node has two of its own
        row_key, column_key = self._keys.spawn(1)[0].generate_state(2, np.uint64) | np.uint64(1)
        shape = op.shape_of(x)
        rows = op.Slice(shape, [0], [1])
        columns = op.Slice(shape, [1], [2**31 - 1])
        in_step = op.Add(self._count(rows), op.Mul(self.draws, np.uint64(2**32)))
        a = op.Add(op.Mul(self._squares(in_step, row_key), np.uint32(2)), np.uint32(1))
        b = op.Mul(self._squares(self._count(op.ReduceProd(columns)), column_key), np.uint32(2))
        ones = op.Expand(op.constant([1]), op.Shape(columns))
        word = op.Add(
            op.Reshape(a, op.Concat(rows, ones, axis=0)),
            op.Reshape(b, op.Concat(op.constant([1]), columns, axis=0)),
        )
        return op.GreaterOrEqual(op.Mul(word, word), np.uint32(round(ratio * 2**32)))

    def _count(self, size: ir.Value) -> ir.Value:
        """0, 1, ... below ``size``, an int64 vector of one element, as uint64."""
        op = self._op
        return op.Cast(op.Range(np.int64(0), op.Squeeze(size), np.int64(1)), to=_UINT64)

    def _squares(self, counter: ir.Value, key: np.uint64) -> ir.Value:
        """A random uint32 for each uint64 of ``counter``."""
        op = self._op
        y = op.Mul(counter, key)
        z = op.Add(y, key)
        x = y
        for addend in (y, z, y):
            x = op.Add(op.Mul(x, x), addend)
            high, low = op.Div(x, np.uint64(2**32)), op.Mul(x, np.uint64(2**32))
            x = op.Add(high, low)
        return op.Cast(op.Div(op.Add(op.Mul(x, x), z), np.uint64(2**32)), to=_UINT32)
