"""LeNet and CIFAR-10 quick with their own solvers, on databases made of real images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxaccel.converters.caffe.schema import message
from onnxaccel.data import Dataset, open_dataset
from onnxaccel.data.readers.lmdb import FILE, Database
from tests.data.databases import datum, write_lmdb


@dataclass(frozen=True)
class Recipe:
    """Files to train a network with.

    Attributes:
        net: The train_val prototxt.
        solver: Its solver.
        train: The training database.
        test: The test database.
        batch_size: Samples per training batch.
        test_batches: Batches that cover the test database.
    """

    net: Path
    solver: Path
    train: Path
    test: Path
    batch_size: int
    test_batches: int


def lenet(folder: Path, shared: Path) -> Recipe:
    """Caffe's LeNet on MNIST: 8,000 digits to train on, 2,000 to test on."""
    train = _database(folder / "mnist_train_lmdb", f"{shared}/data/mnist#0:8000")
    test = _database(folder / "mnist_test_lmdb", f"{shared}/data/mnist#8000:10000")
    sample = shared / "samples/caffe/lenet"
    text = (sample / "train_test.prototxt").read_text()
    for path in (train, test):
        text = text.replace(f"examples/mnist/{path.name}", str(path))
    net = folder / "lenet_train_test.prototxt"
    net.write_text(text)
    return Recipe(
        net, _solver(folder, (sample / "solver.prototxt").read_text(), net, 20), train, test, 64, 20
    )


def cifar10_quick(folder: Path, shared: Path) -> Recipe:
    """Caffe's CIFAR-10 quick on 5,000 images, tested on 1,000, less the mean image."""
    train = _database(folder / "cifar10_train_lmdb", f"{shared}/data/cifar10/train", seed=0)
    test = _database(folder / "cifar10_test_lmdb", f"{shared}/data/cifar10/test", seed=1)
    data = open_dataset(str(train))
    images = data.take(np.arange(len(data)))[0].transpose(0, 3, 1, 2)[:, ::-1]  # as they are stored
    mean = images.mean(0, dtype=np.float64).astype(np.float32)
    blob = message("BlobProto")(num=1, channels=3, height=32, width=32, data=mean.ravel())
    (folder / "mean.binaryproto").write_bytes(blob.SerializeToString())
    net = folder / "cifar10_quick_train_test.prototxt"
    layers = "".join(
        f'layer {{ name: "cifar" type: "Data" top: "data" top: "label" include {{ phase: {phase} }}\n'
        f'  transform_param {{ mean_file: "{folder}/mean.binaryproto" }}\n'
        f'  data_param {{ source: "{source}" batch_size: 100 backend: LMDB }} }}\n'
        for phase, source in (("TRAIN", train), ("TEST", test))
    )
    net.write_text(layers + _CIFAR10_QUICK)
    return Recipe(net, _solver(folder, _CIFAR10_SOLVER, net, 10), train, test, 100, 10)


def reordered(made: Recipe, folder: Path) -> Path:
    """A solver whose training batches hold the same samples backwards: the same sums, rounded otherwise."""
    values = Database(made.train / FILE)
    order = np.arange(len(values)).reshape(-1, made.batch_size)[:, ::-1].ravel()
    source = write_lmdb(folder / "backwards", [values[int(index)] for index in order])
    net, solver = folder / "backwards.prototxt", folder / "backwards_solver.prototxt"
    net.write_text(made.net.read_text().replace(str(made.train), str(source)))
    solver.write_text(made.solver.read_text().replace(str(made.net), str(net)))
    return solver


def _solver(folder: Path, text: str, net: Path, test_iter: int) -> Path:
    """A solver whose paths lie in the folder and whose tests cover the test database."""
    for setting, value in {
        "net": f'"{net}"',
        "test_iter": str(test_iter),
        "snapshot_prefix": f'"{folder}/{net.stem}"',
        "solver_mode": "CPU",
    }.items():
        text = re.sub(rf"^{setting}:.*$", f"{setting}: {value}", text, flags=re.MULTILINE)
    path = folder / f"{net.stem}_solver.prototxt"
    path.write_text(text)
    return path


def _database(path: Path, spec: str, seed: int | None = None) -> Path:
    """Images as raw Datums, in a random order where they come sorted by class."""
    data: Dataset = open_dataset(spec)
    order = np.arange(len(data)) if seed is None else np.random.default_rng(seed).permutation(len(data))
    x, y = data.take(order)
    planes = [np.ascontiguousarray(image.transpose(2, 0, 1)[::-1]) for image in x]
    return write_lmdb(path, [datum(image, int(label)) for image, label in zip(planes, y, strict=True)])


def _convolution(name: str, bottom: str, outputs: int, std: float) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"\n'
        "  param { lr_mult: 1 } param { lr_mult: 2 }\n"
        f"  convolution_param {{ num_output: {outputs} pad: 2 kernel_size: 5 stride: 1\n"
        f'    weight_filler {{ type: "gaussian" std: {std} }} bias_filler {{ type: "constant" }} }} }}\n'
    )


def _pooling(name: str, bottom: str, method: str) -> str:
    return (
        f'layer {{ name: "{name}" type: "Pooling" bottom: "{bottom}" top: "{name}"\n'
        f"  pooling_param {{ pool: {method} kernel_size: 3 stride: 2 }} }}\n"
    )


def _relu(name: str, blob: str) -> str:
    return f'layer {{ name: "{name}" type: "ReLU" bottom: "{blob}" top: "{blob}" }}\n'


def _dense(name: str, bottom: str, outputs: int) -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}"\n'
        "  param { lr_mult: 1 } param { lr_mult: 2 }\n"
        f"  inner_product_param {{ num_output: {outputs}\n"
        '    weight_filler { type: "gaussian" std: 0.1 } bias_filler { type: "constant" } } }\n'
    )


_CIFAR10_QUICK = "".join(
    [
        _convolution("conv1", "data", 32, 0.0001),
        _pooling("pool1", "conv1", "MAX"),
        _relu("relu1", "pool1"),
        _convolution("conv2", "pool1", 32, 0.01),
        _relu("relu2", "conv2"),
        _pooling("pool2", "conv2", "AVE"),
        _convolution("conv3", "pool2", 64, 0.01),
        _relu("relu3", "conv3"),
        _pooling("pool3", "conv3", "AVE"),
        _dense("ip1", "pool3", 64),
        _dense("ip2", "ip1", 10),
        'layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy"\n'
        "  include { phase: TEST } }\n",
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }\n',
    ]
)

_CIFAR10_SOLVER = """\
net: "cifar10_quick_train_test.prototxt"
test_iter: 100
test_interval: 500
base_lr: 0.001
momentum: 0.9
weight_decay: 0.004
lr_policy: "fixed"
display: 100
max_iter: 4000
snapshot: 4000
snapshot_prefix: "cifar10_quick"
solver_mode: CPU
"""
