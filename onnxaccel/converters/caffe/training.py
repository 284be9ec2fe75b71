"""How Caffe trains a network: rates and decays of its parameters, batch sizes, transformations, solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.bounds import read, within
from onnxaccel.converters.caffe.assemble import DATA, Assembly
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.converters.caffe.schema import parse_binary
from onnxaccel.converters.caffe.weights import array_of
from onnxaccel.data import open_dataset
from onnxaccel.errors import ConversionError, DataError, MissingDependency
from onnxaccel.graph.model import packed
from onnxaccel.graph.solver import Solver

_SECTIONS = {
    "AnnotatedData": "data_param",
    "Data": "data_param",
    "HDF5Data": "hdf5_data_param",
    "ImageData": "image_data_param",
    "MemoryData": "memory_data_param",
    "WindowData": "window_data_param",
}
"""Where a data layer keeps its source and batch size."""


def record(
    made: Assembly, tested: list[Layer], trained: list[Layer], prototxt: Path, solver: Solver | None
) -> None:
    """Write into the model's metadata how Caffe trains the network.

    Parameters whose lr_mult is 0 are no longer trainable: Caffe computes no gradient for them.

    Args:
        made: The network.
        tested: Its layers in the TEST phase.
        trained: Its layers in the TRAIN phase.
        prototxt: The file that they come from.
        solver: The solver, where one was given.

    Raises:
        ConversionError: The mean file is damaged.
    """
    meta = made.model.metadata
    multipliers = {name: _multipliers(s.layer, s.index) for name, s in made.stored.items()}
    if meta.trainable is not None:
        meta.trainable = [name for name in meta.trainable if multipliers.get(name, (1.0, 1.0))[0] != 0]
        meta.multipliers = {
            name: multipliers[name]
            for name in meta.trainable
            if multipliers.get(name, (1.0, 1.0)) != (1.0, 1.0)
        }
    for part, layers in (("train", trained), ("test", tested)):
        source = next((layer for layer in layers if layer.type in DATA), None)
        if source is not None and (size := _section(source).batch_size):
            meta.batch_sizes[part] = size
    source = next((layer for layer in [*trained, *tested] if layer.type in DATA), None)
    if source is not None:
        _transform(source, meta.preprocessing, prototxt)
    if solver is not None:
        meta.solver = asdict(solver)


def _multipliers(layer: Layer, index: int) -> tuple[float, float]:
    """lr_mult and decay_mult of a layer's blob."""
    specs = layer.proto.param
    return (specs[index].lr_mult, specs[index].decay_mult) if index < len(specs) else (1.0, 1.0)


def _section(layer: Layer) -> Any:
    return getattr(layer.proto, _SECTIONS[layer.type])


def _transform(layer: Layer, preprocessing: Any, prototxt: Path) -> None:
    """The training data's transformation; in tests Caffe crops at the centre, and so is it here."""
    p = layer.proto.transform_param
    preprocessing.scale = p.scale
    preprocessing.mean = list(p.mean_value) or None
    preprocessing.crop = p.crop_size or None
    preprocessing.mirror = p.mirror
    if layer.type == "ImageData" and _section(layer).new_height and _section(layer).new_width:
        preprocessing.resize = (_section(layer).new_height, _section(layer).new_width)
    if p.mean_file:
        file = _beside(p.mean_file, prototxt)
        preprocessing.mean_image = packed(read_mean(file)) if file is not None else p.mean_file


def read_mean(path: Path) -> npt.NDArray[np.float32]:
    """The mean image of a .binaryproto, float32 [C, H, W].

    Raises:
        ConversionError: It is damaged or of another form.
    """
    mean = array_of(parse_binary(read(path, ConversionError), "BlobProto", str(path)), str(path))
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3 or not mean.size:
        raise ConversionError(f"{path}: a mean image has three axes, this has shape {list(mean.shape)}")
    return mean


def sizes_of_data(net: list[Layer], prototxt: Path, given: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each data layer's input, read off its data where that is there and no shape was given."""
    found = {}
    for layer in net:
        if layer.type not in _SECTIONS or layer.type == "MemoryData" or not layer.tops:
            continue
        name = layer.tops[0]
        file = _beside(_section(layer).source, prototxt)
        if name in given or "" in given or file is None:
            continue
        try:
            sample = open_dataset(str(file)).take(np.zeros(1, np.int64))[0][0]
        except (DataError, MissingDependency):
            continue  # the message about the missing --shape follows
        shape = sample.shape
        if sample.ndim == 3 and layer.type != "HDF5Data":
            crop = layer.proto.transform_param.crop_size
            height, width, channels = sample.shape
            shape = (channels, crop or height, crop or width)
        found[name] = (-1, *shape)
    return found


def _beside(name: str, prototxt: Path) -> Path | None:
    """A file that a prototxt names: from the working directory, as Caffe has it, or the prototxt's folder.

    One that lies in neither is not read: a prototxt is not to say which of the user's files are opened.
    """
    if not name:
        return None
    for place in (Path(name), prototxt.parent / name, prototxt.parent / Path(name).name):
        if within(place, Path(), prototxt.parent) and place.exists():
            return place
    return None
