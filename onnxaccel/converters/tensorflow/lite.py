"""TensorFlow Lite operators that tf2onnx maps wrongly, as the TensorFlow operators they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from onnxaccel.registry import Registry

lite: Registry[Callable[[Any, Any, Callable[..., None]], None]] = Registry("TensorFlow Lite operator")
"""Rules by operator name; each gets tf2onnx's graph, the node, and tf2onnx's own rule."""


@lite("TFL_FULLY_CONNECTED")
def fully_connected(ctx: Any, node: Any, own: Callable[..., None]) -> None:
    """A product; where tf2onnx flattens its input, it forgets the bias."""
    if not node.get_attr_value("keep_num_dims") and ctx.get_rank(node.input[0]) != 2:
        shape = ctx.make_const(
            f"{node.name}/flat", np.array([-1, ctx.get_shape(node.input[1])[1]], np.int64)
        ).output[0]
        flat = ctx.make_node("Reshape", [node.input[0], shape])
        flat.skip_conversion = True
        ctx.replace_inputs(node, [flat.output[0], *node.input[1:]])
    own(ctx, node)


@contextmanager
def rules() -> Iterator[None]:
    """Let tf2onnx take our rules for TensorFlow Lite operators while the block runs."""
    from tf2onnx import handler

    original = handler.tfl_op.create_tfl_to_tf_mapping

    def mapping() -> dict[str, Any]:
        found: dict[str, Any] = dict(original())
        for name in lite:
            found[name] = (_applied(lite.get(name), found[name]), {})
        return found

    handler.tfl_op.create_tfl_to_tf_mapping = mapping
    try:
        yield
    finally:
        handler.tfl_op.create_tfl_to_tf_mapping = original


def _applied(rule: Any, own: tuple[Any, dict[str, Any]]) -> Callable[..., None]:
    def apply(ctx: Any, node: Any, **settings: Any) -> None:
        function, fixed = own
        rule(ctx, node, lambda c, n: function(c, n, **{**settings, **fixed}))

    return apply
