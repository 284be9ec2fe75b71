"""Writing a .caffemodel: the weights of a converted network, back in the blobs that they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxaccel.bounds import MESSAGE
from onnxaccel.converters.caffe.assemble import build
from onnxaccel.converters.caffe.net import Layer, read_net
from onnxaccel.converters.caffe.schema import message
from onnxaccel.converters.contract import Options
from onnxaccel.errors import ModelError
from onnxaccel.graph.builder import dims_of
from onnxaccel.graph.model import Model, name_of

Blobs = dict[int, npt.NDArray[np.float32]]


def caffemodel_of(model: Model, prototxt: Path) -> bytes:
    """A NetParameter with nothing but names, types and weights, which every Caffe and fork reads.

    Args:
        model: A converted network.
        prototxt: Its prototxt, with data layers or without.

    Raises:
        ModelError: The model lacks weights of the network, or has them in another shape; or they are over
            protobuf's 2 GB.
        ConversionError: The prototxt cannot be read.
    """
    net = read_net(prototxt)
    blobs = _blobs(model, net, prototxt)
    proto = message("StoredNet")(name=prototxt.stem)
    size = 0
    for layer in net:
        held = blobs.get(layer.name, {})
        size += sum(array.nbytes for array in held.values())
        if size > MESSAGE:
            raise ModelError("the weights are over 2 GB, more than a .caffemodel can hold")
        stored = proto.layer.add(name=layer.name, type=layer.type)
        for _, array in sorted(held.items()):
            blob = stored.blobs.add()
            blob.shape.dim.extend(array.shape)
            blob.data.extend(array.ravel())
    data: bytes = proto.SerializeToString()
    return data


def _blobs(model: Model, net: list[Layer], prototxt: Path) -> dict[str, Blobs]:
    """The blobs of each layer: the network is built once more, to see which initializer holds which blob."""
    blobs: dict[str, Blobs] = {}

    def ask(layer: Layer, index: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        blobs.setdefault(layer.name, {})[index] = np.ones(shape, np.float32)
        return blobs[layer.name][index]

    for layer in net:
        layer.fill = ask
    shapes = {
        name_of(value): tuple(d if isinstance(d, int) else -1 for d in dims_of(value) or [])
        for value in model.inputs
    }
    stored = build(net, Options(shapes=shapes, trainable=True, outputs=tuple(_outputs(model, net)))).stored
    weights = model.weights()
    for name, place in stored.items():
        wanted = blobs[place.layer.name][place.index]
        if name not in weights:
            raise ModelError(f"the model has no {name!r}, so it was not converted from {prototxt}")
        if weights[name].size != wanted.size:
            raise ModelError(
                f"{name!r} has shape {list(weights[name].shape)} in the model, its blob {list(wanted.shape)} "
                f"in {prototxt}"
            )
        blobs[place.layer.name][place.index] = weights[name].reshape(wanted.shape)
    for name, factor in model.metadata.running_factors.items():
        if len(blobs.get(name, ())) == 3:  # a BatchNorm's: sums, and what they are divided by
            blobs[name] = {index: array * np.float32(factor) for index, array in blobs[name].items()}
    _share(net, blobs)
    return blobs


def _outputs(model: Model, net: list[Layer]) -> list[str]:
    """The model's outputs, if the network has blobs of all these names; a deploy prototxt may not."""
    tops = {top for layer in net for top in layer.tops}
    found = [name for name in model.output_names() if name in tops]
    return found if len(found) == len(model.outputs) else []


def _share(net: list[Layer], blobs: dict[str, Blobs]) -> None:
    """Repeat blobs that layers share by the names of their params, as Caffe does."""
    owners: dict[str, npt.NDArray[np.float32]] = {}
    for layer in net:
        for index, spec in enumerate(layer.proto.param):
            if not spec.name:
                continue
            held = blobs.setdefault(layer.name, {})
            if index in held:
                owners[spec.name] = held[index]
            elif spec.name in owners:
                held[index] = owners[spec.name]
