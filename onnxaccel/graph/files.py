"""The files that a model is made of: listed, encrypted and decrypted, signed and verified."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError

from onnxaccel import bounds
from onnxaccel.errors import ModelError, OutputError, ProtectionError
from onnxaccel.files import atomic_folder, scratch_folder
from onnxaccel.graph.tensor_data import check_tensors, tensors
from onnxaccel.protect import signatures
from onnxaccel.protect.container import CHUNK, Entry, Opened, is_sealed, seal
from onnxaccel.protect.keys import Key

PathLike = str | os.PathLike[str]

OPAQUE = (".safetensors",)
"""Suffixes of files that are encrypted as they are: checkpoints. All others must be models."""


def files_of(path: PathLike) -> list[Path]:
    """The files that a model is made of: itself, then its external data.

    Args:
        path: An ONNX model; one that is encrypted, and a checkpoint, is one file.

    Raises:
        ModelError: The file is missing or no model, or its external data is missing or outside its folder.
    """
    path = Path(path)
    bounds.regular(path, ModelError)
    if path.suffix in OPAQUE or is_sealed(path):
        return [path]
    found = (location for tensor in tensors(read_proto(path)) if (location := location_of(tensor)))
    return [path, *(path.parent / location for location in dict.fromkeys(found))]


def read_proto(path: Path) -> onnx.ModelProto:
    """The message of an ONNX file, its external data looked for and not read.

    Raises:
        ModelError: The file is missing or no model, or its external data is missing or outside its folder.
    """
    if not path.exists():
        raise ModelError(f"{path}: no such file; give the path of an .onnx model")
    proto = _parsed(bounds.read(path, ModelError), path)
    check_tensors(proto, path)
    return proto


def proto_in_memory(files: dict[str, bytearray], path: Path) -> onnx.ModelProto:
    """The message of a model whose files are in memory, its external data taken into it.

    Args:
        files: Contents by name, the model's own first; they are taken out as they are used.
        path: Where they come from, for messages.

    Raises:
        ModelError: It is no model, or refers to data that is not there.
    """
    proto = _parsed(bytes(files.pop(next(iter(files)))), path)
    for tensor in tensors(proto):
        if not location_of(tensor):
            continue
        about = onnx.external_data_helper.ExternalDataInfo(tensor)
        content = memoryview(files.get(about.location, bytearray()))
        start = about.offset or 0
        end = len(content) if about.length is None else start + about.length
        if not 0 <= start <= end <= len(content) or about.location not in files:
            raise ModelError(f"{path}: the data of tensor {tensor.name!r} is not in it; encrypt it again")
        tensor.raw_data = bytes(content[start:end])
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.ClearField("external_data")
    check_tensors(proto, path)
    return proto


def location_of(tensor: onnx.TensorProto) -> str:
    """Where a tensor's external data lies, relative to its model's folder; "" where it has none."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return ""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _parsed(data: bytes, path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"{path}: not a readable ONNX model ({error})") from None
    if not proto.graph.node and not proto.graph.output:  # protobuf reads many a file as an empty message
        raise ModelError(f"{path}: not an ONNX model (no graph in it)")
    return proto


def encrypt(path: PathLike, output: PathLike, key: Key | None = None) -> Path:
    """Encrypt a model with its external data, or a checkpoint, into one file.

    Memory does not grow with external data: it is read and written in pieces of 1 MiB.

    Args:
        path: The model; it stays as it is.
        output: Where to write.
        key: The key; None: the one that the environment names, see `onnxaccel.protect.keys`.

    Raises:
        MissingKey: There is no key.
        ProtectionError: The file is encrypted already.
        ModelError: It is no readable model.
        OutputError: The output cannot be written.
    """
    path, output = Path(path), Path(output)
    files = files_of(path)
    if is_sealed(path):
        raise ProtectionError(f"{path}: encrypted already")
    key = key or Key.given()
    with contextlib.ExitStack() as stack:
        entries = []
        for file in files:
            try:
                opened = stack.enter_context(file.open("rb"))
            except OSError as error:
                raise ModelError(f"{file}: cannot be read ({error.strerror})") from None
            name = file.relative_to(path.parent).as_posix()
            size = os.fstat(opened.fileno()).st_size
            entries.append(Entry(name, size, iter(lambda f=opened: f.read(CHUNK), b"")))  # type: ignore[misc]
        write_sealed(output, key, entries)
    return output


def write_sealed(output: Path, key: Key, entries: list[Entry]) -> None:
    """Write a container that appears at its name only when it is whole.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        with atomic_folder(output.parent) as scratch, (scratch / output.name).open("wb") as file:
            seal(file, key, entries)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror or error})") from None


def decrypt(path: PathLike, output: PathLike, key: Key | None = None) -> list[Path]:
    """Decrypt what `encrypt` or a training wrote; memory does not grow with its size.

    Args:
        path: The encrypted file.
        output: Where the model is written; its external data goes beside it, under the names that it had.
        key: The key; None: the one that the environment names, see `onnxaccel.protect.keys`.

    Returns:
        The files that were written, the model first.

    Raises:
        ProtectionError: There is no key or a wrong one, or the file was altered or is not encrypted.
        OutputError: A file cannot be written, or there is external data of that name already.
    """
    output = Path(output)
    with Opened(path, key) as container:
        names = [name for name, _ in container.entries]
        targets = [output, *(output.parent / name for name in names[1:])]
        for target in targets[1:]:
            if target.exists() or target == output:
                raise OutputError(f"{target}: there is a file of that name; choose another folder with -o")
        try:
            with scratch_folder(output.parent) as scratch:
                parts = [scratch / str(number) for number in range(len(targets))]
                for part, (_, size) in zip(parts, container.entries, strict=True):
                    with part.open("wb") as file:
                        _copy(container, size, file)
                for part, target in reversed(list(zip(parts, targets, strict=True))):  # the model last
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(part, target)
        except OSError as error:
            raise OutputError(f"{output}: cannot be written ({error.strerror or error})") from None
    return targets


def sign(path: PathLike, private_key: PathLike, signature: PathLike | None = None) -> Path:
    """Sign a model with its external data and metadata, in OpenSSF's format.

    Args:
        path: The model, encrypted or not.
        private_key: An EC private key on P-256, P-384 or P-521, PEM.
        signature: Where the signature goes; None: beside the model, with ".sig" appended.

    Returns:
        The signature's path.

    Raises:
        ProtectionError: The key cannot be read, or is none that signs.
        ModelError: The file is no readable model.
        OutputError: The signature cannot be written.
        MissingDependency: model-signing is not installed.
    """
    path = Path(path)
    target = Path(signature) if signature is not None else signatures.signature_of(path)
    files = files_of(path)
    try:
        with atomic_folder(target.parent) as scratch:
            signatures.sign(files, Path(private_key), scratch / target.name)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    return target


def verify(path: PathLike, public_key: PathLike, signature: PathLike | None = None) -> list[Path]:
    """Check that a model and its external data are what was signed.

    Args:
        path: The model, encrypted or not.
        public_key: The EC public key to trust, PEM.
        signature: The signature; None: beside the model, with ".sig" appended.

    Returns:
        The files that the signature covers.

    Raises:
        SignatureError: There is no signature, it is another key's, or a file was altered, added or left out.
        ProtectionError: The key cannot be read, or is none that verifies.
        MissingDependency: model-signing is not installed.
    """
    path = Path(path)
    place = Path(signature) if signature is not None else signatures.signature_of(path)
    signatures.must_be_signed(path, place)  # before anything of it is parsed
    files = files_of(path)
    signatures.verify(files, Path(public_key), place)
    return files


def _copy(container: Opened, size: int, target: BinaryIO) -> None:
    for part in container.parts(size):
        target.write(part)
    target.flush()
    os.fsync(target.fileno())
