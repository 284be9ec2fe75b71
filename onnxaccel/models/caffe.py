"""Writing a reference model as Caffe users keep theirs: deploy, train_val and solver prototxt, caffemodel.

Field numbers are those of Caffe's caffe.proto. The four messages that hold weights are written here, so that
exporting needs nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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

_TRAIN_VAL = """\
name: "{name}"
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TRAIN }}
  transform_param {{ scale: 0.00392156862745098 }}
  data_param {{ source: "train_lmdb" batch_size: 64 backend: LMDB }} }}
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TEST }}
  transform_param {{ scale: 0.00392156862745098 }}
  data_param {{ source: "test_lmdb" batch_size: 100 backend: LMDB }} }}
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


def write(
    folder: Path, name: str, model: Reference, weights: Weights, input_shape: Shape, classes: int
) -> list[Path]:
    """Write NAME_deploy.prototxt, NAME.caffemodel, NAME_train_val.prototxt and NAME_solver.prototxt.

    Args:
        folder: Where to.
        name: The model's name.
        model: The model.
        weights: Its weights, as `initial_weights` gives them; Caffe's layouts are PyTorch's.
        input_shape: Shape of one sample, channels first.
        classes: Number of classes.

    Returns:
        The files in that order.
    """
    layers = model.caffe(input_shape, classes).strip()
    dims = " ".join(f"dim: {dim}" for dim in (1, *input_shape))
    contents = {
        f"{name}_deploy.prototxt": _DEPLOY.format(name=name, dims=dims, layers=layers).encode(),
        f"{name}.caffemodel": _net(name, weights),
        f"{name}_train_val.prototxt": _TRAIN_VAL.format(name=name, layers=layers).encode(),
        f"{name}_solver.prototxt": _SOLVER.format(name=name).encode(),
    }
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return [folder / file for file in contents]


def _net(name: str, weights: Weights) -> bytes:
    """A NetParameter: of each layer its name, its type and its blobs, the weight before the bias."""
    message = _field(_NET_NAME, name.encode())
    for layer in dict.fromkeys(key.rpartition(".")[0] for key in weights):
        blobs = [weights[f"{layer}.weight"], weights[f"{layer}.bias"]]
        kind = b"Convolution" if blobs[0].ndim == 4 else b"InnerProduct"
        parts = [_field(_LAYER_NAME, layer.encode()), _field(_LAYER_TYPE, kind)]
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
