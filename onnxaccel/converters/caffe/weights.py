"""Weights: a binary .caffemodel or an HDF5 one, matched to the layers by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.bounds import read, regular
from onnxaccel.converters.caffe.net import Layer
from onnxaccel.converters.caffe.schema import parse_binary
from onnxaccel.errors import ConversionError, MissingDependency, MissingWeights
from onnxaccel.hdf5 import DAMAGED, check_hdf5

Blobs = list[npt.NDArray[np.float32]]

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def load_weights(layers: list[Layer], path: Path) -> None:
    """Give each layer the weights that the file holds under its name.

    Layers that the file lacks keep none; layers of the file that the network lacks are left out.

    Raises:
        ConversionError: The file is damaged or too large, or holds no weights.
        MissingDependency: An HDF5 file needs h5py.
    """
    regular(path, ConversionError)
    try:
        with path.open("rb") as file:
            hdf5 = file.read(len(HDF5_MAGIC)) == HDF5_MAGIC
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error})") from None
    stored = _read_hdf5(path) if hdf5 else _read_binary(path)
    if not stored:
        raise ConversionError(f"{path}: no weights in it; is it a caffemodel?")
    for layer in layers:
        layer.blobs = stored[layer.name]() if layer.name in stored else []


def array_of(blob: Any, where: str) -> npt.NDArray[np.float32]:
    """The data of a BlobProto, in its declared shape.

    Raises:
        MissingWeights: It holds another number of values than it declares.
    """
    data = np.array(blob.data if blob.data else blob.double_data, np.float32)
    shape = (
        list(blob.shape.dim) if blob.HasField("shape") else [blob.num, blob.channels, blob.height, blob.width]
    )
    if any(size < 0 for size in shape) or math.prod(shape) != data.size:
        raise MissingWeights(f"{where}: a blob declares shape {shape} but holds {data.size} values")
    return data.reshape(shape)


def _read_binary(path: Path) -> dict[str, Callable[[], Blobs]]:
    proto = parse_binary(read(path, ConversionError), "StoredNet", str(path))
    stored: list[tuple[str, Iterable[Any]]] = [(old.name, old.blobs) for old in proto.layers]
    stored += [(old.layer.name, old.layer.blobs) for old in proto.layers if old.HasField("layer")]
    stored += [(layer.name, layer.blobs) for layer in proto.layer]
    return {name: partial(_arrays, blobs, f"{path}: layer {name!r}") for name, blobs in stored if blobs}


def _arrays(blobs: Iterable[Any], where: str) -> Blobs:
    return [array_of(blob, where) for blob in blobs]


def _read_hdf5(path: Path) -> dict[str, Callable[[], Blobs]]:
    """Datasets /data/<layer>/<index>, as Caffe's snapshots have them; slashes in names make groups."""
    try:
        import h5py
    except ImportError:
        raise MissingDependency("h5py", "data", "read .caffemodel.h5 files") from None
    check_hdf5(path, ConversionError, whole=True)
    stored: dict[str, Blobs] = {}

    def visit(name: str, item: Any) -> None:
        layer, _, index = name.rpartition("/")
        if isinstance(item, h5py.Dataset) and index.isdigit():
            stored.setdefault(layer, []).append(np.asarray(item[()], np.float32))

    try:
        with h5py.File(path, "r") as file:
            if "data" not in file:
                raise ConversionError(
                    f"{path}: an HDF5 file without /data, so not Caffe's; give the .caffemodel.h5"
                )
            file["data"].visititems(visit)
    except DAMAGED as error:
        raise ConversionError(f"{path}: damaged or truncated ({error}); copy the file again") from None
    return {name: partial(list, blobs) for name, blobs in stored.items()}
