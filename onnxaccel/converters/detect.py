"""Which format a file is of, by its content; the suffix is never asked."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from onnxaccel.bounds import BAD_ZIP
from onnxaccel.errors import UnknownFormat

_HEAD = 4096


@dataclass(frozen=True)
class Detected:
    """A model on disk whose format is known.

    Attributes:
        framework: "tensorflow", "pytorch" or "caffe", a folder of `onnxaccel.converters`.
        format: The format's name.
        paths: The files, the one that describes the graph first.
    """

    framework: str
    format: str
    paths: tuple[Path, ...]


FRAMEWORK = {
    "frozen-graph": "tensorflow",
    "saved-model": "tensorflow",
    "checkpoint": "tensorflow",
    "keras": "tensorflow",
    "keras-h5": "tensorflow",
    "tflite": "tensorflow",
    "torchscript": "pytorch",
    "exported-program": "pytorch",
    "state-dict": "pytorch",
    "safetensors": "pytorch",
    "prototxt": "caffe",
    "caffemodel": "caffe",
}
"""Framework by format."""


def detect(paths: list[Path]) -> Detected:
    """Tell the format of a model from the content of its files.

    Args:
        paths: One file or folder; for Caffe a prototxt and, in any order, its weights.

    Raises:
        UnknownFormat: A path does not exist, or is of no format that onnxaccel reads.
    """
    formats = {path: format_of(path) for path in paths}
    if "prototxt" in formats.values():
        ordered = sorted(paths, key=lambda p: formats[p] != "prototxt")
        return Detected("caffe", "caffemodel", tuple(ordered))
    if "caffemodel" in formats.values():
        raise UnknownFormat(f"{paths[0]}: Caffe weights without a network; give its prototxt as well")
    if len(paths) > 1:
        raise UnknownFormat(
            f"{paths[1]}: one path is enough for {formats[paths[0]]}; convert one model at a time"
        )
    found = formats[paths[0]]
    return Detected(FRAMEWORK[found], found, (paths[0],))


def format_of(path: Path) -> str:
    """The format's name, a key of `FRAMEWORK`."""
    if path.is_dir():
        if (path / "saved_model.pb").is_file() or (path / "saved_model.pbtxt").is_file():
            return "saved-model"
        if any(path.glob("*.meta")):
            return "checkpoint"
        raise UnknownFormat(
            f"{path}: a folder without saved_model.pb; give a SavedModel folder or a model file"
        )
    if _is_checkpoint(path):
        return "checkpoint"
    if not path.is_file():
        raise UnknownFormat(f"{path}: no such file or folder")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise UnknownFormat(f"{path}: the file is empty")
    if head.startswith(b"PK\x03\x04"):
        return _format_of_zip(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "keras-h5"
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "state-dict"
    if _is_safetensors(head):
        return "safetensors"
    if is_text(head):
        return _format_of_text(path, head)
    return _format_of_proto(path, head)


def _is_checkpoint(path: Path) -> bool:
    """Whether a path is a file, or the common beginning, of a TF1 checkpoint: X.meta, X.index, X.data-..."""
    prefixes = [path, path.with_suffix(""), path.with_name(path.name.split(".data-")[0])]
    return any(Path(f"{p}.meta").is_file() and Path(f"{p}.index").is_file() for p in prefixes)


def _format_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except BAD_ZIP as error:
        raise UnknownFormat(
            f"{path}: a damaged or truncated zip archive ({error}); copy the file again"
        ) from None
    tails = {name.split("/", 1)[-1] for name in names}
    if {"config.json", "model.weights.h5"} <= set(names):
        return "keras"
    if (
        any(tail.startswith("models/") and tail.endswith(".json") for tail in tails)
        or "archive_format" in tails
    ):
        return "exported-program"
    if "constants.pkl" in tails and any(tail.startswith("code/") for tail in tails):
        return "torchscript"
    if "data.pkl" in tails:
        return "state-dict"
    raise UnknownFormat(
        f"{path}: a zip archive, but no Keras or PyTorch model; it holds {', '.join(names[:4])}"
    )


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100 * 2**20


def is_text(head: bytes) -> bool:
    """Whether a file that opens like this is protobuf text: braces, and no byte that text does not have."""
    return b"{" in head and head.isascii() and min(head) >= 9


def _format_of_text(path: Path, head: bytes) -> str:
    text = (
        path.read_text(errors="replace")
        if path.stat().st_size < 64 * 2**20
        else head.decode(errors="replace")
    )
    words = {
        word
        for word in ("layer", "layers", "input", "node", "library")
        if f"{word} {{" in text or f"{word}{{" in text
    }
    if "node" in words or "library" in words:
        return "frozen-graph"
    if words & {"layer", "layers"} or "input_dim" in text or "solver" in text or "base_lr" in text:
        return "prototxt"
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        raise UnknownFormat(f"{path}: text, but neither a Caffe prototxt nor a TensorFlow GraphDef") from None
    raise UnknownFormat(f"{path}: a JSON file, not a model with weights; give the model file itself")


def _format_of_proto(path: Path, head: bytes) -> str:
    """Tell GraphDef, caffemodel and ONNX apart by the fields that their messages open with."""
    from onnxaccel.converters.wire import first_fields

    fields = first_fields(head)
    if not fields:
        raise UnknownFormat(f"{path}: of no model format that onnxaccel reads, or damaged")
    number, wire, payload = fields[0]
    if number == 1 and wire == 0:
        raise UnknownFormat(f"{path}: already an ONNX model; use it as it is")
    if number == 1 and wire == 2 and payload[:1] == b"\n" and _node_def(payload):
        return "frozen-graph"
    if (number, wire) in {(1, 2), (2, 2), (100, 2), (3, 2), (4, 0)}:
        return "caffemodel"
    raise UnknownFormat(f"{path}: of no model format that onnxaccel reads, or damaged")


def _node_def(payload: bytes) -> bool:
    """Whether a message opens like TensorFlow's NodeDef: name = 1, op = 2, both strings."""
    from onnxaccel.converters.wire import first_fields

    return [(number, wire) for number, wire, _ in first_fields(payload)[:2]] == [(1, 2), (2, 2)]
