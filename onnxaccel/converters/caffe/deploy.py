"""The deploy form of a network: inputs where it had data layers, nothing that compares with labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format

from onnxaccel.converters.caffe.assemble import DATA
from onnxaccel.converters.caffe.layers.head import HEADS
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.converters.caffe.schema import message
from onnxaccel.graph.builder import dims_of
from onnxaccel.graph.model import Model, name_of

ACTING = frozenset({"HDF5Output", "Python"})
"""Layers that do more than compute, when Caffe runs them: write files, import modules."""

_SIZE = 8
"""What stands for a dynamic dimension; who runs the network sets its own."""


def deploy_form(net: list[Layer], model: Model) -> str:
    """A prototxt that computes the model's outputs from the model's inputs.

    Args:
        net: The network's layers.
        model: The model that was made of it.
    """
    proto = message("NetParameter")(name="deploy")
    known: set[str] = set()
    for value in model.inputs:
        dims = dims_of(value) or []
        layer = proto.layer.add(name=name_of(value), type="Input", top=[name_of(value)])
        layer.input_param.shape.add(
            dim=[d if isinstance(d, int) else 1 if axis == 0 else _SIZE for axis, d in enumerate(dims)]
        )
        known.add(name_of(value))
    append_computed(proto, net, known)
    return str(text_format.MessageToString(proto))


def append_computed(proto: Any, net: list[Layer], known: set[str]) -> set[str]:
    """Append the layers that can be computed from the blobs ``known``, without their phases.

    Args:
        proto: The NetParameter that they are appended to.
        net: The network's layers.
        known: Names of the blobs that are there; those that the layers write are added.

    Returns:
        ``known``.
    """
    for layer in net:
        given = layer.type in DATA | ACTING or layer.type in HEADS or layer.type == "Input"
        if given or not set(layer.bottoms) <= known:
            continue
        copy = proto.layer.add()
        copy.CopyFrom(layer.proto)
        for rules in ("include", "exclude"):
            copy.ClearField(rules)
        known |= set(layer.tops)
    return known


def write(net: list[Layer], model: Model, weights: bytes, folder: Path) -> tuple[Path, Path]:
    """Write the deploy form and its weights into a folder; their paths."""
    prototxt, caffemodel = folder / "deploy.prototxt", folder / "weights.caffemodel"
    prototxt.write_text(deploy_form(net, model))
    caffemodel.write_bytes(weights)
    return prototxt, caffemodel
