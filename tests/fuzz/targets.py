"""What is fuzzed: each target reads bytes as one of our own parsers does, and may only raise `AccelError`."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onnxaccel import records
from onnxaccel.compare import document
from onnxaccel.converters import wire
from onnxaccel.converters.caffe import assemble, net, solver, weights
from onnxaccel.converters.caffe.fillers import filled
from onnxaccel.converters.contract import Options
from onnxaccel.converters.detect import format_of as model_format
from onnxaccel.converters.pytorch import scan
from onnxaccel.data import spec
from onnxaccel.data.readers import datum, idx, lists, lmdb, npz, table
from onnxaccel.errors import AccelError
from onnxaccel.graph import model
from onnxaccel.protect import container
from onnxaccel.protect.keys import Key
from onnxaccel.registry import Registry
from onnxaccel.runtime.checkpoint import Progress
from tests.security.seeds import NET, OLD_NET, SOLVER

Target = Callable[[bytes], None]

target: Registry[Target] = Registry("fuzz target")
"""Targets by name: ``@target("idx")``."""

SEEDS: dict[str, tuple[str, ...]] = {
    "idx": ("idx/t10k-images-idx3-ubyte", "idx-gz/t10k-images-idx3-ubyte.gz"),
    "datum": (),
    "lmdb": ("lmdb/data.mdb",),
    "csv": ("table.csv",),
    "npz": ("data.npz", "input.npy"),
    "lists": ("list.txt", "files.txt"),
    "prototxt": ("net.prototxt", "old.prototxt"),
    "solver": ("solver.prototxt",),
    "caffemodel": ("net.caffemodel", "mean.binaryproto"),
    "detect": ("rows.onnx", "net.caffemodel", "net.prototxt", "data.npz", "data.h5"),
    "onnx": ("rows.onnx", "images.onnx", "external/model.onnx"),
    "metadata": (),
    "checkpoint": (),
    "comparison": (),
    "spec": (),
    "program": (),
    "container": (),
}
"""Of each target the files of `tests.security.seeds` that it starts from."""

TEXTS: dict[str, tuple[bytes, ...]] = {
    "datum": (b"\x08\x01\x10\x02\x18\x02\x22\x04abcd\x28\x03",),
    "metadata": (
        json.dumps({"preprocessing": {"mean": [1.0], "resize": [3, 4]}, "session": {"threads": 2}}).encode(),
    ),
    "checkpoint": (
        b'{"epoch": 1, "batch": 0, "steps": 3, "settings": {"lr": "1"}, "history": [{"loss": 1.0}]}',
    ),
    "comparison": (b'{"schema": "onnxaccel.comparison/1", "created": "", "sources": [], "warnings": []}',),
    "spec": (b"mnist#train#0:8000", b"sklearn:digits#-5:", b"list.txt#root=x"),
    "program": (
        b'{"target": "torch.ops.aten.add.Tensor", "expr_str": "Mod(Symbol(\'s0\'), 2)", "name": "x"}',
    ),
    "prototxt": (NET.encode(), OLD_NET.encode()),
    "solver": (SOLVER.encode(),),
}
"""Further beginnings."""

_KEY = Key(bytes(32))

_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-")


def _file(name: str, content: bytes) -> Path:
    path = Path(_FOLDER.name, name)
    path.write_bytes(content)
    return path


@target("idx")
def _idx(content: bytes) -> None:
    idx._read(_file("idx", content), 3)


@target("datum")
def _datum(content: bytes) -> None:
    class One:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> bytes:
            return content

    datum.Datums("fuzz", One()).take(np.zeros(1, np.int64))


@target("lmdb")
def _lmdb(content: bytes) -> None:
    dataset = lmdb.Database(_file("data.mdb", content))
    for index in range(min(len(dataset), 16)):
        dataset[index]


@target("csv")
def _csv(content: bytes) -> None:
    table.comma_separated(_file("table.csv", content), None)


@target("npz")
def _npz(content: bytes) -> None:
    npz.load_arrays(_file("data.npz", content), lambda names: names[:2])


@target("lists")
def _lists(content: bytes) -> None:
    path = _file("list.txt", content)
    lists.image_list(path, None)


@target("prototxt")
def _prototxt(content: bytes) -> None:
    layers = net.read_net(_file("net.prototxt", content))
    size = sum(layer.proto.ByteSize() for layer in layers)
    for layer in layers:
        layer.fill = filled(0) if size < 4096 and _small(layer) else None
    assemble.build(layers, Options())


def _small(layer: net.Layer) -> bool:
    """Whether a layer's fresh weights are few; many are legal, and slow to draw."""
    numbers = [layer.proto.convolution_param.num_output, layer.proto.inner_product_param.num_output]
    numbers += [n for n in layer.proto.convolution_param.kernel_size]
    return all(n < 64 for n in numbers)


@target("solver")
def _solver(content: bytes) -> None:
    solver.read_solver(_file("solver.prototxt", content)).schedule()


@target("caffemodel")
def _caffemodel(content: bytes) -> None:
    layers = net.read_net(_file("net.prototxt", NET.encode()))
    weights.load_weights(layers, _file("net.caffemodel", content))


@target("detect")
def _detect(content: bytes) -> None:
    path = _file("model", content)
    wire.first_fields(content)
    for tell in (model_format, spec.format_of):
        try:
            tell(path)
        except AccelError:
            continue


@target("onnx")
def _onnx(content: bytes) -> None:
    path = _file("model.onnx", content)
    _file("model.data", bytes(64))
    loaded = model.Model.load(path)
    if loaded.nbytes < 2**20:
        again = loaded.save(Path(_FOLDER.name, "again.onnx"))
        assert model.Model.load(again).input_names() == loaded.input_names()


@target("metadata")
def _metadata(content: bytes) -> None:
    model.Metadata.from_props({"onnxaccel": content.decode("utf-8", "replace")})


@target("checkpoint")
def _checkpoint(content: bytes) -> None:
    try:
        records.record_of(Progress, content)
    except records.Malformed:
        pass


@target("comparison")
def _comparison(content: bytes) -> None:
    document.load(_file("comparison.json", content))


@target("spec")
def _spec(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    if "sklearn" not in text:
        spec.open_dataset(text.replace("/", "_"))
    else:
        spec._range(_Ten(), text)


class _Ten:
    source, classes = "ten", None

    def __len__(self) -> int:
        return 10


def _sealed() -> bytes:
    """A container of one file, under `_KEY`."""
    sealed = io.BytesIO()
    container.seal(sealed, _KEY, [container.Entry("model.onnx", 5, [b"model"])])
    return sealed.getvalue()


@target("container")
def _container(content: bytes) -> None:
    with container.Opened(_file("model.encrypted.onnx", content), _KEY) as opened:
        opened.contents()


@target("program")
def _program(content: bytes) -> None:
    scan._scan_json(Path("fuzz.pt2"), "model.json", content)


TEXTS["container"] = (_sealed(),)
