"""Attention and embedding fusions of com.microsoft, written out (onnxruntime: docs/ContribOperators.md)."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.rules.registry import expansion, gradient


def _refuse(node: ir.Node, what: str) -> UnsupportedOperator:
    return UnsupportedOperator(f"{describe(node)}: {what} has no gradient rule")


def _width(node: ir.Node, x: ir.Value | None) -> int:
    size = ((dims_of(x) if x is not None else None) or [None])[-1]
    if not isinstance(size, int):
        raise UnsupportedOperator(f"{describe(node)}: its hidden size is not known; export with shapes")
    return size


def _heads(op: Builder, x: ir.Value, heads: int) -> ir.Value:
    """[B, S, N H] to [B, N, S, H]."""
    return op.Transpose(op.Reshape(x, [0, 0, heads, -1]), perm=[0, 2, 1, 3])


def _attend(
    op: Builder, node: ir.Node, q: ir.Value, k: ir.Value, v: ir.Value, width: int, bias: list[ir.Value | None]
) -> ir.Value:
    """softmax(q k^T scale + bias) v over all heads, [B, S, N H]; causal where ``unidirectional`` is set."""
    heads = attribute(node, "num_heads")
    scale = float(attribute(node, "scale", 0.0) or 1.0 / math.sqrt(width / heads))
    queries, keys, values = (_heads(op, x, heads) for x in (q, k, v))
    scores = op.Mul(op.MatMul(queries, op.Transpose(keys, perm=[0, 1, 3, 2])), scale)
    for term in bias:
        scores = scores if term is None else op.Add(scores, term)
    if attribute(node, "unidirectional", 0):
        n, m = op.Shape(q, start=1, end=2), op.Shape(k, start=1, end=2)
        allowed = op.Trilu(op.Expand(op.constant([[1]]), op.Concat(n, m, axis=0)), None, upper=0)
        scores = op.Where(op.Cast(allowed, to=ir.DataType.BOOL.value), scores, -1e30)
    mixed = op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), values), perm=[0, 2, 1, 3])
    return op.Reshape(mixed, [0, 0, -1])


def _mask(op: Builder, node: ir.Node, mask: ir.Value | None, x: ir.Value, keys: ir.Value) -> ir.Value | None:
    """What a mask adds to the scores: of key lengths [B], of keys [B, L], or of pairs [B, S, L]."""
    if mask is None:
        return None
    assert x.dtype is not None
    rank = len(dims_of(mask) or [])
    if rank == 1:
        places = op.Range(0, op.Squeeze(op.Shape(keys, start=1, end=2), [0]), 1)
        ends = op.Unsqueeze(op.Cast(mask, to=ir.DataType.INT64.value), [1])
        mask = op.Cast(op.Less(places, ends), to=ir.DataType.INT64.value)
    elif rank not in (2, 3):
        raise _refuse(node, f"a mask of rank {rank}")
    hidden = op.Sub(1.0, op.Cast(mask, to=x.dtype.value))
    axes = [1, 2] if rank < 3 else [1]
    return op.Unsqueeze(op.Mul(hidden, float(attribute(node, "mask_filter_value", -10000.0))), axes)


@expansion("com.microsoft::Attention")
def attention(op: Builder, node: ir.Node) -> ir.Value:
    """Self-attention of x, whose queries, keys and values are one product with the stacked weights."""
    x, weight, bias, mask, past, added = [*node.inputs, *[None] * 6][:6]
    assert x is not None and weight is not None
    if past is not None or attribute(node, "do_rotary", 0) or len([y for y in node.outputs if y.name]) > 1:
        raise _refuse(node, "a cache of keys and values, or a rotary embedding,")
    sizes = attribute(node, "qkv_hidden_sizes") or [_width(node, weight) // 3] * 3
    product = op.MatMul(x, weight)
    if bias is not None:
        product = op.Add(product, bias)
    q, k, v = op.node("Split", [product, op.constant(list(sizes))], outputs=3, axis=2)
    return _attend(op, node, q, k, v, sizes[0], [_mask(op, node, mask, x, k), added])


@expansion("com.microsoft::MultiHeadAttention")
def multi_head_attention(op: Builder, node: ir.Node) -> ir.Value:
    """Attention of given queries, keys and values, each [B, length, hidden], after an optional bias."""
    q, k, v, bias, mask, added = [*node.inputs, *[None] * 6][:6]
    past = node.inputs[6:]
    if q is None or k is None or v is None or any(len(dims_of(x) or []) != 3 for x in (q, k, v)):
        raise _refuse(node, "a packed or a cross-attention layout")
    if any(x is not None for x in past) or len([y for y in node.outputs if y.name]) > 1:
        raise _refuse(node, "a cache of keys and values")
    width = _width(node, q)
    if bias is not None:
        sizes = [width, width, _width(node, v)]
        parts = op.node("Split", [bias, op.constant(sizes)], outputs=3, axis=0)
        q, k, v = (op.Add(x, part) for x, part in zip((q, k, v), parts, strict=True))
    return _attend(op, node, q, k, v, width, [_mask(op, node, mask, q, k), added])


@expansion("com.microsoft::EmbedLayerNormalization")
def embed_layer_normalization(op: Builder, node: ir.Node) -> list[ir.Value]:
    """LayerNormalization of word plus position plus segment embedding."""
    ids, segments, words, positions, kinds, gamma, beta = node.inputs[:7]
    mask, places = [*node.inputs[7:], None, None][:2]
    assert ids is not None
    if places is None:
        places = op.Range(0, op.Squeeze(op.Shape(ids, start=1, end=2), [0]), 1)
    total = op.Add(op.Gather(words, ids, axis=0), op.Gather(positions, places, axis=0))
    if segments is not None:
        total = op.Add(total, op.Gather(kinds, segments, axis=0))
    y = op.LayerNormalization(total, gamma, beta, axis=-1, epsilon=attribute(node, "epsilon", 1e-12))
    counted = mask if mask is not None else op.Mul(ids, op.CastLike(op.constant(0), ids))
    lengths = op.Cast(op.ReduceSum(counted, [1], keepdims=0), to=ir.DataType.INT32.value)
    return [y, lengths, total]


@gradient("com.microsoft::Inverse")
def inverse(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """Y = X^-1: dX = -Y^T dY Y^T."""
    y = node.outputs[0]
    rank = len(dims_of(y) or [])
    if rank < 2:
        raise UnsupportedOperator(f"{describe(node)}: its rank is not known; export with shapes")
    transposed = op.Transpose(y, perm=[*range(rank - 2), rank - 1, rank - 2])
    return op.Neg(op.MatMul(op.MatMul(transposed, dy), transposed))
