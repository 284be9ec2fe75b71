"""Files made to harm, by format: each writes its files into a folder and gives the command line to try.

``folder`` holds a copy of every seed. What must not happen shows in the `Judge`: ``canary`` appears,
``victim`` changes, the process dies, hangs or leaves something behind.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.security.judge import Judge
from tests.security.seeds import NET, classifier

Arguments = list[str]
Make = Callable[[Path, Judge], Arguments]


@dataclass(frozen=True)
class Hostile:
    """A hostile file: its format, what is hostile, how it is made, and what must be imported to read it."""

    format: str
    what: str
    make: Make
    framework: str = ""


CASES: list[Hostile] = []


def hostile(format_name: str, what: str, framework: str = "") -> Callable[[Make], Make]:
    """Add the decorated function to `CASES`."""

    def add(make: Make) -> Make:
        CASES.append(Hostile(format_name, what, make, framework))
        return make

    return add


def data(folder: Path, spec: str, model: str = "images.onnx") -> Arguments:
    return ["evaluate", str(folder / model), "--data", str(folder / spec), "--batch-size", "3"]


def converted(judge: Judge, *words: object) -> Arguments:
    return ["convert", *map(str, words), "-o", str(judge.out / "out.onnx")]


# -- ONNX ---------------------------------------------------------------


def _external(**changes: str) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        path = folder / "external/model.onnx"
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = changes.get(entry.key, entry.value).format(victim=judge.victim, null="\0")
        path.write_bytes(model.SerializeToString())
        return ["inspect", str(path)]

    return make


for _what, _changes in {
    "external data above the folder": {"location": "../../../victim"},
    "external data at an absolute path": {"location": "{victim}"},
    "external data in a file of no possible name": {"location": "{null}"},
    "external data at an offset outside the file": {"offset": "99999999"},
    "external data at a negative offset": {"offset": "-8"},
    "external data of another length": {"length": "4000000000000"},
    "external data in a device": {"location": "/dev/zero"},
}.items():
    hostile("ONNX", _what)(_external(**_changes))


@hostile("ONNX", "external data through a link")
def _(folder: Path, judge: Judge) -> Arguments:
    data_file = folder / "external/model.data"
    data_file.unlink()
    os.symlink(judge.victim, data_file)
    return ["inspect", str(folder / "external/model.onnx")]


def _onnx(change: Callable[[onnx.ModelProto], None], *words: str) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        model = classifier("f")
        change(model)
        (folder / "rows.onnx").write_bytes(model.SerializeToString())
        verb = words or ("inspect",)
        return [verb[0], str(folder / "rows.onnx"), *(w.replace("FOLDER", str(folder)) for w in verb[1:])]

    return make


_EVALUATE = ("evaluate", "--data", "FOLDER/table.csv")


def _huge_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].dims[:] = [2**40, 2**20]


def _negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].dims[:] = [-1, -10]


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def _dangling(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def _nested(model: onnx.ModelProto) -> None:
    graph = model.graph
    for depth in range(40):  # protobuf stops at 100 messages, two a level
        body = helper.make_graph([], "g", [], [helper.make_tensor_value_info("v", TensorProto.FLOAT, [1])])
        body.node.extend(graph.node)
        node = helper.make_node("If", ["axes"], [f"o{depth}"])
        for name in ("then_branch", "else_branch"):
            node.attribute.append(helper.make_attribute(name, body))
        if depth > 9:  # twice the size each level
            break
        del graph.node[:]
        graph.node.append(node)


def _recursion(model: onnx.ModelProto) -> None:
    body = [helper.make_node("f", ["a"], ["b"], domain="own")]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], body, imports))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[0].CopyFrom(helper.make_node("f", ["x"], ["m"], domain="own"))


def _metadata(**values: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.metadata_props.add(key="onnxaccel", value=json.dumps(values))

    return change


def _deep_metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="onnxaccel", value='{"heads":' + "[" * 200_000)


def _ancient(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 1


def _future(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.hostile"


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "m"


def _no_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].data_type = 77


_LIBRARY = {"provider": "tensorrt", "options": {"trt_extra_plugin_lib_paths": "/tmp/evil.so"}}

for _what, _change, _verb in (
    ("a weight of 4 EiB", _huge_weight, ()),
    ("a weight of negative size", _negative, ()),
    ("a weight of no type", _no_type, ()),
    ("nodes in a circle", _cycle, ()),
    ("a value from nowhere", _dangling, ()),
    ("branches in branches, doubling", _nested, _EVALUATE),
    ("a function that calls itself", _recursion, ()),
    ("opset 1", _ancient, _EVALUATE),
    ("opset 999", _future, _EVALUATE),
    ("an operator of an unknown library", _foreign, _EVALUATE),
    ("a value written twice", _twice, _EVALUATE),
    ("metadata nested 200,000 deep", _deep_metadata, ()),
    ("metadata that loads a library", _metadata(session=_LIBRARY), _EVALUATE),
    (
        "metadata with an address in memory",
        _metadata(session={"provider": "cuda", "options": {"user_compute_stream": "4096"}}),
        _EVALUATE,
    ),
    ("metadata of an unknown provider", _metadata(session={"provider": "../x"}), _EVALUATE),
    ("metadata: a billion threads", _metadata(session={"threads": 10**9}), _EVALUATE),
    ("metadata: a text for the mean", _metadata(preprocessing={"mean": "abc"}), _EVALUATE),
    ("metadata: images of 10^18 pixels", _metadata(preprocessing={"resize": [10**9, 10**9]}), _EVALUATE),
    ("metadata: a negative crop", _metadata(preprocessing={"crop": -5}), _EVALUATE),
    (
        "metadata: a mean image of 10^30",
        _metadata(preprocessing={"mean_image": {"shape": [10**30], "float32": ""}}),
        _EVALUATE,
    ),
    (
        "metadata: heads that are none",
        _metadata(heads=[{"type": 3}], trainable=["w"]),
        ("train", "--data", "FOLDER/table.csv", "--epochs", "1", "-o", "FOLDER/t.onnx"),
    ),
    (
        "metadata: a solver that is none",
        _metadata(solver={"base_lr": "x", "max_iter": []}),
        ("train", "--data", "FOLDER/table.csv", "--solver", "recorded", "-o", "FOLDER/t.onnx"),
    ),
):
    hostile("ONNX", _what)(_onnx(_change, *_verb))


@hostile("ONNX", "a graph whose name is no text")
def _(folder: Path, judge: Judge) -> Arguments:
    path = folder / "rows.onnx"
    path.write_bytes(path.read_bytes().replace(b"classifier", b"cla\x93sifier"))
    return ["gradient", str(path), "-o", str(judge.out / "gradient.onnx")]


@hostile("ONNX", "a pipe")
def _(folder: Path, judge: Judge) -> Arguments:
    os.mkfifo(folder / "pipe.onnx")
    return ["inspect", str(folder / "pipe.onnx")]


@hostile("ONNX", "a device")
def _(folder: Path, judge: Judge) -> Arguments:
    return ["inspect", "/dev/zero"]


# -- data ---------------------------------------------------------------

for _name, _format, _model in (
    ("table.csv", "csv", "rows.onnx"),
    ("data.npz", "npz", "images.onnx"),
    ("data.h5", "HDF5 data", "images.onnx"),
    ("list.txt", "image list", "images.onnx"),
):

    def _pipe(folder: Path, judge: Judge, name: str = _name, model: str = _model) -> Arguments:
        (folder / name).unlink()
        os.mkfifo(folder / name)
        return data(folder, name, model)

    hostile(_format, "a pipe")(_pipe)


def _in_folder(name: str, link: bool) -> Make:
    """A file of a folder is a pipe, or a link to the user's own file."""

    def make(folder: Path, judge: Judge) -> Arguments:
        target = folder / name
        target.unlink()
        os.symlink(judge.victim, target) if link else os.mkfifo(target)
        return data(folder, name.split("/")[0])

    return make


for _format, _name in {
    "IDX": "idx/t10k-images-idx3-ubyte",
    "IDX, gzipped": "idx-gz/t10k-labels-idx1-ubyte.gz",
    "images": "photos/cat/0.png",
    "CIFAR-10 binary": "cifar/test_batch.bin",
    "LMDB of Datum": "lmdb/data.mdb",
    "LevelDB of Datum": "leveldb/CURRENT",
}.items():
    hostile(_format, "a link that leaves the folder")(_in_folder(_name, link=True))
    hostile(_format, "a pipe in the folder")(_in_folder(_name, link=False))


@hostile("LevelDB of Datum", "a log that is a link to a file of the user's")
def _(folder: Path, judge: Judge) -> Arguments:
    (folder / "leveldb/LOG").unlink()
    os.symlink(judge.victim, folder / "leveldb/LOG")
    return data(folder, "leveldb")


@hostile("LevelDB of Datum", "a manifest outside the folder")
def _(folder: Path, judge: Judge) -> Arguments:
    (folder / "leveldb/CURRENT").write_text("../../../victim\n")
    return data(folder, "leveldb")


def _idx(sizes: tuple[int, ...], zipped: bool, content: bytes = b"") -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        raw = bytes([0, 0, 8, 3]) + np.array(sizes, ">u4").tobytes() + content
        name = "idx-gz/t10k-images-idx3-ubyte.gz" if zipped else "idx/t10k-images-idx3-ubyte"
        (folder / name).write_bytes(gzip.compress(raw) if zipped else raw)
        return data(folder, name.split("/")[0])

    return make


hostile("IDX", "sizes of 2^96")(_idx((2**32 - 1,) * 3, zipped=False))
hostile("IDX", "no pixels in 2^32 images")(_idx((2**32 - 1, 0, 0), zipped=False))
hostile("IDX", "no images of 2^64 pixels")(_idx((0, 2**32 - 1, 2**32 - 1), zipped=False))
hostile("IDX, gzipped", "sizes of 2^96")(_idx((2**32 - 1,) * 3, zipped=True))
hostile("IDX, gzipped", "20 MB of zeros in 20 kB, declared as 100 TB")(
    _idx((1_000_000, 10_000, 10_000), True, bytes(20 * 2**20))
)


def _npy(shape: str, dtype: str = "'<f4'") -> bytes:
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def _npz(x: bytes) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        with zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", x)
            archive.writestr("y.npy", _npy("(3,)", "'<i8'") + bytes(24))
        return data(folder, "data.npz")

    return make


class Bomb:
    """Unpickled, it creates the canary."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@hostile("npz", "an array of objects that run code")
def _(folder: Path, judge: Judge) -> Arguments:
    np.savez(folder / "data.npz", x=np.array([Bomb(judge.canary)], object), y=np.zeros(1), allow_pickle=True)
    return data(folder, "data.npz")


hostile("npz", "a shape of 2^60")(_npz(_npy("(1152921504606846976,)")))
hostile("npz", "a negative shape")(_npz(_npy("(-5,)")))
hostile("npz", "a shape nested 3,000 deep")(_npz(_npy("(" * 3000 + ")" * 3000)))
hostile("npz", "a header that is code")(_npz(_npy("__import__('os').mkdir('canary')")))
hostile("npz", "a zip bomb")(_npz(_npy("(1000000000,)") + bytes(40 * 2**20)))


@hostile("npy", "objects that run code")
def _(folder: Path, judge: Judge) -> Arguments:
    np.save(folder / "input.npy", np.array([Bomb(judge.canary)], object), allow_pickle=True)
    return ["predict", str(folder / "rows.onnx"), str(folder / "input.npy")]


@hostile("npy", "a header that ends early")
def _(folder: Path, judge: Judge) -> Arguments:
    (folder / "input.npy").write_bytes(_npy("(3, 4").replace(b"}", b" "))
    return ["predict", str(folder / "rows.onnx"), str(folder / "input.npy")]


@hostile("npy", "a shape of 2^60")
def _(folder: Path, judge: Judge) -> Arguments:
    (folder / "input.npy").write_bytes(_npy("(1152921504606846976, 4)"))
    return ["predict", str(folder / "rows.onnx"), str(folder / "input.npy")]


def _csv(text: str) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        (folder / "table.csv").write_text(text)
        return data(folder, "table.csv", "rows.onnx")

    return make


hostile("csv", "a field of 10 MB")(_csv("a,label\n" + "1" * 10**7 + ",1\n"))
hostile("csv", "a quote that never ends")(_csv('a,label\n"' + "1,1\n" * 10**5))
hostile("csv", "a label of 10^300")(_csv("a,label\n1,1e300\n2,1\n"))
hostile("csv", "null bytes")(_csv("a,label\n1,\0\n" + "\0" * 100))


@hostile("parquet", "270 million rows in some kilobytes")
def _(folder: Path, judge: Judge) -> Arguments:
    import pyarrow as pa
    from pyarrow import parquet

    column = pa.chunked_array([pa.array(np.zeros(2**22, np.int8))] * 65)
    table = pa.table({name: column for name in ("a", "b", "label")})
    parquet.write_table(table, folder / "table.parquet", row_group_size=2**22, compression="zstd")
    return data(folder, "table.parquet", "rows.onnx")


def _h5(change: Callable[[Any, Judge], None], name: str = "data.h5") -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        import h5py

        with h5py.File(folder / name, "a") as file:
            change(file, judge)
        if name == "data.h5":
            return data(folder, name)
        if name.endswith(".caffemodel.h5"):
            return converted(judge, folder / "net.prototxt", folder / name, "--no-verify")
        return converted(judge, folder / name)

    return make


def _replace(file: Any, path: str) -> tuple[Any, str, Any]:
    group, _, name = path.rpartition("/")
    old = file[path]
    found = (file[group or "/"], name, old.shape)
    del file[path]
    return found


def _external_link(path: str) -> Callable[[Any, Judge], None]:
    def change(file: Any, judge: Judge) -> None:
        import h5py

        group, name, _ = _replace(file, path)
        with h5py.File(judge.folder / "other.h5", "w") as other:
            other["secret"] = np.zeros((12, 5, 5), np.uint8)
        group[name] = h5py.ExternalLink(str(judge.folder / "other.h5"), "/secret")

    return change


def _external_bytes(path: str) -> Callable[[Any, Judge], None]:
    def change(file: Any, judge: Judge) -> None:
        group, name, shape = _replace(file, path)
        size = int(np.prod(shape)) * 4
        judge.victim.write_text(judge.VICTIM)
        group.create_dataset(name, shape, np.float32, external=[(os.fspath(judge.victim), 0, size)])

    return change


def _virtual(path: str) -> Callable[[Any, Judge], None]:
    def change(file: Any, judge: Judge) -> None:
        import h5py

        group, name, shape = _replace(file, path)
        layout = h5py.VirtualLayout(shape, np.float32)
        layout[...] = h5py.VirtualSource(str(judge.folder / "other.h5"), "secret", shape)
        group.create_virtual_dataset(name, layout)

    return change


def _sparse(path: str) -> Callable[[Any, Judge], None]:
    def change(file: Any, judge: Judge) -> None:
        group, name, _ = _replace(file, path)
        group.create_dataset(name, (10**9, 1000), np.float32, chunks=(1, 1000))

    return change


def _loop(file: Any, judge: Judge) -> None:
    file.create_group("a")["again"] = file["/"]


def _soft(path: str) -> Callable[[Any, Judge], None]:
    def change(file: Any, judge: Judge) -> None:
        import h5py

        group, name, _ = _replace(file, path)
        group[name] = h5py.SoftLink(f"/{path}")

    return change


_KERAS_KERNEL = "model_weights/dense/sequential/dense/kernel"

for _format, _name, _path, _framework in (
    ("HDF5 data", "data.h5", "x", ""),
    ("caffemodel, HDF5", "net.caffemodel.h5", "data/conv/0", ""),
    ("Keras HDF5", "network.h5", _KERAS_KERNEL, "tensorflow"),
):
    for _what, _h5_change in {
        "a link to another file": _external_link(_path),
        "data that lie in a file of the user's": _external_bytes(_path),
        "data put together from another file": _virtual(_path),
        "4 TB declared, none held": _sparse(_path),
        "a group that holds itself": _loop,
        "a link to itself": _soft(_path),
    }.items():
        hostile(_format, _what, _framework)(_h5(_h5_change, _name))


@hostile("images", "PostScript by the name of a photo")
def _(folder: Path, judge: Judge) -> Arguments:
    (folder / "photos/cat/0.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
        + f"({judge.canary}) (w) file closefile showpage\n".encode()
    )
    return data(folder, "photos")


def _image(name: str, content: Callable[[], bytes]) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        (folder / name).write_bytes(content())
        return data(folder, name.split("/")[0])

    return make


def _huge_png() -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))


hostile("images", "a PNG of 10^10 pixels")(_image("photos/cat/0.png", _huge_png))
hostile("images", "an image that is a program")(
    _image("photos/cat/0.png", lambda: b"#!/bin/sh\ntouch canary\n")
)


def _list(text: str, name: str = "list.txt", part: str = "") -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        shutil.copy(folder / "photos/cat/0.png", judge.folder / "outside.png")
        shutil.copy(folder / "data.h5", judge.folder / "outside.h5")
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / name).write_text(text.format(outside=judge.folder / "outside"))
        return [*data(folder, "deep/" + name + part)]

    return make


hostile("image list", "a name above the list's folder")(_list("../../outside.png 1\n"))
hostile("image list", "a name of 5,000 letters")(_list("a" * 5000 + ".png 1\n"))
hostile("image list", "a label of 5,000 digits")(_list("a.png " + "1" * 5000 + "\n"))
hostile("image list", "an absolute name")(_list("/etc/passwd 1\n"))
hostile("image list", "a device")(_list("/dev/zero 1\n"))
hostile("image list", "a name above the root")(_list("../../outside.png 1\n", part="#root=."))
hostile("HDF5 list", "a name above the list's folder")(_list("../../../../../../etc/hosts.h5\n", "files.txt"))


def _datum(**fields: Any) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        from onnxaccel.data.readers.datum import datum_type
        from tests.data.databases import write_lmdb

        shutil.rmtree(folder / "lmdb")
        write_lmdb(folder / "lmdb", [datum_type()(**fields).SerializeToString()])
        return data(folder, "lmdb")

    return make


hostile("LMDB of Datum", "an image of 2^62 pixels")(_datum(channels=2**20, height=2**21, width=2**21))
hostile("LMDB of Datum", "an image of negative size")(_datum(channels=-1, height=-1, width=3, data=b"abc"))
hostile("LMDB of Datum", "a PNG of 10^10 pixels")(_datum(encoded=True, data=_huge_png()))


# -- checkpoints and comparisons ---------------------------------------------------------------


def _checkpoint(change: Callable[[Path, Judge], None]) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        state = folder / "state"
        words = ["train", str(folder / "rows.onnx"), "--data", str(folder / "table.csv"), "--epochs", "1"]
        words += ["--checkpoint", str(state), "-o", str(judge.out / "t.onnx")]
        verdict = judge(words)
        assert verdict.outcome == "accepted", verdict
        change(state, judge)
        return [*words[:5], "2", *words[6:], "--resume"]

    return make


def _header(text: str) -> Callable[[Path, Judge], None]:
    def change(state: Path, judge: Judge) -> None:
        path = next(state.glob("step-*"))
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        progress = json.loads(header["__metadata__"]["onnxaccel"])
        header["__metadata__"]["onnxaccel"] = (
            text if text[:1] == "[" else json.dumps(progress | json.loads(text))
        )
        new = json.dumps(header).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])

    return change


def _locked(state: Path, judge: Judge) -> None:
    (state / "lock").unlink(missing_ok=True)
    os.symlink(judge.victim, state / "lock")


def _linked(state: Path, judge: Judge) -> None:
    path = next(state.glob("step-*"))
    shutil.move(path, judge.folder / "stolen.safetensors")
    os.symlink(judge.folder / "stolen.safetensors", path)


def _cut_checkpoint(state: Path, judge: Judge) -> None:
    path = next(state.glob("step-*"))
    path.write_bytes(path.read_bytes()[:-5])


for _what, _spoil in {
    "a lock that is a link to a file of the user's": _locked,
    "a checkpoint that is a link": _linked,
    "cut off": _cut_checkpoint,
    "JSON nested 200,000 deep": _header("[" * 200_000),
    "a text for the epoch": _header('{"epoch": "x"}'),
    "a history that is none": _header('{"history": [3]}'),
    "10^30 steps": _header('{"steps": 1000000000000000000000000000000}'),
    "a negative epoch": _header('{"epoch": -7, "batch": -3}'),
}.items():
    hostile("checkpoint", _what)(_checkpoint(_spoil))


# -- Caffe ---------------------------------------------------------------


def _net(text: Callable[[Judge], str], *words: str) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        (folder / "net.prototxt").write_text(text(judge))
        return converted(judge, folder / "net.prototxt", folder / "net.caffemodel", *words)

    return make


def _data_layer(judge: Judge, source: str, mean: str = "") -> str:
    transform = f'transform_param {{ mean_file: "{mean}" }}' if mean else ""
    layer = (
        f'layer {{ name: "data" type: "Data" top: "data" data_param {{ source: "{source}" }} {transform} }}'
    )
    return "\n".join([layer, *NET.splitlines()[2:]])


def _extra(layer: str) -> Callable[[Judge], str]:
    return lambda judge: NET + layer.replace("CANARY", str(judge.canary)) + "\n"


_NETS: dict[str, Callable[[Judge], str]] = {
    "messages nested 100,000 deep": lambda j: "layer { " * 100_000,
    "a name that commands the terminal": lambda j: NET.replace('"ReLU"', '"\\033[2J\\nerror: fine"'),
    "a string that never ends": lambda j: 'name: "' + "a" * 10**6,
    "a kernel of 2^31": lambda j: NET.replace("kernel_size: 3", "kernel_size: 2147483647"),
    "2^31 outputs": lambda j: NET.replace("num_output: 4", "num_output: 4294967295"),
    "an input of 2^60": lambda j: NET.replace("dim: 8", "dim: 1073741824"),
    "a negative input": lambda j: NET.replace("dim: 8", "dim: -8"),
    "a stride of 0": lambda j: NET.replace("stride: 2", "stride: 0"),
    "layers in a circle": lambda j: NET.replace('bottom: "data" top: "conv"', 'bottom: "fc" top: "conv"'),
    "a source that is a device": lambda j: _data_layer(j, "/dev/zero"),
    "a source among the user's files": lambda j: _data_layer(j, str(j.victim)),
    "a mean file that is a device": lambda j: _data_layer(j, "", "/dev/zero"),
    "a mean file among the user's files": lambda j: _data_layer(j, "", "../../victim"),
    "a layer that is a Python module": _extra(
        'layer { name: "p" type: "Python" bottom: "prob" top: "p" '
        'python_param { module: "os" layer: "mkdir" param_str: "CANARY" } }'
    ),
    "a layer that writes a file": _extra(
        'layer { name: "o" type: "HDF5Output" bottom: "prob" bottom: "fc" '
        'hdf5_output_param { file_name: "CANARY" } }'
    ),
    "a prior box of 10^9 sizes": _extra(
        'layer { name: "b" type: "PriorBox" bottom: "conv" bottom: "data" top: "b" prior_box_param '
        "{ min_size: 1e-30 max_size: 1e30 step: 1e-30 aspect_ratio: 0 } }"
    ),
    "a reshape of 2^62": _extra(
        'layer { name: "r" type: "Reshape" bottom: "prob" top: "r" reshape_param { shape { dim: -1 '
        "dim: 2147483647 dim: 2147483647 } } }"
    ),
    "a repetition of 2^31": _extra(
        'layer { name: "t" type: "Tile" bottom: "prob" top: "t" tile_param { tiles: 2147483647 } }'
    ),
}
for _what, _text in _NETS.items():
    hostile("prototxt", _what)(_net(_text))


def _caffemodel(change: Callable[[Any], None]) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        from onnxaccel.converters.caffe.schema import message

        net = message("NetParameter").FromString((folder / "net.caffemodel").read_bytes())
        change(net.layer[0].blobs[0])
        (folder / "net.caffemodel").write_bytes(net.SerializeToString())
        return converted(judge, folder / "net.prototxt", folder / "net.caffemodel")

    return make


hostile("caffemodel", "a blob of 2^62")(_caffemodel(lambda blob: blob.shape.dim.__setitem__(0, 2**62)))
hostile("caffemodel", "a blob of negative size")(_caffemodel(lambda blob: blob.shape.dim.__setitem__(0, -4)))
hostile("caffemodel", "a blob without data")(_caffemodel(lambda blob: blob.ClearField("data")))
hostile("caffemodel", "a blob of not-a-numbers")(_caffemodel(lambda blob: blob.data.__setitem__(0, np.nan)))


@hostile("caffemodel", "a pipe")
def _(folder: Path, judge: Judge) -> Arguments:
    (folder / "net.caffemodel").unlink()
    os.mkfifo(folder / "net.caffemodel")
    return converted(judge, folder / "net.prototxt", folder / "net.caffemodel")


@hostile("solver prototxt", "10^18 iterations of a policy that is none")
def _(folder: Path, judge: Judge) -> Arguments:
    (folder / "solver.prototxt").write_text('lr_policy: "evil" max_iter: 2147483647 base_lr: nan type: "x"')
    solver = str(folder / "solver.prototxt")
    return converted(judge, folder / "net.prototxt", "--solver", solver, "--no-verify")


@hostile("mean file", "damaged")
def _(folder: Path, judge: Judge) -> Arguments:
    (folder / "net.prototxt").write_text(_data_layer(judge, "", "mean.binaryproto"))
    (folder / "mean.binaryproto").write_bytes((folder / "mean.binaryproto").read_bytes()[:100])
    files = folder / "net.prototxt", folder / "net.caffemodel"
    return converted(judge, *files, "--shape", "data=1,3,8,8")
