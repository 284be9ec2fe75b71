"""Spellings of exporters whose gradients would be costly, in a plainer form with the same results.

A value that is read piece by piece (``qkv[0]``, ``x[:, t]``) has for gradient the sum of as many arrays of
its whole size, all but one piece of each zero; that of a Split is one Concat.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import onnx_ir as ir

from onnxaccel.graph.bodies import nested
from onnxaccel.graph.builder import Builder, attribute, constant_of, dims_of
from onnxaccel.graph.model import Model, name_of


def simplify(model: Model) -> None:
    """Rewrite, in place, a graph whose types and shapes are known (`onnxaccel.graph.normalize`)."""
    for graph in nested(model.graph):
        for node in list(graph):
            _swap_in_place(graph, model, node)
        _split_what_is_read_in_pieces(graph, model)
    model.graph.sort()


@dataclass(frozen=True)
class _Piece:
    """What a node reads: elements ``start`` to ``stop`` of one axis of a value, all of the others."""

    node: ir.Node
    start: int
    stop: int
    keeps_axis: bool


def _split_what_is_read_in_pieces(graph: ir.Graph, model: Model) -> None:
    """Make one Split of all Gathers by a constant number, and Slices of one axis, that read a value."""
    found: dict[tuple[ir.Value, int], list[_Piece]] = {}
    for node in graph:
        if node.op_type not in ("Gather", "Slice") or node.inputs[0] is None:
            continue
        if node.inputs[0].is_initializer() or node.inputs[0].is_graph_input():
            continue
        piece = _sliced(node) if node.op_type == "Slice" else _gathered(node)
        if piece is not None:
            found.setdefault((piece[0], piece[1]), []).append(piece[2])
    for (x, axis), pieces in found.items():
        pieces.sort(key=lambda piece: piece.start)
        apart = all(a.stop <= b.start for a, b in itertools.pairwise(pieces))
        if len(pieces) > 1 and apart:
            _split(graph, model, x, axis, pieces)


def _gathered(node: ir.Node) -> tuple[ir.Value, int, _Piece] | None:
    """The value, the axis and the piece that a Gather with one constant index reads."""
    x, index = node.inputs[0], constant_of(node.inputs[1])
    dims = dims_of(x) if x is not None else None
    if x is None or dims is None or index is None or index.ndim:
        return None
    axis = attribute(node, "axis", 0) % len(dims)
    size = dims[axis]
    if not isinstance(size, int):
        return None
    start = int(index) % size
    source, source_axis = _before_permutation(x, axis)
    return source, source_axis, _Piece(node, start, start + 1, False)


def _sliced(node: ir.Node) -> tuple[ir.Value, int, _Piece] | None:
    """The same for a Slice with constant bounds and step 1 that cuts one axis."""
    x, *bounds = node.inputs
    dims = dims_of(x) if x is not None else None
    known = [constant_of(bound) for bound in bounds]
    if (
        x is None
        or dims is None
        or any(k is None and b is not None for k, b in zip(known, bounds, strict=True))
    ):
        return None
    lists: list[list[int]] = [[] if k is None else k.tolist() for k in known]
    starts, ends, axes, steps = [*lists, [], []][:4]
    axis = axes[0] % len(dims) if axes else 0
    size = dims[axis]
    if len(starts) != 1 or steps not in ([], [1]) or not isinstance(size, int):
        return None
    start, stop, _ = slice(starts[0], ends[0]).indices(size)
    return (x, axis, _Piece(node, start, stop, True)) if start < stop else None


def _before_permutation(x: ir.Value, axis: int) -> tuple[ir.Value, int]:
    """The value and the axis that ``x[axis]`` is read from, before Transposes that its parts do not need.

    Multi-head attention moves the axis of query, key and value to the front before it takes them apart. Where
    the other axes keep their order, the parts need not be moved at all.
    """
    best = (x, axis)
    order: list[int | None] = list(range(len(dims_of(x) or [])))
    while (node := x.producer()) is not None and (moved := _moved(node)) is not None:
        order = [None if place is None else moved[place] for place in order]
        x, wanted = _first(node), order[axis]
        rest = [place for number, place in enumerate(order) if number != axis]
        if wanted is not None and rest == [i for i in range(len(dims_of(x) or [])) if i != wanted]:
            best = (x, wanted)
    return best


def _moved(node: ir.Node) -> list[int | None] | None:
    """For each axis of the result the axis of the input that it is, or None: a new one of size 1.

    None in all for nodes that do more than that.
    """
    rank, ranked = (
        len(dims_of(value) or []) for value in (node.inputs[0], node.outputs[0]) if value is not None
    )
    if node.op_type == "Transpose":
        return list(attribute(node, "perm", tuple(reversed(range(rank)))))
    axes = (
        constant_of(node.inputs[1]) if node.op_type in ("Squeeze", "Unsqueeze") and node.inputs[1:] else None
    )
    if axes is None:
        return None
    gone = {int(axis) % max(rank, ranked) for axis in axes}
    kept: list[int | None] = [place for place in range(max(rank, ranked)) if place not in gone]
    if node.op_type == "Squeeze":
        return kept
    return [kept.index(place) if place in kept else None for place in range(ranked)]


def _split(graph: ir.Graph, model: Model, x: ir.Value, axis: int, pieces: list[_Piece]) -> None:
    dims = dims_of(x)
    assert dims is not None
    size = dims[axis]
    assert isinstance(size, int) and x.shape is not None
    ends = [0]
    readers: list[_Piece | None] = []
    for piece in pieces:
        if piece.start > ends[-1]:
            readers.append(None)
            ends.append(piece.start)
        readers.append(piece)
        ends.append(piece.stop)
    if ends[-1] < size:
        readers.append(None)
        ends.append(size)
    op = Builder(graph, f"{name_of(x)}/split", model.graph)
    sizes = [b - a for a, b in itertools.pairwise(ends)]
    parts = op.node("Split", [x, sizes], outputs=len(sizes), axis=axis)
    for part, reader, length in zip(parts, readers, sizes, strict=True):
        part.type = x.type
        part.shape = ir.Shape([length if i == axis else dim for i, dim in enumerate(x.shape)])
        if reader is None:
            continue
        old = reader.node.outputs[0]
        new = part if reader.keeps_axis else op.Squeeze(part, [axis])
        new.type, new.shape = old.type, old.shape
        _take_place(old, new)


def _swap_in_place(graph: ir.Graph, model: Model, node: ir.Node) -> None:
    """Transpose the last two axes where they are, without the Reshapes that made three axes of them.

    onnxruntime multiplies by a transposed operand without copying it, but only if the Transpose stands next
    to the product.
    """
    if node.op_type != "Transpose" or tuple(attribute(node, "perm", ())) != (0, 2, 1):
        return
    middle = _first(node)
    before, (after, *others) = middle.producer(), [*node.outputs[0].uses(), None]
    if before is None or before.op_type != "Reshape" or after is None or others != [None]:
        return
    x, y = _first(before), after.node.outputs[0]
    source, folded, target = dims_of(x), dims_of(middle), dims_of(y)
    if (
        after.node.op_type != "Reshape"
        or after.node.graph is not graph
        or not source
        or not folded
        or not target
    ):
        return
    known = [dim for dim in (*folded[1:], *target[1:]) if dim is not None]
    swapped = [*source[:-2], source[-1], source[-2]]
    if len(known) != len(target) + 1 or folded[1:] != source[-2:] or target[1:] != swapped[1:]:
        return
    op = Builder(graph, f"{node.name}/swap", model.graph)
    rank = len(source)
    result = op.Transpose(x, perm=[*range(rank - 2), rank - 1, rank - 2])
    result.type, result.shape = y.type, y.shape
    _take_place(y, result)


def _take_place(old: ir.Value, new: ir.Value) -> None:
    """Let all that reads ``old`` read ``new``; a graph's output keeps its name."""
    name, shows = old.name, old.is_graph_output()
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if shows:
        old.name, new.name = None, name


def _first(node: ir.Node) -> ir.Value:
    """The first input of an operator that cannot do without it."""
    x = node.inputs[0]
    assert x is not None
    return x
