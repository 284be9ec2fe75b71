"""From layers to one ONNX model: which layers take part, what goes in and what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.caffe import layers as _layers  # registers them
from onnxaccel.converters.caffe.builder import FixedBatch, NetBuilder, Stored, layer_type
from onnxaccel.converters.caffe.layers.head import HEADS, describe, loss_weight
from onnxaccel.converters.caffe.net import Layer, bounded
from onnxaccel.converters.contract import Options
from onnxaccel.errors import ConversionError, MissingWeights
from onnxaccel.graph.builder import Dim
from onnxaccel.graph.model import MAX_IR_VERSION, Model, Preprocessing
from onnxaccel.graph.normalize import normalize

DATA = frozenset({"AnnotatedData", "Data", "HDF5Data", "ImageData", "MemoryData", "WindowData"})
"""Layers that read a data set: their first top is the network's input."""

_SINKS = frozenset({"HDF5Output", "Silence"})
"""Layers that only consume."""


@dataclass
class Assembly:
    """A network as an ONNX model.

    Attributes:
        model: The model.
        writers: For each of its outputs the layer that writes it last.
        stored: For each initializer with weights or statistics the blob it comes from.
    """

    model: Model
    writers: dict[str, str]
    stored: dict[str, Stored]


@dataclass
class _Plan:
    """Which layers are written; a blob in one state is (layer, top), for names are reused in place."""

    layers: list[int]
    reads: list[list[tuple[int, int]]]
    outputs: dict[str, tuple[int, int]]
    readers: Counter[tuple[int, int]]


def build(net: list[Layer], options: Options) -> Assembly:
    """The ONNX model of a network.

    Its outputs are ``options.outputs``, which may name losses; else all blobs that no layer reads, but for
    losses and accuracies. Labels become inputs where an output needs them. The first dimension is dynamic,
    unless a layer holds for one batch size only.

    Raises:
        ConversionError: A layer is not known or not possible, or a blob is missing.
        MissingWeights: A layer's weights are missing or misshapen.
    """
    if options.inputs:
        raise ConversionError("Caffe networks are not cut by --inputs; remove the layers from the prototxt")
    plan = _plan(net, options.outputs)
    try:
        return _write(net, plan, options, dynamic=True)
    except FixedBatch as reason:
        options.progress(f"the batch size stays as declared: {reason}")
        return _write(net, plan, options, dynamic=False)


def _plan(net: list[Layer], outputs: Sequence[str]) -> _Plan:
    versions: dict[str, tuple[int, int]] = {}
    reads: list[list[tuple[int, int]]] = []
    readers: dict[tuple[int, int], list[int]] = {}
    primary: set[int] = set()  # layers whose result depends on more than labels
    for index, layer in enumerate(net):
        absent = next((name for name in layer.bottoms if name not in versions), None)
        if absent is not None:
            raise ConversionError(_absent(net, index, absent))
        reads.append([versions[name] for name in layer.bottoms])
        for source in reads[-1]:
            readers.setdefault(source, []).append(index)
        if not layer.bottoms or any(s[0] in primary and _gives_input(net, *s) for s in reads[-1]):
            primary.add(index)
        for top, name in enumerate(layer.tops):
            if name in versions and layer.bottoms[top : top + 1] != [name]:
                other = net[versions[name][0]]
                raise ConversionError(f"{layer}: its top {name!r} is written by {other} already; rename one")
            if name in versions and len(readers[versions[name]]) > 1:
                other = net[readers[versions[name]][0]]
                raise ConversionError(
                    f"{layer}: changes blob {name!r} in place, which {other} reads as well; "
                    "give it a top of its own, as Caffe asks for"
                )
            versions[name] = (index, top)
    if outputs:
        missing = next((name for name in outputs if name not in versions), None)
        if missing is not None:
            raise ConversionError(
                f"there is no blob {missing!r} in the network; it has {', '.join(versions)}"
            )
        ends = {name: versions[name] for name in outputs}
    else:
        ends = _ends(net, versions, readers, primary)
    wanted = {source[0] for source in ends.values()}
    if not outputs:
        wanted |= {i for i, layer in enumerate(net) if layer.type == "Input"}
    for index in reversed(range(len(net))):
        if index in wanted:
            wanted |= {source[0] for source in reads[index]}
    used = Counter(source for index in wanted for source in reads[index])
    used.update(ends.values())
    return _Plan(sorted(wanted), reads, ends, used)


def _ends(
    net: list[Layer],
    versions: dict[str, tuple[int, int]],
    readers: dict[tuple[int, int], list[int]],
    primary: set[int],
) -> dict[str, tuple[int, int]]:
    """The blobs that no layer reads but a head; those of the heaviest loss first."""
    weights: dict[str, float] = {}
    ends: dict[str, tuple[int, int]] = {}
    for name, source in versions.items():
        layer = net[source[0]]
        reading = [net[i] for i in readers.get(source, ())]
        inner = layer.type in HEADS or layer.type in DATA or layer.type == "Input"
        if inner or source[0] not in primary or any(r.type not in HEADS for r in reading):
            continue
        ends[name] = source
        weights[name] = max((loss_weight(r) for r in reading), default=0.0)
    if not ends:
        raise ConversionError("the network has no output: every blob is read by another layer")
    return dict(sorted(ends.items(), key=lambda item: -weights[item[0]]))


def _gives_input(net: list[Layer], index: int, top: int) -> bool:
    return top == 0 or net[index].type not in DATA


def _absent(net: list[Layer], index: int, name: str) -> str:
    later = next((layer for layer in net[index:] if name in layer.tops), None)
    why = "no layer writes it" if later is None else f"{later} writes it, which comes later or is the same"
    return f"{net[index]}: its bottom {name!r} is not there: {why}; layers run in the order of the file"


def _write(net: list[Layer], plan: _Plan, options: Options, dynamic: bool) -> Assembly:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": options.opset}, name="caffe")
    builder = NetBuilder(graph, dynamic, options.trainable)
    values: dict[tuple[int, int], ir.Value] = {}
    preprocessing = Preprocessing(layout="NCHW", channels="BGR")
    only_dummies = not any(net[i].type == "Input" or net[i].type in DATA for i in plan.layers)
    for index in plan.layers:
        layer = net[index]
        dummy = layer.type == "DummyData" and (only_dummies or not constant_dummy(layer))
        if layer.type == "Input" or layer.type in DATA or dummy:
            for top, value in _inputs(builder, layer, index, plan, options, graph):
                values[index, top] = value
            _read_transform(layer, preprocessing)
            continue
        function = layer_type.get(layer.type)
        if function is None:
            raise ConversionError(
                f"{layer}: this layer type is not known; write a function for it and register it with "
                f"@layer_type({layer.type!r}) as in {_layers.__name__}"
            )
        builder.sole = bool(layer.bottoms) and plan.readers[plan.reads[index][0]] == 1
        try:
            made = function(builder, layer, [values[source] for source in plan.reads[index]])
        except (ArithmeticError, ValueError, IndexError, TypeError, MemoryError) as error:
            raise ConversionError(
                f"{layer}: its parameters are not possible ({error}); correct them in the prototxt"
            ) from None
        tops = [made] if isinstance(made, ir.Value) else made
        if len(tops) < len(layer.tops) and layer.type not in _SINKS:
            raise ConversionError(f"{layer}: has {len(layer.tops)} tops, but gives {len(tops)}")
        if 0 < layer.used < len(layer.blobs):
            raise MissingWeights(
                f"{layer}: the caffemodel has {len(layer.blobs)} blobs for it, the layer uses {layer.used}; "
                "give the caffemodel that belongs to the prototxt"
            )
        values.update({(index, top): value for top, value in enumerate(tops)})
    _set_outputs(graph, builder, {name: values[source] for name, source in plan.outputs.items()})
    model = Model(ir.Model(graph, ir_version=MAX_IR_VERSION))
    normalize(model)
    meta = model.metadata
    meta.framework, meta.format, meta.running_variance = "caffe", "caffemodel", "unbiased"
    meta.preprocessing, meta.frozen, meta.running_factors = preprocessing, builder.frozen, builder.factors
    if options.trainable:
        meta.trainable = [name for name in builder.parameters if name in graph.initializers]
    writers = {name: net[source[0]].name for name, source in plan.outputs.items()}
    return Assembly(model, writers, builder.stored)


def _inputs(
    builder: NetBuilder, layer: Layer, index: int, plan: _Plan, options: Options, graph: ir.Graph
) -> Iterator[tuple[int, ir.Value]]:
    """The graph inputs of a layer without bottoms, as far as they are read; those of Input layers all."""
    for top, name in enumerate(layer.tops):
        if layer.type != "Input" and (index, top) not in plan.readers:
            continue
        given = options.shapes.get(name, options.shapes.get("") if top == 0 else None)
        sizes: Sequence[int] = given or _declared(layer, top)
        if not sizes:
            raise ConversionError(
                f"{layer}: the size of {name!r} is in the data; say it with --shape {name}=1,3,224,224"
            )
        open_ended = given is not None or layer.type in DATA
        bounded(layer, f"input {name!r}", [d for d in sizes if not open_ended or d != -1])
        if builder.batch is None:
            builder.batch = sizes[0]
        batch: Dim = "batch" if sizes[0] in (builder.batch, -1) or builder.batch == -1 else f"{name}_0"
        batch = batch if builder.dynamic_batch or sizes[0] == -1 else sizes[0]
        spatial: list[Dim] = [f"{name}_{axis}" if d == -1 else d for axis, d in enumerate(sizes)]
        value = ir.val(name, ir.DataType.FLOAT, ir.Shape([batch, *spatial[1:]]))
        graph.inputs.append(value)
        yield top, value


def _declared(layer: Layer, top: int) -> list[int]:
    """The shape of a top as the prototxt states it, empty where only the data knows it."""
    p = layer.proto
    if layer.type == "Input":
        shapes = [list(shape.dim) for shape in p.input_param.shape]
        return shapes[top if len(shapes) > 1 else 0] if len(shapes) > top or len(shapes) == 1 else []
    if layer.type == "DummyData":
        return dummy_shape(layer, top)
    if layer.type == "MemoryData":
        m = p.memory_data_param
        return [m.batch_size, m.channels, m.height, m.width][: 4 if top == 0 else 1]
    if top == 0 or layer.type == "HDF5Data":
        return []
    return [-1]  # one label per sample


def dummy_shape(layer: Layer, top: int) -> list[int]:
    """The shape of a DummyData's top: ``shape``, or the older num, channels, height and width."""
    p = layer.proto.dummy_data_param
    if p.shape:
        return list(p.shape[top if len(p.shape) > 1 else 0].dim)
    sizes = [list(getattr(p, name)) for name in ("num", "channels", "height", "width")]
    if not all(sizes):
        raise ConversionError(f"{layer}: has no shape")
    return [values[top if len(values) > 1 else 0] for values in sizes]


def constant_dummy(layer: Layer) -> bool:
    """Whether a DummyData gives constants, not random numbers."""
    return all(filler.type == "constant" for filler in layer.proto.dummy_data_param.data_filler)


@layer_type("DummyData")
def dummy_data(net: NetBuilder, layer: Layer, bottoms: list[ir.Value]) -> list[ir.Value]:
    """Constants, beside a network's real inputs."""
    if net.dynamic_batch:
        raise FixedBatch(f"{layer} has a fixed shape")
    fillers = layer.proto.dummy_data_param.data_filler
    made = []
    for top in range(len(layer.tops)):
        value = fillers[top if len(fillers) > 1 else 0].value if fillers else 0.0
        shape = dummy_shape(layer, top)
        bounded(layer, f"top {top}", shape)
        made.append(net.constant(layer, np.full(shape, value, np.float32)))
    return made


def _read_transform(layer: Layer, preprocessing: Preprocessing) -> None:
    """A data layer's transformation, ``(x - mean) * scale``, as the model's preprocessing."""
    if layer.type == "Input" or preprocessing.scale is not None:
        return
    transform: Any = layer.proto.transform_param
    preprocessing.scale = transform.scale
    preprocessing.mean = list(transform.mean_value) or None
    preprocessing.mean_image = transform.mean_file or None
    images = layer.proto.image_data_param
    preprocessing.resize = (images.new_height, images.new_width) if images.new_height else None
    preprocessing.crop = transform.crop_size or None
    preprocessing.mirror = transform.mirror


def heads(net: list[Layer]) -> list[dict[str, Any]]:
    """The training head: each loss and accuracy of a network with its blobs, weight and settings."""
    return [describe(layer) for layer in net if layer.type in HEADS]


def _set_outputs(graph: ir.Graph, builder: NetBuilder, outputs: dict[str, ir.Value]) -> None:
    inputs = {value.name for value in graph.inputs}
    for name, value in outputs.items():
        if name in inputs:
            raise ConversionError(f"output {name!r} has the name of an input; give its layer another top")
        if value.producer() is None or value.is_graph_output():
            shape = value.shape
            value = builder.op.Identity(value)
            value.shape = shape
        value.name = name
        graph.outputs.append(value)
