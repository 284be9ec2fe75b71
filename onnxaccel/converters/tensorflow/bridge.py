"""The one place that calls tf2onnx: a GraphDef without variables, or a .tflite, becomes an ONNX proto."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from onnxaccel.converters.tensorflow.lite import rules
from onnxaccel.converters.tensorflow.operators import handlers
from onnxaccel.errors import ConversionError, MissingDependency

FRONT_ENDS = frozenset(
    """AudioSpectrogram DecodeWav Mfcc DecodeJpeg DecodePng DecodeImage DecodeBmp DecodeGif ParseExample
    ParseExampleV2 ParseSingleExample""".split()
)
"""Operators that turn files into tensors; a graph is cut behind them."""


def import_tensorflow() -> Any:
    """TensorFlow, quiet.

    Raises:
        MissingDependency: TensorFlow or tf2onnx is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    try:
        with _no_native_messages():
            import tensorflow as tf
            import tf2onnx
    except ImportError as error:
        raise MissingDependency(
            error.name or "tensorflow", "tensorflow", "convert TensorFlow models"
        ) from None
    tf.get_logger().setLevel("ERROR")
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    logging.getLogger(tf2onnx.__name__).propagate = False
    return tf


@contextmanager
def _no_native_messages() -> Iterator[None]:
    """Close standard error to TensorFlow's C++ side, which talks on import whatever its log level."""
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep tf2onnx's and TensorFlow's own messages off standard error; ours say what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def to_onnx(
    graph_def: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    renamed: Mapping[str, str],
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    cut: Callable[[str], str | None] = lambda node: f"{node}:0",
) -> onnx.ModelProto:
    """Map a GraphDef to ONNX.

    Args:
        graph_def: The graph, without variables.
        inputs: Tensor names of its inputs ("data:0").
        outputs: Tensor names of its outputs.
        opset: The opset to write.
        renamed: New names of inputs and outputs.
        shapes: Shapes that replace those of inputs, by tensor name; None is dynamic.
        cut: What to give ``--inputs`` to cut the graph behind a node, by the node's name.

    Raises:
        ConversionError: An operator has no mapping, or its mapping fails.
    """
    tf = import_tensorflow()
    from tf2onnx import tf_loader

    def pruned() -> Any:
        tf.import_graph_def(graph_def, name="")
        return tf_loader.tf_optimize(list(inputs), list(outputs), graph_def)

    return _mapped(
        pruned,
        opset,
        cut,
        input_names=list(inputs),
        output_names=list(outputs),
        tensors_to_rename=dict(renamed),
        shape_override={name: list(dims) for name, dims in (shapes or {}).items()} or None,
    )


def tflite_to_onnx(path: Path, opset: int) -> onnx.ModelProto:
    """Map a TensorFlow Lite file to ONNX, under its own tensor names.

    Raises:
        ConversionError: An operator has no mapping, or its mapping fails.
    """
    with rules():
        return _mapped(lambda: None, opset, lambda node: None, tflite_path=str(path))


def _mapped(
    graph: Callable[[], Any], opset: int, cut: Callable[[str], str | None], **settings: Any
) -> onnx.ModelProto:
    """Run tf2onnx on the GraphDef that ``graph`` gives, called within a graph of its own."""
    tf = import_tensorflow()
    from tf2onnx import convert, optimizer

    chosen = optimizer._get_optimizers().copy()
    chosen.pop("merge_duplication", None)  # it ties parameters that happen to be equal
    with quiet():
        try:
            with tf.Graph().as_default(), tf.device("/cpu:0"):
                proto, _ = convert._convert_common(
                    graph(),
                    name="onnxaccel",
                    continue_on_error=False,
                    opset=opset,
                    custom_op_handlers=handlers(),
                    optimizers=chosen,
                    **settings,
                )
        except ConversionError:
            raise
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[0] if lines else type(error).__name__
            raise ConversionError(f"tf2onnx cannot map the graph: {reason}") from None
    _refuse_unmapped(proto, cut)
    mapped: onnx.ModelProto = proto
    return mapped


def _refuse_unmapped(proto: onnx.ModelProto, cut: Callable[[str], str | None]) -> None:
    """tf2onnx leaves operators that it does not know in the graph, under TensorFlow's names."""
    for graph in _graphs(proto.graph):
        for node in graph.node:
            if node.domain not in ("", "ai.onnx") or onnx.defs.has(node.op_type):
                continue
            message = f"operator {node.op_type} (node {node.name!r}) has no ONNX form"
            if node.op_type in FRONT_ENDS or "String" in node.op_type or node.op_type.startswith("Decode"):
                place = cut(node.name)
                message += f"; cut the graph behind it with --inputs {place}" if place else ""
            raise ConversionError(message)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
