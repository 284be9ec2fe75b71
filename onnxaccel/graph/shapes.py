"""Shapes that ONNX's inference leaves open, though they can be known."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.graph.bodies import bodies, nested


def keep_ranks(graph: ir.Graph) -> bool:
    """Give the parts of a Split, whose sizes are computed, the rank and the other dimensions of the whole.

    Returns:
        Whether there was one.
    """
    changed = False
    for node in graph.all_nodes():
        whole = node.inputs[0].shape if node.op_type == "Split" and node.inputs[0] is not None else None
        for part in node.outputs if whole is not None else ():
            if part.shape is None and whole is not None:
                axis = node.attributes["axis"].as_int() % len(whole) if "axis" in node.attributes else 0
                part.shape = ir.Shape([None if i == axis else dim for i, dim in enumerate(whole)])
                changed = True
    return changed


GROWS = "onnxaccel.grows"
"""Key in the ``meta`` of a Loop's body input: a pass changes its shape."""


class Loops:
    """Shapes of what Loops carry, which ONNX's inference leaves open, since a body may change them.

    `assume` gives each carried value the shape that it starts with; after an inference `correct` takes back
    what the body does not keep. Both say whether they changed anything.

    Args:
        graph: The main graph.
    """

    def __init__(self, graph: ir.Graph) -> None:
        nodes = [node for node in graph.all_nodes() if node.op_type == "Loop"]
        self._carried = [
            (node, start, body.inputs[2 + i], body.outputs[1 + i], node.outputs[i])
            for node in nodes
            for body in bodies(node)
            for i, start in enumerate(node.inputs[2:])
            if start is not None
        ]
        self._assumed: set[ir.Value] = set()

    def assume(self) -> bool:
        """Give carried values of unknown shape the shape that they start with."""
        changed = False
        for _, start, inside, _, _ in self._carried:
            if inside.shape is None and start.shape is not None and inside not in self._assumed:
                inside.shape = start.shape.copy()
                inside.type = inside.type or start.type
                self._assumed.add(inside)
                changed = True
        return changed

    def correct(self) -> bool:
        """Take back dimensions that the body changes, and pass on what stands."""
        changed = False
        for node, _, inside, after, result in self._carried:
            if inside not in self._assumed or inside.shape is None:
                continue
            kept = _common(inside.shape, after.shape)
            if after.shape is not None and _differ(inside.shape, after.shape):
                inside.meta[GROWS] = True
            if kept is None or _plain(kept) != _plain(inside.shape):
                changed = True
                inside.shape = kept
                for graph in (inner for body in bodies(node) for inner in nested(body)):
                    for value in (output for n in graph for output in n.outputs):
                        value.shape = None
            elif result.shape is None:
                result.shape = kept.copy() if kept is not None else None
                changed = changed or kept is not None
        return changed


def _plain(shape: ir.Shape) -> list[int | str | None]:
    """The dimensions; None for those that ONNX's inference does not know, which it names anew each time."""
    dims = [dim if isinstance(dim, int) else dim.value for dim in shape]
    return [None if isinstance(dim, str) and dim.startswith("unk__") else dim for dim in dims]


def _differ(a: ir.Shape, b: ir.Shape) -> bool:
    """Whether two shapes are certainly not the same."""
    pairs = zip(_plain(a), _plain(b), strict=False)
    return len(a) != len(b) or any(isinstance(x, int) and isinstance(y, int) and x != y for x, y in pairs)


def _common(a: ir.Shape, b: ir.Shape | None) -> ir.Shape | None:
    """The dimensions in which two shapes agree, the others unknown; None where the ranks differ."""
    if b is None:
        return ir.Shape([None] * len(a))
    if len(a) != len(b):
        return None
    return ir.Shape([x if x == y else None for x, y in zip(_plain(a), _plain(b), strict=True)])
