"""Which command line reads a file of which format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Arguments = list[str]


def convert(*options: str) -> Callable[[Path, Path], Arguments]:
    return lambda file, out: ["convert", str(file), "-o", str(out / "out.onnx"), *options]


def convert_caffe(*options: str) -> Callable[[Path, Path], Arguments]:
    """A prototxt, or weights for the one beside them."""

    def arguments(file: Path, out: Path) -> Arguments:
        net, weights = file.parent / "net.prototxt", file.parent / "net.caffemodel"
        files = [file, weights] if file.suffix == ".prototxt" else [net, file]
        return ["convert", *map(str, files), "-o", str(out / "out.onnx"), *options]

    return arguments


def fresh(net: str) -> Callable[[Path, Path], Arguments]:
    """A network, or its solver, with weights that are drawn."""

    def arguments(file: Path, out: Path) -> Arguments:
        files = [str(file.parent / net), "--solver", str(file.parent / "solver.prototxt")]
        return ["convert", *files, "-o", str(out / "out.onnx"), "--no-verify"]

    return arguments


def evaluate(model: str) -> Callable[[Path, Path], Arguments]:
    return lambda file, out: ["evaluate", str(file.parent / model), "--data", str(file), "--batch-size", "3"]


def verb(name: str, *options: str) -> Callable[[Path, Path], Arguments]:
    return lambda file, out: [name, str(file), *options]


def predict(file: Path, out: Path) -> Arguments:
    return ["predict", str(file.parent / "rows.onnx"), str(file)]


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: Its name, a row of the table.
        seed: The valid file or folder among the seeds.
        arguments: The command line that reads a file in its place.
        damage: Which of a folder's files are damaged, all when empty.
        framework: What must be imported to read it, "" for nothing slow.
    """

    name: str
    seed: str
    arguments: Callable[[Path, Path], Arguments]
    damage: tuple[str, ...] = ()
    framework: str = ""


_FACTORY = ("--factory", "hostile_nets:net", "--shape", "input=2,4")

FORMATS = (
    Format("ONNX", "rows.onnx", verb("inspect")),
    Format(
        "ONNX, run", "rows.onnx", lambda file, out: ["predict", str(file), str(file.parent / "input.npy")]
    ),
    Format(
        "ONNX, external data", "external", lambda f, out: ["inspect", str(f / "model.onnx")], ("model.onnx",)
    ),
    Format("IDX", "idx", evaluate("images.onnx")),
    Format("IDX, gzipped", "idx-gz", evaluate("images.onnx")),
    Format("npz", "data.npz", evaluate("images.onnx")),
    Format("npy", "input.npy", predict),
    Format("csv", "table.csv", evaluate("rows.onnx")),
    Format("parquet", "table.parquet", evaluate("rows.onnx")),
    Format("HDF5 data", "data.h5", evaluate("images.onnx")),
    Format("images", "photos", evaluate("images.onnx")),
    Format("image list", "list.txt", evaluate("images.onnx")),
    Format("HDF5 list", "files.txt", evaluate("images.onnx")),
    Format("CIFAR-10 binary", "cifar", evaluate("images.onnx")),
    Format("LMDB of Datum", "lmdb", evaluate("images.onnx"), ("data.mdb",)),
    Format("LevelDB of Datum", "leveldb", evaluate("images.onnx")),
    Format("prototxt", "net.prototxt", convert_caffe()),
    Format("prototxt, old", "old.prototxt", fresh("old.prototxt")),
    Format("solver prototxt", "solver.prototxt", fresh("net.prototxt")),
    Format("caffemodel", "net.caffemodel", convert_caffe()),
    Format("caffemodel, HDF5", "net.caffemodel.h5", convert_caffe("--no-verify")),
    Format("state dict (.pth)", "state.pth", convert(*_FACTORY), framework="torch"),
    Format("state dict, legacy", "legacy.pth", convert(*_FACTORY), framework="torch"),
    Format("safetensors", "state.safetensors", convert(*_FACTORY), framework="torch"),
    Format("TorchScript", "script.pt", convert("--shape", "input=2,4"), framework="torch"),
    Format("exported program (.pt2)", "program.pt2", convert(), framework="torch"),
    Format("frozen graph", "frozen.pb", convert(), framework="tensorflow"),
    Format("frozen graph, text", "frozen.pbtxt", convert(), framework="tensorflow"),
    Format("SavedModel (TF1)", "saved", convert(), framework="tensorflow"),
    Format("SavedModel (TF2)", "saved2", convert(), framework="tensorflow"),
    Format("TF1 checkpoint", "ckpt", convert(), ("model.ckpt.meta", "model.ckpt.index"), "tensorflow"),
    Format("Keras archive", "network.keras", convert(), framework="tensorflow"),
    Format("Keras HDF5", "network.h5", convert(), framework="tensorflow"),
    Format("TensorFlow Lite", "network.tflite", convert(), framework="tensorflow"),
)


def place(seeds: Path, folder: Path, name: str) -> Path:
    """Fresh copies of all seeds in ``folder``, and there the one called ``name``."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds, folder)
    return folder / name
