"""Caffe networks: a prototxt and its caffemodel, layer by layer.

Parameters are named ``<layer>.weight`` and ``<layer>.bias``, running statistics ``<layer>.running_mean`` and
``<layer>.running_var``; outputs carry the names of Caffe's blobs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxaccel.converters.caffe.assemble import Assembly, build, heads
from onnxaccel.converters.caffe.layers.detection import DETECTIONS
from onnxaccel.converters.caffe.net import Layer, read_net
from onnxaccel.converters.caffe.reference import find_reference
from onnxaccel.converters.caffe.schema import parse_binary
from onnxaccel.converters.caffe.weights import array_of, load_weights
from onnxaccel.converters.contract import Conversion, Options
from onnxaccel.converters.detect import Detected
from onnxaccel.errors import ConversionError
from onnxaccel.graph.model import Preprocessing, packed

__all__ = ["Assembly", "build", "convert_files", "convert_live", "load_weights", "read_net"]


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
    net = read_net(prototxt)
    if weights:
        load_weights(net, weights[0])
    options.progress(f"mapping {len(net)} layers")
    made = build(net, options)
    training = _training_layers(prototxt)
    meta = made.model.metadata
    meta.heads = heads(training)
    meta.preprocessing.mirror = any(one.proto.transform_param.mirror for one in training)
    _read_mean(meta.preprocessing, prototxt)
    reference = find_reference(prototxt, weights[0] if weights else None, made.writers)
    kinds = {layer.name: layer.type for layer in net}
    return Conversion(
        made.model,
        reference.run if reference else None,
        _name_of(reference),
        rows=frozenset(blob for blob, layer in made.writers.items() if kinds[layer] in DETECTIONS),
    )


def _read_mean(preprocessing: Preprocessing, prototxt: Path) -> None:
    """Put the mean image into the metadata, if its file is there: beside the prototxt, or where it says."""
    name = preprocessing.mean_image
    if not isinstance(name, str):
        return
    path = next((p for p in (prototxt.parent / name, Path(name)) if p.is_file()), None)
    if path is not None:
        blob = parse_binary(path.read_bytes(), "BlobProto", str(path))
        mean = array_of(blob, str(path))
        preprocessing.mean_image = packed(mean.reshape(mean.shape[-3:]))


def _training_layers(prototxt: Path) -> list[Layer]:
    """The layers of the TRAIN phase; a deploy prototxt has the same ones, or none."""
    try:
        return read_net(prototxt, "TRAIN")
    except ConversionError:
        return []


def _name_of(reference: Any) -> str:
    missing = (
        "pip install 'onnxaccel[caffe]' brings OpenCV's reader of Caffe nets (make caffe builds a real one)"
    )
    return reference.name if reference else missing
