"""Writing a reference model as Caffe users keep theirs: deploy, train_val and solver prototxt, caffemodel.

Field numbers are those of Caffe's caffe.proto. The four messages that hold weights are written here, so that
exporting needs nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from onnxaccel.models.prototxt import Held, Layers
from onnxaccel.models.reference import Reference, Shape, Weights

_NET_NAME, _NET_LAYER = 1, 100
_LAYER_NAME, _LAYER_TYPE, _LAYER_BLOBS = 1, 2, 7
_BLOB_DATA, _BLOB_SHAPE = 5, 7
_SHAPE_DIM = 1

_DEPLOY = """\
name: "{name}"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}
{layers}
layer {{ name: "prob" type: "Softmax" bottom: "score" top: "prob" }}
"""

_DATA = {
    "class": """\
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { scale: 0.00392156862745098 }
  data_param { source: "train_lmdb" batch_size: 64 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { scale: 0.00392156862745098 }
  data_param { source: "test_lmdb" batch_size: 100 backend: LMDB } }""",
    "pixels": """\
# train.txt and test.txt name HDF5 files, with data [N, C, H, W] and label [N, 1, H, W]
layer { name: "data" type: "HDF5Data" top: "data" top: "label" include { phase: TRAIN }
  hdf5_data_param { source: "train.txt" batch_size: 64 } }
layer { name: "data" type: "HDF5Data" top: "data" top: "label" include { phase: TEST }
  hdf5_data_param { source: "test.txt" batch_size: 100 } }""",
}
"""The data layers for each kind of targets: LMDB holds one label per image."""

_TRAIN_VAL = """\
name: "{name}"
{data}
{layers}
layer {{ name: "accuracy" type: "Accuracy" bottom: "score" bottom: "label" top: "accuracy"
  include {{ phase: TEST }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }}
"""

_SOLVER = """\
# caffe train --solver={name}_solver.prototxt --weights={name}.caffemodel
net: "{name}_train_val.prototxt"
type: "SGD"
base_lr: 0.01
momentum: 0.9
lr_policy: "fixed"
max_iter: 5000
test_iter: 100
test_interval: 500
display: 100
snapshot: 5000
snapshot_prefix: "{name}"
solver_mode: CPU
"""


_PARTS = {"BatchNorm": ("running_mean", "running_var"), "Scale": ("weight", "bias")}
"""The weights of each blob of a layer; of all other types the weight, and the bias where there is one."""

_SUM = 10.0
"""BatchNorm's blobs are decaying sums, and its third the sum of their weights, 1/(1 - 0.9) once it is steady.
Begun there, its statistics move as PyTorch's do."""


def write(
    folder: Path, name: str, model: Reference, weights: Weights, input_shape: Shape, classes: int
) -> list[Path]:
    """Write NAME_deploy.prototxt, NAME.caffemodel, NAME_train_val.prototxt and NAME_solver.prototxt.

    Args:
        folder: Where to.
        name: The model's name.
        model: The model; Caffe has it.
        weights: Its weights, as `initial_weights` gives them; Caffe's layouts are PyTorch's.
        input_shape: Shape of one sample, channels first.
        classes: Number of classes.

    Returns:
        The files in that order.
    """
    assert model.caffe is not None
    net = Layers()
    model.caffe(net, input_shape, classes)
    dims = " ".join(f"dim: {dim}" for dim in (1, *input_shape))
    data = _DATA[model.targets]
    contents = {
        f"{name}_deploy.prototxt": _DEPLOY.format(name=name, dims=dims, layers=net).encode(),
        f"{name}.caffemodel": _net(name, net.held, weights),
        f"{name}_train_val.prototxt": _TRAIN_VAL.format(name=name, data=data, layers=net).encode(),
        f"{name}_solver.prototxt": _SOLVER.format(name=name).encode(),
    }
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return [folder / file for file in contents]


def _net(name: str, layers: Iterable[Held], weights: Weights) -> bytes:
    """A NetParameter: of each layer its name, its type and its blobs."""
    message = _field(_NET_NAME, name.encode())
    for layer in layers:
        keys = [f"{layer.weights}.{part}" for part in _PARTS.get(layer.kind, ("weight", "bias"))]
        blobs = [weights[key] for key in keys if key in weights]
        if layer.kind == "BatchNorm":
            blobs = [*(blob * np.float32(_SUM) for blob in blobs), np.array([_SUM], np.float32)]
        parts = [_field(_LAYER_NAME, layer.name.encode()), _field(_LAYER_TYPE, layer.kind.encode())]
        parts += [_field(_LAYER_BLOBS, _blob(blob.shape, blob.astype("<f4").tobytes())) for blob in blobs]
        message += _field(_NET_LAYER, b"".join(parts))
    return message


def _blob(shape: Iterable[int], data: bytes) -> bytes:
    dims = b"".join(_varint(int(dim)) for dim in shape)
    return _field(_BLOB_DATA, data) + _field(_BLOB_SHAPE, _field(_SHAPE_DIM, dims))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of the protobuf wire format."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])
