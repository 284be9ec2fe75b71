"""If, Loop and Scan.

Their gradients hold the body once more, followed by its own gradient: what a pass through the body computed
is computed again from what it began with. A Loop or Scan therefore also puts out, for every pass, the body
inputs that its gradient needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.bodies import bodies, captured
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.registry import gradient
from onnxaccel.graph.shapes import GROWS

Grads = list[ir.Value | None]
_RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial"})


@gradient("If")
def if_(op: Builder, node: ir.Node, *dys: ir.Value | None, active: AbstractSet[ir.Value]) -> Grads:
    """The gradient of the branch that was taken, with respect to what both branches read from outside."""
    outside = captured(node)
    wrt = [x for x in outside if x in active]
    if not wrt:
        return []
    branches: dict[str, Any] = {}
    for name in ("then_branch", "else_branch"):
        inner, body, _ = _copy(op, node, attribute(node, name))
        grads = _gradients(inner, body, dict(zip(body.outputs, dys, strict=True)), wrt)
        _finish(inner, [grads.get(x) or inner.zeros_like(x) for x in wrt])
        branches[name] = body
    results = op.node("If", node.inputs, outputs=len(wrt), **branches)
    for x, dx in zip(wrt, results, strict=True):
        dx.type, dx.shape = x.type, x.shape
    found = dict(zip(wrt, results, strict=True))
    return [None, *(found.get(x) for x in outside)]


@dataclass(frozen=True)
class _Carried:
    """A value that a pass hands to the next: position among inputs, body input and output, result."""

    index: int
    before: ir.Value
    after: ir.Value
    result: ir.Value


@dataclass(frozen=True)
class _Rows:
    """A tensor that each pass reads or writes a slice of: its axis, and whether it goes from the end."""

    index: int
    inside: ir.Value
    tensor: ir.Value
    axis: int = 0
    reverse: bool = False


@dataclass(frozen=True)
class _Passes:
    """Loop and Scan alike: what is carried, what is read slice by slice, and what is written so."""

    body: ir.Graph
    carried: list[_Carried]
    read: list[_Rows] = field(default_factory=list)
    written: list[_Rows] = field(default_factory=list)

    @classmethod
    def of(cls, node: ir.Node) -> _Passes:
        """Read a node's attributes."""
        (body,) = bodies(node)
        first_input, first_body, first_output = (2, 2, 1) if node.op_type == "Loop" else (0, 0, 0)
        reads = attribute(node, "num_scan_inputs", 0)
        count = len(node.inputs) - first_input - reads

        def settings(stem: str, number: int) -> list[int]:
            return list(attribute(node, stem) or [0] * number)

        carried = [
            _Carried(first_input + i, body.inputs[first_body + i], body.outputs[first_output + i], y)
            for i, y in enumerate(node.outputs[:count])
        ]
        read, inputs = [], node.inputs[first_input + count :]
        axes, directions = settings("scan_input_axes", reads), settings("scan_input_directions", reads)
        for i, x in enumerate(inputs):
            assert x is not None
            inside = body.inputs[first_body + count + i]
            axis = axes[i] % len(dims_of(x) or [0]) if axes[i] < 0 else axes[i]
            read.append(_Rows(first_input + count + i, inside, x, axis, bool(directions[i])))
        written, outputs = [], node.outputs[count:]
        axes = settings("scan_output_axes", len(outputs))
        directions = settings("scan_output_directions", len(outputs))
        for i, y in enumerate(outputs):
            axis = axes[i] % len(dims_of(y) or [0]) if axes[i] < 0 else axes[i]
            inside = body.outputs[first_output + count + i]
            written.append(_Rows(count + i, inside, y, axis, bool(directions[i])))
        return cls(body, carried, read, written)


@gradient("Loop", "Scan")
def passes(op: Builder, node: ir.Node, *dys: ir.Value | None, active: AbstractSet[ir.Value]) -> Grads:
    """A Loop that goes through the passes from the last to the first.

    It carries the gradient of each carried value, and the sum so far of the gradient of each value that the
    body reads from outside.
    """
    form = _Passes.of(node)
    outside = captured(node)
    inputs = _active_inputs(form, node, outside, active)
    carried = [c for c in form.carried if c.before in inputs]
    read = [r for r in form.read if r.inside in inputs]
    shared = [x for x in outside if x in inputs]
    inner, body, copies = _copy(op, node, form.body)
    position = ir.val(inner.fresh("position"), ir.DataType.INT64, ir.Shape([]))
    going = ir.val(inner.fresh("going"), ir.DataType.BOOL, ir.Shape([]))
    flowing = [_input_like(inner, c.after) for c in carried]
    totals = [_input_like(inner, x) for x in shared]
    count = _count(op, node, form)
    last = op.Sub(count, 1)

    def row(tensor: ir.Value, axis: int, reverse: bool, like: ir.Value) -> ir.Value:
        """The slice that belongs to the pass under way, of which there are ``position`` after it."""
        slice_ = inner.Gather(tensor, position if reverse else inner.Sub(last, position), axis=axis)
        slice_.type, slice_.shape = like.type, like.shape
        return slice_

    seeds: dict[ir.Value, ir.Value | None] = {
        copies[c.after]: d for c, d in zip(carried, flowing, strict=True)
    }
    for rows in form.written:
        dy = dys[rows.index]
        if dy is not None:
            seeds[copies[rows.inside]] = row(dy, rows.axis, rows.reverse, rows.inside)
    wrt = [copies[c.before] for c in carried] + [copies[r.inside] for r in read] + shared
    grads = _gradients(inner, body, seeds, wrt)

    def of(x: ir.Value, inside: ir.Value) -> ir.Value:
        return grads.get(copies.get(inside, inside)) or inner.zeros_like(x)

    again = inner.Identity(going)
    handed = [of(copies[c.before], c.before) for c in carried]
    summed = [
        inner.Add(total, grads[x]) if x in grads else inner.Identity(total)
        for x, total in zip(shared, totals, strict=True)
    ]
    slices = [of(copies[r.inside], r.inside) for r in read]
    _finish(inner, [again, *handed, *summed, *slices])
    read_from = {r.inside: r for r in form.read}
    for x in form.body.inputs:  # what a pass began with is read from where it is kept
        if not copies[x].uses():
            continue
        if x in read_from:
            given = row(read_from[x].tensor, read_from[x].axis, read_from[x].reverse, x)
        else:
            given = row(_saved(op, node, form, x), 0, False, x)
        ir.convenience.replace_all_uses_with(copies[x], given)
    body.inputs.clear()
    body.inputs.extend([position, going, *flowing, *totals])
    body.sort()

    starts = [dys[form.carried.index(c)] or op.zeros_like(c.result) for c in carried]
    zeros = [op.zeros_like(x) for x in shared]
    results = op.node(
        "Loop",
        [count, op.constant(_true()), *starts, *zeros],
        outputs=len(carried) + len(shared) + len(read),
        body=body,
    )
    grads_in: dict[int, ir.Value] = {}
    for c, dx in zip(carried, results, strict=False):
        start = node.inputs[c.index]
        assert start is not None
        dx.type, dx.shape = start.type, start.shape
        grads_in[c.index] = dx
    sums = results[len(carried) : len(carried) + len(shared)]
    for x, dx in zip(shared, sums, strict=True):
        dx.type, dx.shape = x.type, x.shape
    for r, dx in zip(read, results[len(carried) + len(shared) :], strict=True):
        dx.type = r.tensor.type
        grads_in[r.index] = _placed(op, dx, r)
    found = dict(zip(shared, sums, strict=True))
    return [*(grads_in.get(i) for i in range(len(node.inputs))), *(found.get(x) for x in outside)]


def _true() -> Any:
    import numpy as np

    return np.array(True)


def _active_inputs(
    form: _Passes, node: ir.Node, outside: Sequence[ir.Value], active: AbstractSet[ir.Value]
) -> set[ir.Value]:
    """The values outside and at the body's entry whose gradient is wanted, over any number of passes."""
    from onnxaccel.graph.autodiff import downstream

    wanted = {x for x in outside if x in active}
    wanted |= {rows.inside for rows in form.read if rows.tensor in active}
    wanted |= {c.before for c in form.carried if node.inputs[c.index] in active}
    while True:
        reached = downstream(form.body, wanted)
        more = {c.before for c in form.carried if c.after in reached} - wanted
        if not more:
            return wanted
        wanted |= more


def _count(op: Builder, node: ir.Node, form: _Passes) -> ir.Value:
    """How many passes the node made, an int64 scalar."""
    if form.read:
        rows = form.read[0]
        return op.Squeeze(op.Shape(rows.tensor, start=rows.axis, end=rows.axis + 1), [0])
    return op.Squeeze(op.Shape(_saved(op, node, form, form.body.inputs[0]), start=0, end=1), [0])


def _saved(op: Builder, node: ir.Node, form: _Passes, inside: ir.Value) -> ir.Value:
    """A further result of the node: the body input ``inside`` of every pass, stacked."""
    if inside.meta.get(GROWS):
        raise UnsupportedOperator(
            f"{describe(node)}: {inside.name!r} changes its shape from pass to pass, such values have no "
            "gradient rule; keep its shape, for instance by padding it to its final size"
        )
    for output, y in zip(reversed(form.body.outputs), reversed(node.outputs), strict=False):
        producer = output.producer()
        if producer is not None and producer.meta.get(_SAVES) is inside:
            return y
    copy = ir.node("Identity", [inside])
    copy.meta[_SAVES] = inside
    (stacked,) = copy.outputs
    stacked.name, stacked.type, stacked.shape = op.fresh("each"), inside.type, inside.shape
    form.body.append(copy)
    form.body.outputs.append(stacked)
    node.resize_outputs(len(node.outputs) + 1)
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in node.attributes:
            node.attributes[name] = ir.AttrInt64s(name, [*attribute(node, name), 0])
    y = node.outputs[-1]
    y.name, y.type = op.fresh("passes"), inside.type
    y.shape = ir.Shape([None, *inside.shape]) if inside.shape is not None else None
    return y


_SAVES = "onnxaccel.saves"


def _placed(op: Builder, stacked: ir.Value, rows: _Rows) -> ir.Value:
    """Slices stacked from the last pass to the first, in the places that the passes read them from."""
    if not rows.reverse:
        stacked = op.Slice(stacked, [-1], [-(2**63 - 1)], [0], [-1])
    if rows.axis:
        rank = len(dims_of(rows.tensor) or [])
        stacked = op.Transpose(stacked, perm=[*range(1, rows.axis + 1), 0, *range(rows.axis + 1, rank)])
    stacked.type, stacked.shape = rows.tensor.type, rows.tensor.shape
    return stacked


def _copy(op: Builder, node: ir.Node, graph: ir.Graph) -> tuple[Builder, ir.Graph, dict[ir.Value, ir.Value]]:
    """A copy of a body to write into, and the copy of each value by the original."""
    for inner in graph.all_nodes():
        random = inner.op_type in _RANDOM and (inner.op_type != "Dropout" or len(inner.inputs) > 2)
        if random or inner.op_type.startswith("Random"):
            raise UnsupportedOperator(
                f"{describe(node)}: {describe(inner)} within it draws random numbers, which a second pass "
                "would draw anew; draw them outside"
            )
    body = graph.clone(allow_outer_scope_values=True)
    copies: dict[ir.Value, ir.Value] = dict(zip(graph.inputs, body.inputs, strict=True))
    for old, new in zip(graph, body, strict=True):
        copies.update(zip(old.outputs, new.outputs, strict=True))
    return op.within(body), body, copies


def _gradients(
    inner: Builder,
    body: ir.Graph,
    seeds: dict[ir.Value, ir.Value | None],
    wrt: Sequence[ir.Value],
) -> dict[ir.Value, ir.Value]:
    from onnxaccel.graph.autodiff import backward, is_float

    given = {y: dy for y, dy in seeds.items() if dy is not None and is_float(y)}
    return backward(inner, given, wrt)


def _finish(inner: Builder, results: Sequence[ir.Value]) -> None:
    """Make ``results`` the outputs of the body, and remove what none of them needs."""
    body = inner.graph
    body.outputs.clear()
    own = []
    for value in results:  # an output belongs to a node of the body, and to one output only
        producer = value.producer()
        if producer is None or producer.graph is not body or value in own:
            copy = inner.Identity(value)
            copy.type, copy.shape = value.type, value.shape
            value = copy
        own.append(value)
    body.outputs.extend(own)
    for node in reversed(list(body)):
        if not any(y.uses() or y in own for y in node.outputs):
            body.remove(node, safe=True)
    for name, constant in list(body.initializers.items()):
        if not constant.uses():
            del body.initializers[name]


def _input_like(inner: Builder, x: ir.Value) -> ir.Value:
    return ir.val(inner.fresh("input"), x.dtype, x.shape)
