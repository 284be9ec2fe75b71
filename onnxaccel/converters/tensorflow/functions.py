"""A TensorFlow function or graph into ONNX, with some of its constants kept as parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.converters.contract import Arrays, Conversion, Options
from onnxaccel.converters.tensorflow.bridge import import_tensorflow, to_onnx
from onnxaccel.converters.tensorflow.parameters import loop_constants, mark_batch_norms
from onnxaccel.converters.tensorflow.weights import to_initializers
from onnxaccel.errors import ConversionError
from onnxaccel.graph.model import Model, Preprocessing, name_of

MOMENTUM = 0.99
"""BatchNormalization's momentum in a graph that does not tell it: Keras's default."""

_INDEXING = frozenset("Cast Identity Reshape Squeeze Unsqueeze Where Add Expand Max Min Clip".split())
"""What may stand between an input and the Gather that it indexes."""


@dataclass
class Frozen:
    """A graph without variables.

    Attributes:
        graph_def: The graph; its variables are constants.
        inputs: Tensor names of its inputs.
        outputs: Tensor names of its outputs.
        run: Runs it: arrays in the order of ``inputs``, arrays in the order of ``outputs``.
        names: Names in the ONNX model, by tensor name; those left out lose their ":0".
        parameters: Names in the ONNX model of the constants that are parameters, by node name.
        trainable: Those of ``parameters``' names that training may change.
    """

    graph_def: Any
    inputs: list[str]
    outputs: list[str]
    run: Callable[[list[Any]], list[Any]]
    names: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    trainable: list[str] = field(default_factory=list)


def freeze(concrete: Any, held: Iterable[Any] = ()) -> tuple[Any, dict[str, Any]]:
    """A concrete function with constants for variables, and the variable of each by node name."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
    handles = {id(v.handle): v for v in [*held, *concrete.graph.variables]}
    captured = {inner.op.name: handles.get(id(outer)) for outer, inner in concrete.graph.captures}
    return frozen, {name: variable for name, variable in captured.items() if variable is not None}


def convert_frozen(frozen: Frozen, options: Options, source_format: str) -> Conversion:
    """Convert a graph; in trainable form its parameters keep their names."""
    try:
        return _converted(frozen, options, source_format)
    except ConversionError:
        looped = loop_constants(frozen.graph_def) & set(frozen.parameters) if options.trainable else set()
        if not looped:
            raise
    # a recurrent layer's loop is known again only by constant weights
    options.progress(f"{len(looped)} weights of loops ({min(looped)}, ...) stay as they are in training")
    rest = {node: name for node, name in frozen.parameters.items() if node not in looped}
    return _converted(replace(frozen, parameters=rest), options, source_format)


def _converted(frozen: Frozen, options: Options, source_format: str) -> Conversion:
    tf = import_tensorflow()
    renamed = rename(frozen.inputs, frozen.outputs, frozen.names)
    known = {t: dynamic(options.shapes[renamed[t]]) for t in frozen.inputs if renamed[t] in options.shapes}
    graph_def, values = frozen.graph_def, {}
    if options.trainable:
        graph_def = type(graph_def)()
        graph_def.CopyFrom(frozen.graph_def)
        values = externalize(graph_def, frozen.parameters)
        mark_batch_norms(graph_def)
    options.progress("mapping operators (tf2onnx)")
    nodes = {frozen.parameters[node]: node for node in frozen.parameters if frozen.parameters[node] in values}
    proto = to_onnx(
        graph_def,
        [*frozen.inputs, *(f"{node}:0" for node in nodes.values())],
        frozen.outputs,
        options.opset,
        {**renamed, **{f"{node}:0": name for name, node in nodes.items()}},
        known,
    )
    model = Model.from_proto(proto)
    used = to_initializers(model, values, options.trainable)
    finish(model, source_format)
    if options.trainable:
        model.metadata.trainable = [name for name in frozen.trainable if name in used]
        wide_indices(model)
        for node in model.graph:
            if node.op_type == "BatchNormalization":
                node.attributes["momentum"] = ir.AttrFloat32("momentum", MOMENTUM)
        if not model.metadata.trainable:
            raise ConversionError(
                "nothing in the graph is a parameter that training could change; name constants with "
                "--parameters NAME,NAME, or convert without --trainable"
            )

    def reference(feed: Arrays) -> Arrays:
        results = frozen.run([feed[renamed[tensor]] for tensor in frozen.inputs])
        return {renamed[t]: np.asarray(r) for t, r in zip(frozen.outputs, results, strict=True)}

    return Conversion(model, reference, f"TensorFlow {tf.__version__}", index_ranges(model))


def rename(inputs: Iterable[str], outputs: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """Names in the ONNX model by tensor name, no two alike."""
    renamed = {tensor: names.get(tensor, tensor.removesuffix(":0")) for tensor in [*inputs, *outputs]}
    taken = {renamed[tensor] for tensor in inputs}
    # an output that is an input under another name
    return renamed | {t: t.replace(":", "_") + "_output" for t in outputs if renamed[t] in taken}


def externalize(graph_def: Any, parameters: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    """Turn constants into placeholders, in place, so that nothing folds or merges them.

    Returns:
        Their values, by the names that ``parameters`` gives the nodes.
    """
    import tensorflow as tf

    values = {}
    for node in graph_def.node:
        if node.name not in parameters or node.op != "Const":
            continue
        array = tf.make_ndarray(node.attr["value"].tensor)
        values[parameters[node.name]] = array
        dtype = node.attr["dtype"].type
        node.op = "Placeholder"
        node.ClearField("attr")
        node.attr["dtype"].type = dtype
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
    return values


def finish(model: Model, source_format: str) -> None:
    """Name the batch dimension, mend what tf2onnx gets wrong, and fill in where the model comes from."""
    for value in [*model.inputs, *model.outputs]:
        if value.shape is not None and value.shape.rank() and not isinstance(value.shape[0], int):
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])
    for node in model.graph:
        if node.op_type == "ConvTranspose":
            _output_padding(node)
    model.metadata.framework = "tensorflow"
    model.metadata.format = source_format
    images = [v for v in model.inputs if v.shape is not None and v.shape.rank() == 4]
    if images:
        model.metadata.preprocessing = Preprocessing(layout="NHWC")


def _output_padding(node: ir.Node) -> None:
    """Pad the output where it is larger than the kernel reaches; tf2onnx writes negative pads."""
    pads = node.attributes.get("pads")
    if pads is None or min(pads.value) >= 0:
        return
    rank = len(pads.value) // 2
    totals = [pads.value[i] + pads.value[i + rank] for i in range(rank)]
    begin = [max(total, 0) // 2 for total in totals]
    end = [max(total, 0) - first for total, first in zip(totals, begin, strict=True)]
    node.attributes["pads"] = ir.AttrInt64s("pads", begin + end)
    node.attributes["output_padding"] = ir.AttrInt64s("output_padding", [max(-t, 0) for t in totals])


def wide_indices(model: Model) -> None:
    """Give Gather int64 indices: the operators of its gradient take no others."""
    model.infer_shapes()
    for node in list(model.graph):
        index = node.inputs[1] if node.op_type in ("Gather", "GatherND") else None
        if index is not None and index.dtype == ir.DataType.INT32 and not index.is_initializer():
            cast = ir.node("Cast", [index], {"to": ir.DataType.INT64.value}, name=f"{node.name}/int64")
            cast.outputs[0].name = cast.name
            model.graph.insert_before(node, cast)
            node.replace_input_with(1, cast.outputs[0])


def index_ranges(model: Model) -> dict[str, tuple[int, int]]:
    """The rows of the tables that inputs are looked up in, so that the comparison reads all of them."""
    ranges: dict[str, tuple[int, int]] = {}
    for node in model.graph:
        table = node.inputs[0] if node.op_type == "Gather" and node.inputs else None
        if table is None or not table.is_initializer() or table.const_value is None:
            continue
        rows, pending = table.const_value.numpy().shape[0], [node.inputs[1]]
        while pending:
            value = pending.pop()
            producer = value.producer() if value is not None else None
            if value is None or value.is_initializer():
                continue
            if producer is None:
                ranges[name_of(value)] = (0, min(rows, ranges.get(name_of(value), (0, rows))[1]))
            elif producer.op_type in _INDEXING:
                pending += producer.inputs
    return ranges


def dynamic(dims: Sequence[int]) -> list[int | None]:
    """A shape as TensorFlow writes it: None where the user wrote -1."""
    return [None if d == -1 else d for d in dims]


def first_line(error: Exception) -> str:
    """The first line of what went wrong."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
