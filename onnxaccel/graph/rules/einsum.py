"""Einsum."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, Dim, attribute, describe, dims_of
from onnxaccel.graph.rules.registry import gradient

_SPARE = "ZYXWVUTSRQPONMLKJIHGFEDCBA"
"""Letters for the axes that an ellipsis stands for."""


@gradient("Einsum")
def einsum(op: Builder, node: ir.Node, dy: ir.Value) -> list[ir.Value | None]:
    """dx_i = einsum of dy and the other operands, onto the indices of x_i.

    An index that x_i alone has was summed over: dx_i repeats along it. An index that x_i has twice reads a
    diagonal: its second letter is another one, tied to the first by a unit matrix. An axis of size 1 that
    was broadcast is summed over.
    """
    operands = [x for x in node.inputs if x is not None]
    terms, out, ties, sizes = _terms(node, operands)
    grads: list[ir.Value | None] = []
    for i, (x, term) in enumerate(zip(operands, terms, strict=True)):
        others = [k for k in range(len(operands)) if k != i]
        units = [(pair, _unit(op, operands[k], terms[k].index(pair[1]))) for pair, k in ties]
        seen = set(out).union(*(terms[k] for k in others), *(pair for pair, _ in units))
        kept = "".join(letter for letter in term if letter in seen)
        left = ",".join([out, *(terms[k] for k in others), *(pair for pair, _ in units)])
        grad = op.Einsum(
            dy, *(operands[k] for k in others), *(unit for _, unit in units), equation=f"{left}->{kept}"
        )
        missing = [axis for axis, letter in enumerate(term) if letter not in seen]
        dims = dims_of(x) or []
        stretched = [a for a, c in enumerate(kept) if dims[term.index(c)] == 1 and sizes[c] != 1]
        if stretched:
            grad = op.ReduceSum(grad, stretched, keepdims=1)
        grads.append(op.expand_like(op.Unsqueeze(grad, missing), x) if missing else grad)
    return grads


def _unit(op: Builder, x: ir.Value, axis: int) -> ir.Value:
    n = op.Shape(x, start=axis, end=axis + 1)
    dtype = x.dtype or ir.DataType.FLOAT
    return op.EyeLike(op.ConstantOfShape(op.Concat(n, n, axis=0)), dtype=dtype.value)


def _terms(
    node: ir.Node, operands: list[ir.Value]
) -> tuple[list[str], str, list[tuple[str, int]], dict[str, Dim]]:
    """What an equation says, ellipses spelled out in letters.

    Returns:
        The indices of each operand, each letter once; those of the result; for each index that an operand
        has again its letter, the letter put in its place, and the operand; the size of each index.
    """
    equation = attribute(node, "equation").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        out = "..." * ("..." in left) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    spare = [letter for letter in _SPARE if letter not in equation]
    sizes: dict[str, Dim] = {}
    ties: list[tuple[str, int]] = []
    longest = 0
    ranks = [dims_of(x) for x in operands]
    for i, (x, dims, term) in enumerate(zip(operands, ranks, terms, strict=True)):
        if dims is None:
            raise UnsupportedOperator(f"{describe(node)}: the rank of {x.name!r} is not known")
        hidden = len(dims) - len(term.replace("...", ""))
        longest = max(longest, hidden)
        terms[i] = term.replace("...", "".join(spare[:hidden][::-1]))
    fresh = iter(spare[longest:])
    for i, dims in enumerate(ranks):
        for axis, letter in enumerate(terms[i]):
            if letter in terms[i][:axis]:
                again = next(fresh)
                terms[i] = terms[i][:axis] + again + terms[i][axis + 1 :]
                ties.append((letter + again, i))
            dim = (dims or [])[axis]
            if sizes.get(terms[i][axis], 1) == 1:
                sizes[terms[i][axis]] = dim
    return terms, out.replace("...", "".join(spare[:longest][::-1])), ties, sizes
