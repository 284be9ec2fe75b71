"""Connectionist temporal classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.errors import ModelError
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.losses.base import SEQUENCES, TARGET, Loss, Written, before, known_dims, loss, size_of

_NEVER = -1e30
"""The logarithm of a probability of 0: finite, so that differences of two are no NaN."""


@dataclass(frozen=True)
class _Paths:
    """What of a batch of label sequences the paths through them depend on.

    Attributes:
        labels: The labels with a blank before, between and after them, int64 [N, L] with L = 2 S + 1.
        length: How many labels there are, int64 [N, 1].
        place: 0 to L - 1, int64 [L].
        skip: 0 where a path may come from two places before, else _NEVER; [N, L].
    """

    labels: ir.Value
    length: ir.Value
    place: ir.Value
    skip: ir.Value


@loss("ctc")
@dataclass(frozen=True)
class CTC(Loss):
    """``mean_n -log p(labels_n) / S_n`` (Graves et al. 2006), as torch.nn.CTCLoss over whole outputs.

    The output holds scores [N, T, C], with time_major [T, N, C], for which a final Softmax or LogSoftmax is
    applied exactly once. The target holds label sequences, int64 [N, S], the shorter ones filled up with -1.
    p sums over all paths of T classes that give the labels once repetitions and then blanks are left out;
    forward and backward sums a and b over time give the slope at the scores: softmax - posterior, where the
    posterior of a class sums ``exp(a + b - log p)`` over its places. Sequences that no path gives have an
    infinite loss, or none with zero_infinity.
    """

    blank: int = 0
    time_major: bool = False
    zero_infinity: bool = False

    kind: ClassVar[str] = SEQUENCES

    def target(self, prediction: ir.Value) -> ir.Value:
        """int64 labels [N, S]."""
        dims = known_dims(prediction)
        if len(dims) != 3:
            raise ModelError(
                f"CTC needs an output of shape [N, T, classes]; {prediction.name!r} has shape {dims}"
            )
        samples = dims[1 if self.time_major else 0]
        return ir.val(TARGET, ir.DataType.INT64, ir.Shape([samples, "onnxaccel.labels"]))

    def classes(self, prediction: ir.Value) -> int | None:
        """The size of the last axis, blank included."""
        width = known_dims(prediction)[-1]
        return width if isinstance(width, int) else None

    def misfits(self, labels: npt.NDArray[np.int64], classes: int | None) -> npt.NDArray[np.bool_]:
        """See `Loss.misfits`; negative labels fill sequences up."""
        wrong: npt.NDArray[np.bool_] = labels == self.blank
        return wrong if classes is None else wrong | (labels >= classes)

    def takes(self, classes: int | None) -> str:
        """See `Loss.takes`."""
        return f"labels are below {classes} and not {self.blank}, the blank; -1 fills sequences up"

    def write(self, op: Builder, prediction: ir.Value, target: ir.Value | None) -> Written:
        """See `Loss.write`."""
        assert target is not None
        source = before(prediction, {"Softmax", "LogSoftmax"}, -1)
        scores = prediction if source is None else source
        log_p = op.LogSoftmax(scores, axis=-1)
        by_time = log_p if self.time_major else op.Transpose(log_p, perm=[1, 0, 2])
        paths = self._paths(op, target)
        emitted = self._emitted(op, by_time, paths)
        start = op.Where(op.Equal(op.Mul(paths.length, 0), paths.place), 0.0, _NEVER)
        end = op.Where(op.Equal(op.Mul(paths.length, 2), paths.place), 0.0, _NEVER)
        forward = _sums(op, start, emitted, paths.skip, backward=False)
        backward = _sums(op, end, emitted, paths.skip, backward=True)

        last = op.Gather(forward, np.int64(-1), axis=0)
        behind = op.Sub(op.Mul(paths.length, 2), paths.place)
        done = op.And(op.GreaterOrEqual(behind, 0), op.LessOrEqual(behind, 1))
        log_all = _log_sum(op, op.Where(done, last, _NEVER))  # [N, 1]
        possible = op.Greater(log_all, _NEVER / 2)
        shares = op.Exp(op.Sub(op.Sub(op.Add(forward, backward), emitted), op.Where(possible, log_all, 0.0)))
        hot = op.OneHot(
            paths.labels, op.Gather(op.Shape(log_p), [2]), op.constant([0.0, 1.0], log_p.dtype), axis=-1
        )
        posterior = op.MatMul(op.Transpose(shares, perm=[1, 0, 2]), hot)  # [N, T, C]
        if self.time_major:
            posterior = op.Transpose(posterior, perm=[1, 0, 2])
        samples = size_of(op, paths.length, log_p)
        assert log_p.dtype is not None
        length = op.Cast(op.Max(paths.length, 1), to=log_p.dtype.value)
        share = op.Reciprocal(op.Mul(length, samples))
        impossible = 0.0 if self.zero_infinity else np.float32(np.inf)
        terms = op.Where(possible, op.Neg(log_all), op.constant(impossible, log_p.dtype))
        value = op.ReduceSum(op.Mul(terms, share), keepdims=0)
        factor = op.Where(possible, share, 0.0)
        factor = op.Unsqueeze(factor, [0] if self.time_major else [2])
        gradient = op.Mul(op.Sub(op.Exp(log_p), posterior), factor)
        return Written(value, scores, gradient, samples, scores)

    def _paths(self, op: Builder, target: ir.Value) -> _Paths:
        filler = op.Less(target, 0)
        labels = op.Where(filler, self.blank, target)
        blanks = op.Add(op.Mul(labels, 0), self.blank)
        pairs = op.Concat(op.Unsqueeze(blanks, [2]), op.Unsqueeze(labels, [2]), axis=2)
        spaced = op.Pad(op.Reshape(pairs, [0, -1]), [0, 0, 0, 1], self.blank)
        earlier = op.Slice(op.Pad(spaced, [0, 2, 0, 0], self.blank), [0], [-2], [1])
        free = op.Not(op.Or(op.Equal(spaced, self.blank), op.Equal(spaced, earlier)))
        count = op.Cast(op.Not(filler), to=ir.DataType.INT64.value)
        width = op.Squeeze(op.Shape(spaced, start=1, end=2))
        return _Paths(
            spaced,
            op.ReduceSum(count, [1], keepdims=1),
            op.Range(np.int64(0), width, np.int64(1)),
            op.Where(free, op.constant(0.0), op.constant(_NEVER)),
        )

    def _emitted(self, op: Builder, by_time: ir.Value, paths: _Paths) -> ir.Value:
        """Log-probability of each place's label at each time, [T, N, L]; _NEVER after a sequence's end."""
        shape = op.Concat(op.Shape(by_time, start=0, end=1), op.Shape(paths.labels), axis=0)
        chosen = op.GatherElements(by_time, op.Expand(paths.labels, shape), axis=2)
        inside = op.LessOrEqual(paths.place, op.Mul(paths.length, 2))
        return op.Where(inside, chosen, _NEVER)


def _sums(op: Builder, start: ir.Value, emitted: ir.Value, skip: ir.Value, backward: bool) -> ir.Value:
    """Log-sums over all paths up to each time and place, both included; from the end where ``backward``."""
    state = ir.val("ctc/state", emitted.dtype, None)
    now = ir.val("ctc/emitted", emitted.dtype, None)
    body = ir.Graph([state, now], [], nodes=[], opset_imports=op.graph.opset_imports, name="ctc")
    inner = Builder(body, prefix="ctc/backward" if backward else "ctc/forward")

    def shifted(x: ir.Value, places: int) -> ir.Value:
        if backward:
            padded = inner.Pad(x, [0, 0, 0, places], _NEVER)
            return inner.Slice(padded, [places], [np.iinfo(np.int64).max], [1])
        return inner.Slice(inner.Pad(x, [0, places, 0, 0], _NEVER), [0], [-places], [1])

    two = shifted(inner.Add(state, skip), 2) if backward else inner.Add(shifted(state, 2), skip)
    parts = [inner.Unsqueeze(part, [2]) for part in (state, shifted(state, 1), two)]
    total = inner.Add(inner.Squeeze(_log_sum(inner, inner.Concat(*parts, axis=2)), [2]), now)
    body.outputs.extend([total, inner.Identity(total)])
    way = [int(backward)]
    return op.node(
        "Scan",
        [start, emitted],
        outputs=2,
        body=body,
        num_scan_inputs=1,
        scan_input_directions=way,
        scan_output_directions=way,
    )[1]


def _log_sum(op: Builder, x: ir.Value) -> ir.Value:
    """log(sum(exp(x))) over the last axis, which is kept."""
    top = op.ReduceMax(x, [-1], keepdims=1)
    return op.Add(top, op.Log(op.ReduceSum(op.Exp(op.Sub(x, top)), [-1], keepdims=1)))
