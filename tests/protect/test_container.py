"""The encrypted container: what goes in comes out, and nothing else opens."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxaccel.errors import AlteredFile, MissingKey, OutputError, ProtectionError, WrongKey
from onnxaccel.protect.container import CHUNK, MAGIC, Entry, Opened, is_sealed, seal
from onnxaccel.protect.keys import KEY_FILE, PASSPHRASE, Key, Scrypt, generate

KEY = Key(bytes(range(32)))
HEADER = 120
TAG = 16


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEY_FILE, PASSPHRASE):
        monkeypatch.delenv(name, raising=False)


def sealed(files: dict[str, bytes], key: Key = KEY, piece: int = 10**9) -> bytes:
    """A container of ``files``, written in pieces of a size."""
    target = io.BytesIO()
    entries = [
        Entry(name, len(data), [data[i : i + piece] for i in range(0, len(data), piece)])
        for name, data in files.items()
    ]
    seal(target, key, entries)
    return target.getvalue()


def opened(path: Path, content: bytes, key: Key | None = KEY) -> dict[str, bytes]:
    path.write_bytes(content)
    with Opened(path, key) as container:
        return {name: bytes(data) for name, data in container.contents().items()}


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(
        st.one_of(st.integers(0, 300), st.integers(-70, 70).map(lambda n: CHUNK + n)), min_size=1, max_size=3
    ),
    piece=st.integers(50, 2 * CHUNK),
    seed=st.integers(0, 2**32 - 1),
)
def test_comes_out_as_it_went_in(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], piece: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    files = {f"f{i}/ü{i}": rng.bytes(size) for i, size in enumerate(sizes)}
    assert opened(tmp_path_factory.mktemp("c") / "f", sealed(files, piece=piece)) == files


def test_written_as_documented(tmp_path: Path) -> None:
    """Decrypted by hand, from the description of the format alone."""
    content = sealed({"a": b"x" * CHUNK})
    derived = HKDF(SHA256(), 71, content[32:64], content[:72]).derive(bytes(range(32)))
    assert derived[39:] == content[72:104]
    assert hashlib.sha256(content[:104]).digest()[:16] == content[104:120]
    plain, at = b"", HEADER
    for number in range(2):
        chunk = content[at : at + CHUNK + TAG]
        nonce = derived[32:39] + number.to_bytes(4, "big") + bytes([number])
        plain += AESGCM(derived[:32]).decrypt(nonce, chunk, None)
        at += len(chunk)
    assert plain == b"\0\0\0\x10" + b'[["a", 1048576]]' + b"x" * CHUNK and at == len(content)
    assert int.from_bytes(content[64:72], "big") == len(plain)


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    """1,000 flips of a container of three chunks: all of its header, and wherever else chance has it."""
    rng = np.random.default_rng(0)
    content = bytearray(sealed({"m.onnx": rng.bytes(CHUNK), "m.onnx.data": rng.bytes(CHUNK + 12345)}))
    places = [*range(HEADER), *rng.integers(HEADER, len(content), 1000 - HEADER)]
    refused: dict[type[Exception], int] = {}
    for at in places:
        changed = bytearray(content)
        changed[at] ^= int(rng.integers(1, 256))
        with pytest.raises(ProtectionError) as caught:
            opened(tmp_path / "f", bytes(changed))
        refused[caught.type] = refused.get(caught.type, 0) + 1
    assert sum(refused.values()) == 1000
    assert refused[ProtectionError] == len(MAGIC) + 1  # no container any more; of another version
    assert set(refused) == {ProtectionError, AlteredFile}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda c: c[: HEADER + CHUNK + TAG], id="cut after a chunk"),
        pytest.param(lambda c: c[:-1], id="cut by a byte"),
        pytest.param(lambda c: c[:50], id="cut in the header"),
        pytest.param(lambda c: c[: len(MAGIC)], id="cut after the magic"),
    ],
)
def test_cut_short(tmp_path: Path, change: object) -> None:
    content = sealed({"a": bytes(3 * CHUNK)})
    with pytest.raises(AlteredFile, match="ends before its end"):
        opened(tmp_path / "f", change(content))  # type: ignore[operator]


def test_chunks_keep_their_places(tmp_path: Path) -> None:
    one, other = (sealed({"a": bytes([n]) * 3 * CHUNK}) for n in range(2))
    size = CHUNK + TAG
    chunks = [one[HEADER + i * size : HEADER + (i + 1) * size] for i in range(4)]
    theirs = other[HEADER : HEADER + size]
    head = one[:HEADER]
    for order in (
        [chunks[1], chunks[0], *chunks[2:]],  # swapped
        [chunks[0], chunks[0], *chunks[2:]],  # repeated
        [theirs, *chunks[1:]],  # of another file, under the same key
    ):
        with pytest.raises(AlteredFile, match="altered"):
            opened(tmp_path / "f", head + b"".join(order))
    with pytest.raises(AlteredFile, match="altered"):
        opened(tmp_path / "f", one + b"more")
    assert opened(tmp_path / "f", head + b"".join(chunks))["a"] == bytes(3 * CHUNK)


def test_a_shortened_file_whose_header_says_so_too(tmp_path: Path) -> None:
    """Who cuts the file and mends length and checksum still does not have the key."""
    content = bytearray(sealed({"a": bytes(2 * CHUNK - 20)})[: HEADER + CHUNK + TAG])
    content[64:72] = CHUNK.to_bytes(8, "big")
    content[104:120] = hashlib.sha256(content[:104]).digest()[:16]
    with pytest.raises(WrongKey):
        opened(tmp_path / "f", bytes(content))


def test_each_problem_has_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = sealed({"a": b"x"})
    passphrase = Key.from_passphrase("correct horse")
    by_passphrase = sealed({"a": b"x"}, passphrase)
    newer = content[:8] + b"\x02" + content[9:]
    path = tmp_path / "f"
    for data, key, kind, words in [
        (content, Key(bytes(32)), WrongKey, "another key encrypted it"),
        (content, passphrase, WrongKey, "encrypted with a key file, and a passphrase was given"),
        (by_passphrase, KEY, WrongKey, "encrypted with a passphrase, and a key file was given"),
        (by_passphrase, Key.from_passphrase("Correct horse"), WrongKey, "another passphrase encrypted it"),
        (content, None, MissingKey, "encrypted with a key file; give --key-file, or set ONNXACCEL_KEY_FILE"),
        (by_passphrase, None, MissingKey, "give --passphrase, or set ONNXACCEL_PASSPHRASE"),
        (newer, KEY, ProtectionError, "encrypted in format 2, and this onnxaccel reads format 1; update"),
        (b"\x08\x08plain", KEY, ProtectionError, "not a file that onnxaccel encrypted"),
    ]:
        with pytest.raises(kind, match=words) as caught:
            opened(path, data, key)
        assert caught.type is kind and str(caught.value).startswith(str(path))
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    monkeypatch.setenv(KEY_FILE, str(generate(tmp_path / "key")))
    assert opened(path, by_passphrase, None) == {"a": b"x"}
    with pytest.raises(WrongKey, match="another key"):
        opened(path, content, None)
    assert opened(path, sealed({"a": b"y"}, Key.given()), None) == {"a": b"y"}  # a key file goes first


def test_scrypt_is_bounded(tmp_path: Path) -> None:
    """A file must not make its reader spend what memory and time it likes, or guess for free."""
    for scrypt in (Scrypt(bytes(16), log_n=30), Scrypt(bytes(16), r=2**7), Scrypt(bytes(16), p=200)):
        assert not scrypt.acceptable
    weak = Scrypt(bytes(16), log_n=4)
    with pytest.raises(AlteredFile):
        opened(tmp_path / "f", sealed({"a": b"x"}, Key(b"hello", weak)), Key.from_passphrase("hello"))


def test_what_was_promised_is_written(tmp_path: Path) -> None:
    for size in (4, 6):
        with pytest.raises(OutputError, match="changed while it was encrypted"):
            seal(io.BytesIO(), KEY, [Entry("a", size, [b"12345"])])


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "", "."])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(AlteredFile):
        opened(tmp_path / "f", sealed({name: b"x"}))


def test_nothing_repeats() -> None:
    """The same file under the same key: all bytes but the constant ones differ."""
    one, other = (sealed({"a": bytes(CHUNK)}) for _ in range(2))
    assert one[:32] == other[:32]  # magic, version, and no scrypt
    assert one[32:64] != other[32:64] and one[72:] != other[72:]
    assert sum(a == b for a, b in zip(one[120:], other[120:], strict=True)) < len(one) / 200


def test_keys(tmp_path: Path) -> None:
    path = generate(tmp_path / "key")
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert text.startswith("onnxaccel-key-1:") and text not in repr(Key.from_file(path))
    with pytest.raises(OutputError, match="never overwritten"):
        generate(path)
    assert path.read_text() == text
    other = tmp_path / "other"
    for damage in (text[:-5], text.replace("key-1", "key-2"), "", "\0" * 100, text[16:]):
        other.write_text(damage)
        with pytest.raises(ProtectionError, match="not an encryption key; make one with"):
            Key.from_file(other)
    with pytest.raises(MissingKey, match="cannot be read"):
        Key.from_file(tmp_path / "none")
    with pytest.raises(MissingKey, match="empty"):
        Key.from_passphrase("")
    assert Key.from_passphrase("a\u0308") == Key.from_passphrase("ä")  # however a keyboard composes it


def test_told_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(sealed({"a": b"x"}))
    assert is_sealed(tmp_path / "f")
    assert not is_sealed(tmp_path) and not is_sealed(tmp_path / "none") and not is_sealed(os.devnull)
