"""Einsum."""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.registry import gradient

_SPARE = "ZYXWVUTSRQPONMLKJIHGFEDCBA"
"""Letters for the axes that an ellipsis stands for."""


@gradient("Einsum")
def einsum(op: Builder, node: ir.Node, dy: ir.Value) -> list[ir.Value | None]:
    """dx_i = einsum of dy and the other operands, onto the indices of x_i.

    An index that x_i alone has was summed over: dx_i repeats along it.
    """
    operands = [x for x in node.inputs if x is not None]
    terms, out = _terms(node, operands)
    grads: list[ir.Value | None] = []
    for i, (x, term) in enumerate(zip(operands, terms, strict=True)):
        others = [k for k in range(len(operands)) if k != i]
        seen = set(out).union(*(terms[k] for k in others))
        kept = "".join(letter for letter in term if letter in seen)
        equation = ",".join([out, *(terms[k] for k in others)]) + "->" + kept
        grad = op.Einsum(dy, *(operands[k] for k in others), equation=equation)
        missing = [axis for axis, letter in enumerate(term) if letter not in seen]
        grads.append(op.expand_like(op.Unsqueeze(grad, missing), x) if missing else grad)
    return grads


def _terms(node: ir.Node, operands: list[ir.Value]) -> tuple[list[str], str]:
    """The indices of each operand and of the result, ellipses spelled out in letters."""
    equation = attribute(node, "equation").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        out = "..." * ("..." in left) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    spare = [letter for letter in _SPARE if letter not in equation]
    sizes: dict[str, object] = {}
    longest = 0
    for i, (x, term) in enumerate(zip(operands, terms, strict=True)):
        dims = dims_of(x)
        if dims is None:
            raise UnsupportedOperator(f"{describe(node)}: the rank of {x.name!r} is not known")
        hidden = len(dims) - len(term.replace("...", ""))
        longest = max(longest, hidden)
        terms[i] = term.replace("...", "".join(spare[:hidden][::-1]))
        if len(set(terms[i])) != len(terms[i]):
            raise UnsupportedOperator(f"{describe(node)}: a repeated index in {term!r} has no gradient rule")
        for letter, dim in zip(terms[i], dims, strict=True):
            if sizes.setdefault(letter, dim) != dim and 1 in (dim, sizes[letter]):
                raise UnsupportedOperator(
                    f"{describe(node)}: broadcasting in {equation!r} has no gradient rule"
                )
    return terms, out.replace("...", "".join(spare[:longest][::-1]))
