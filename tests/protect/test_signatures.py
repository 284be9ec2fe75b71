"""Signatures: exactly the files of the model, by exactly this key; and the library's own program agrees."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxaccel import protection
from onnxaccel.errors import MissingKey, ModelError, OutputError, ProtectionError, SignatureError
from onnxaccel.graph.model import Model
from onnxaccel.protect.keys import Key


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    private, public = protection.generate_pair(tmp_path_factory.mktemp("keys") / "signer.pem")
    assert private.stat().st_mode & 0o777 == 0o600 and public.name == "signer.pub.pem"
    return private, public


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with its weights in two files, of which one has a name of git's, and metadata."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((64, 500), np.float32), "b": rng.standard_normal(500, np.float32)}
    shape = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["h"]), onnx.helper.make_node("Add", ["h", "b"], ["y"])],
        "g",
        [shape("x", 1, ["n", 64])],
        [shape("y", 1, ["n", 500])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(proto, {"onnxaccel": '{"frozen": ["a"]}'})
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    for tensor, place in zip(proto.graph.initializer, ("data/w.bin", ".gitattributes"), strict=True):
        (folder / place).write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, place)
        tensor.ClearField("raw_data")
    onnx.save(proto, folder / "m.onnx")
    (folder / "README").write_text("lies beside the model and is not part of it")
    assert Model.load(folder / "m.onnx").metadata.frozen == ["a"]
    return folder / "m.onnx"


def test_covers_all_of_the_model_and_no_more(model: Path, keys: tuple[Path, Path]) -> None:
    signature = protection.sign(model, keys[0])
    assert signature.name == "m.onnx.sig"
    covered = protection.verify(model, keys[1])
    assert covered[0] == model
    assert {p.relative_to(model.parent).as_posix() for p in covered[1:]} == {"data/w.bin", ".gitattributes"}
    (model.parent / "README").write_text("changed")
    Model.load(model, public_key=keys[1])
    moved = shutil.copytree(model.parent, model.parent.with_name("elsewhere"))
    Model.load(moved / "m.onnx", public_key=keys[1])
    line = ["verify", "key", str(model.parent), "--signature", str(signature), "--public_key", str(keys[1])]
    program = [
        sys.executable,
        "-m",
        "model_signing",
        *line,
        "--ignore_unsigned_files",
        "--no-ignore-git-paths",
    ]
    assert subprocess.run(program).returncode == 0  # OpenSSF's own program
    (model.parent / ".gitattributes").write_bytes(bytes(2000))
    assert subprocess.run(program, capture_output=True).returncode != 0


@pytest.mark.parametrize("flips", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_byte_is_refused(model: Path, keys: tuple[Path, Path], flips: int) -> None:
    """Wherever chance has them: in the graph, the metadata, either file of weights."""
    protection.sign(model, keys[0])
    files = protection.verify(model, keys[1])
    contents = [file.read_bytes() for file in files]
    rng = np.random.default_rng(0)
    where = rng.choice(len(files), flips, p=[0.4, 0.4, 0.2])
    for chosen in where:
        content = bytearray(contents[chosen])
        content[int(rng.integers(len(content)))] ^= int(rng.integers(1, 256))
        files[chosen].write_bytes(content)
        with pytest.raises((SignatureError, ModelError)):
            protection.verify(model, keys[1])
        files[chosen].write_bytes(contents[chosen])
    assert set(where) == {0, 1, 2}
    protection.verify(model, keys[1])


def test_an_altered_signature_vouches_for_nothing_else(model: Path, keys: tuple[Path, Path]) -> None:
    """A flip in the signature's file is refused, or is in what the signature does not say."""
    signature = protection.sign(model, keys[0])
    content, rng = signature.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        changed = bytearray(content)
        changed[int(rng.integers(len(changed)))] ^= int(rng.integers(1, 256))
        signature.write_bytes(changed)
        try:
            protection.verify(model, keys[1])
        except SignatureError:
            refused += 1
            continue
        model.write_bytes(model.read_bytes() + b"\x42\0")  # an empty field more
        with pytest.raises(SignatureError):
            protection.verify(model, keys[1])
        model.write_bytes(model.read_bytes()[:-2])
    assert refused > 180


def test_each_problem_has_its_own_words(model: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    with pytest.raises(SignatureError, match=r"not signed, there is no .*m\.onnx\.sig"):
        Model.load(model, public_key=public)
    signature = protection.sign(model, private)
    _, other = protection.generate_pair(tmp_path / "other.pem")
    with pytest.raises(SignatureError, match="Key mismatch"):
        protection.verify(model, other)
    for key, kind, words in (
        (private, ProtectionError, "not an EC public key in PEM"),
        (tmp_path / "none", MissingKey, "the key cannot be read"),
        (model, ProtectionError, "not an EC public key in PEM"),
    ):
        with pytest.raises(kind, match=words):
            protection.verify(model, key)
    for key, kind, words in (
        (public, ProtectionError, "not an EC private key in PEM"),
        (tmp_path / "none", MissingKey, "the key cannot be read"),
    ):
        with pytest.raises(kind, match=words):
            protection.sign(model, key)
    with pytest.raises(OutputError, match="cannot be written"):
        protection.sign(model, private, tmp_path / "no" / "m.sig")
    with pytest.raises(OutputError, match="never overwritten"):
        protection.generate_pair(tmp_path / "other.pem")
    impostor = model.with_name("impostor.onnx")  # another model, with a copy of the signature
    shutil.copy(model, impostor)
    shutil.copy(signature, f"{impostor}.sig")
    with pytest.raises(SignatureError, match="Extra files found"):
        Model.load(impostor, public_key=public)
    signature.write_text("{}")
    with pytest.raises(SignatureError, match="not what"):
        protection.verify(model, public)
    with signature.open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(SignatureError, match="too large"):
        protection.verify(model, public)


def test_an_encrypted_model_is_signed_as_it_lies_there(model: Path, keys: tuple[Path, Path]) -> None:
    """Whoever has the public key can verify it, also without the key that decrypts it."""
    key = Key(bytes(32))
    sealed = protection.encrypt(model, model.with_name("e.onnx"), key)
    protection.sign(sealed, keys[0])
    assert protection.verify(sealed, keys[1]) == [sealed]
    assert Model.load(sealed, key=key, public_key=keys[1]).key == key
    protection.encrypt(model, sealed, key)  # the same model under the same key, and not what was signed
    with pytest.raises(SignatureError, match="Hash mismatch"):
        Model.load(sealed, key=key, public_key=keys[1])
