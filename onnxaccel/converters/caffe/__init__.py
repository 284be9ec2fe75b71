"""Caffe networks: a prototxt and its caffemodel, layer by layer.

Parameters are named ``<layer>.weight`` and ``<layer>.bias``, running statistics ``<layer>.running_mean`` and
``<layer>.running_var``; outputs carry the names of Caffe's blobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnxaccel.converters.caffe import layers as _layers  # registers them
from onnxaccel.converters.caffe.builder import NetBuilder, layer_type
from onnxaccel.converters.caffe.net import Layer, load_weights, read_net
from onnxaccel.converters.caffe.reference import find_reference
from onnxaccel.converters.contract import Conversion, Options
from onnxaccel.converters.detect import Detected
from onnxaccel.errors import ConversionError, MissingWeights
from onnxaccel.graph.builder import Dim
from onnxaccel.graph.model import MAX_IR_VERSION, Model, Preprocessing
from onnxaccel.graph.normalize import normalize

_DATA = frozenset({"Data", "HDF5Data", "ImageData", "MemoryData", "WindowData", "DummyData"})
_HEADS = frozenset(
    {
        "Accuracy",
        "ContrastiveLoss",
        "EuclideanLoss",
        "HingeLoss",
        "InfogainLoss",
        "MultinomialLogisticLoss",
        "SigmoidCrossEntropyLoss",
        "SoftmaxWithLoss",
    }
)
"""Layers that compare with labels; the trainer has its own loss."""

__all__ = ["convert_files", "convert_live"]


def convert_live(model: Any, example: tuple[Any, ...], options: Options) -> Conversion:
    """Caffe's nets live in its own process; only files convert."""
    raise ConversionError("give the net's prototxt and caffemodel instead of a live Caffe net")


def convert_files(detected: Detected, options: Options) -> Conversion:
    """Convert a prototxt and its weights.

    Raises:
        ConversionError: The network cannot be read, or has a layer that is not known.
        MissingWeights: The caffemodel lacks weights of a layer, or has them in another shape.
    """
    prototxt, *weights = detected.paths
    if not weights:
        raise MissingWeights(f"{prototxt}: a network without weights; give its .caffemodel as well")
    net = read_net(prototxt)
    load_weights(net, weights[0])
    options.progress(f"mapping {len(net)} layers")
    model, producers = build(net, options)
    reference = find_reference(prototxt, weights[0], producers)
    return Conversion(model, reference.run if reference else None, _name_of(reference))


def _name_of(reference: Any) -> str:
    missing = (
        "pip install 'onnxaccel[caffe]' brings OpenCV's reader of Caffe nets (make caffe builds a real one)"
    )
    return reference.name if reference else missing


def build(net: list[Layer], options: Options) -> tuple[Model, dict[str, str]]:
    """The ONNX model of a network, and for each of its outputs the layer that writes it last."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": options.opset}, name="caffe")
    builder = NetBuilder(graph)
    blobs: dict[str, ir.Value] = {}
    writers: dict[str, str] = {}
    consumed: set[str] = set()
    preprocessing = Preprocessing(layout="NCHW", channels="BGR")
    for layer in net:
        if layer.type == "Input" or layer.type in _DATA:
            blobs |= _inputs(graph, layer, options)
            _read_transform(layer, preprocessing)
            continue
        if layer.type in _HEADS:
            continue
        function = layer_type.get(layer.type)
        if function is None:
            raise ConversionError(
                f"{layer}: this layer type is not known; register it with @layer_type({layer.type!r}) "
                f"in {_layers.__name__}"
            )
        absent = [name for name in layer.bottoms if name not in blobs]
        if absent:
            raise ConversionError(f"{layer}: no layer before it writes its bottom {absent[0]!r}")
        made = function(builder, layer, [blobs[name] for name in layer.bottoms])
        tops = [made] if isinstance(made, ir.Value) else made
        consumed |= set(layer.bottoms) - set(layer.tops)
        for name, value in zip(layer.tops, tops, strict=False):
            consumed.discard(name)
            blobs[name] = value
            writers[name] = layer.name
    outputs = list(options.outputs) or [name for name in blobs if name not in consumed and name in writers]
    _set_outputs(graph, builder, blobs, outputs)
    model = Model(ir.Model(graph, ir_version=MAX_IR_VERSION))
    normalize(model)
    meta = model.metadata
    meta.framework, meta.format, meta.running_variance = "caffe", "caffemodel", "unbiased"
    meta.preprocessing = preprocessing
    meta.trainable = (
        [name for name in builder.parameters if name in graph.initializers] if options.trainable else None
    )
    return model, {name: writers[name] for name in outputs}


def _inputs(graph: ir.Graph, layer: Layer, options: Options) -> dict[str, ir.Value]:
    """The graph inputs of an Input or data layer; a data layer's labels are left to the trainer."""
    found = {}
    shapes = [list(shape.dim) for shape in layer.proto.input_param.shape]
    for index, name in enumerate(layer.tops):
        given = options.shapes.get(name, options.shapes.get("") if len(layer.tops) == 1 else None)
        if given is None and layer.type in _DATA and index > 0:
            continue
        sizes: Sequence[int] = given or (shapes[index if len(shapes) > 1 else 0] if shapes else [])
        if not sizes:
            raise ConversionError(
                f"{layer}: the size of {name!r} is in the data; say it with --shape {name}=1,3,224,224"
            )
        spatial: list[Dim] = [f"{name}_{axis}" if d == -1 else d for axis, d in enumerate(sizes)]
        dims: list[Dim] = ["batch", *spatial[1:]]
        value = ir.val(name, ir.DataType.FLOAT, ir.Shape(dims))
        graph.inputs.append(value)
        found[name] = value
    return found


def _read_transform(layer: Layer, preprocessing: Preprocessing) -> None:
    """A data layer's ``(x - mean) * scale`` as the model's preprocessing."""
    if layer.proto.HasField("transform_param"):
        transform = layer.proto.transform_param
        preprocessing.mean = list(transform.mean_value) or None
        preprocessing.scale = transform.scale
    else:
        preprocessing.scale = preprocessing.scale if preprocessing.scale is not None else 1.0


def _set_outputs(
    graph: ir.Graph, builder: NetBuilder, blobs: dict[str, ir.Value], names: Sequence[str]
) -> None:
    for name in names:
        if name not in blobs:
            raise ConversionError(f"there is no blob {name!r} in the network; it has {', '.join(blobs)}")
        value = blobs[name]
        if value.is_graph_input() or value.is_graph_output():
            shape = value.shape
            value = builder.op.Identity(value)
            value.shape = shape
        value.name = name
        graph.outputs.append(value)
