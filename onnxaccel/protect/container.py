"""The encrypted container: files sealed into one, in chunks that are authenticated each.

    header, 120 bytes
        magic 8, version 1, kind of key 1 (0: file, 1: passphrase), scrypt's log N, r and p 3, zero 3,
        scrypt's salt 16, file salt 32, payload's length 8: all that follows is derived from these fields
        commitment 32     tells a wrong key from an altered file
        checksum 16       SHA-256 of all before, cut: tells an altered header from a wrong key
    payload, encrypted: the index's length 4, the index as JSON [[name, size], ...], the files' bytes

HKDF-SHA256 makes of the key, the file salt and the fields a key for AES-256-GCM, a nonce prefix and the
commitment; so each file has a key of its own, and a changed field opens nothing. The payload goes in chunks
of 1 MiB with 16 bytes of tag. A chunk's nonce is prefix 7, number 4, last 1: the STREAM construction (Hoang,
Reyhanitabar, Rogaway, Vizár 2015, https://eprint.iacr.org/2015/189), under which chunks that are dropped,
reordered, repeated or taken from elsewhere do not open. Numbers are big-endian.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from onnxaccel.bounds import fits
from onnxaccel.errors import AlteredFile, MissingDependency, OutputError, ProtectionError, WrongKey
from onnxaccel.protect.keys import Key, Scrypt

MAGIC = b"\x89OAX\r\n\x1a\n"
VERSION = 1
CHUNK = 2**20
"""Bytes of a chunk before it is encrypted."""

_FIELDS = struct.Struct(">8sBBBBB3x16s32sQ")
_HEADER = _FIELDS.size + 32 + 16
_TAG = 16
_LENGTH = struct.Struct(">I")
_INDEX_LIMIT = 2**24
"""Bytes of an index that are read, at most."""

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Entry:
    """A file to seal.

    Attributes:
        name: Its path, relative, with forward slashes.
        size: Its bytes.
        parts: These bytes, in order, in pieces of any size.
    """

    name: str
    size: int
    parts: Iterable[Bytes]


def is_sealed(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a container, by its first bytes; False where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def seal(target: BinaryIO, key: Key, entries: Sequence[Entry]) -> None:
    """Write a container; of what is sealed no more than two chunks are held at a time.

    Args:
        target: Where to write.
        key: The key.
        entries: The files.

    Raises:
        OutputError: An entry has more or fewer bytes than it says.
        MissingDependency: cryptography is not installed.
    """
    index = json.dumps([[entry.name, entry.size] for entry in entries]).encode()
    length = _LENGTH.size + len(index) + sum(entry.size for entry in entries)
    scrypt = key.scrypt or Scrypt(bytes(16), 0, 0, 0)
    kind = key.scrypt is not None
    file_salt = secrets.token_bytes(32)
    fields = _FIELDS.pack(
        MAGIC, VERSION, kind, scrypt.log_n, scrypt.r, scrypt.p, scrypt.salt, file_salt, length
    )
    cipher = _Cipher(key, key.scrypt, file_salt, fields)
    header = fields + cipher.commitment
    target.write(header + hashlib.sha256(header).digest()[:16])
    last = (length - 1) // CHUNK
    parts = chain([_LENGTH.pack(len(index)), index], *map(_all_of, entries))
    for number, chunk in enumerate(_chunks(parts)):
        target.write(cipher.encrypt(number, number == last, chunk))


class Opened:
    """A container that is being read, from its beginning to its end; closes its file with the block.

        with Opened(path, key) as container:
            files = container.contents()

    Args:
        path: Its path.
        key: The key; None: the one that the environment names, see `onnxaccel.protect.keys`.

    Attributes:
        key: The key that opened it.
        entries: Names and sizes of the files in it.

    Raises:
        MissingKey: There is no key.
        WrongKey: It was sealed with another key.
        AlteredFile: It was altered, or cut short.
        ProtectionError: It is no container, or of a version to come.
        MissingDependency: cryptography is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], key: Key | None = None) -> None:
        self.path = Path(path)
        with contextlib.ExitStack() as stack:
            try:
                self._file = stack.enter_context(self.path.open("rb"))
            except OSError as error:
                raise ProtectionError(f"{path}: cannot be read ({error.strerror})") from None
            self._read_header(key)
            self._plain = self._decrypted()
            self._held = memoryview(b"")
            self.entries = self._read_index()
            self._stack = stack.pop_all()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def contents(self) -> dict[str, bytearray]:
        """All files in memory, by name in their order.

        Raises:
            AlteredFile: It was altered, or cut short.
        """
        fits(sum(size for _, size in self.entries), f"{self.path}: decrypted, it", ProtectionError)
        found = {}
        for name, size in self.entries:
            content = bytearray(size)
            at = 0
            for part in self.parts(size):
                content[at : at + len(part)] = part
                at += len(part)
            found[name] = content
        return found

    def parts(self, size: int) -> Iterator[memoryview]:
        """The next ``size`` bytes, in pieces."""
        while size:
            if not self._held:
                self._held = memoryview(next(self._plain))
            part, self._held = self._held[:size], self._held[size:]
            size -= len(part)
            yield part

    def _read_header(self, key: Key | None) -> None:
        try:
            header = self._file.read(_HEADER)
            size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise ProtectionError(f"{self.path}: cannot be read ({error.strerror})") from None
        if not header.startswith(MAGIC):
            raise ProtectionError(f"{self.path}: not a file that onnxaccel encrypted")
        if len(header) > len(MAGIC) and header[len(MAGIC)] != VERSION:
            raise ProtectionError(
                f"{self.path}: encrypted in format {header[len(MAGIC)]}, and this onnxaccel reads format "
                f"{VERSION}; update onnxaccel"
            )
        if len(header) < _HEADER:
            raise self._cut_short()
        fields, commitment = header[: _FIELDS.size], header[_FIELDS.size : -16]
        if hashlib.sha256(header[:-16]).digest()[:16] != header[-16:]:
            raise self._altered()
        _, _, kind, log_n, r, p, salt, file_salt, self._length = _FIELDS.unpack(fields)
        scrypt = Scrypt(salt, log_n, r, p) if kind else None
        if kind > 1 or self._length <= _LENGTH.size or (scrypt is not None and not scrypt.acceptable):
            raise self._altered()
        self._chunks = (self._length - 1) // CHUNK + 1
        whole = _HEADER + self._length + self._chunks * _TAG
        if size != whole:
            raise self._cut_short() if size < whole else self._altered()
        self.key = key or Key.for_opening(self.path, scrypt is not None)
        try:
            self._cipher = _Cipher(self.key, scrypt, file_salt, fields)
        except WrongKey as error:
            raise WrongKey(f"{self.path}: {error}") from None
        if not hmac.compare_digest(self._cipher.commitment, commitment):
            kind_of_key = "key" if scrypt is None else "passphrase"
            raise WrongKey(f"{self.path}: another {kind_of_key} encrypted it than the one given")

    def _read_index(self) -> list[tuple[str, int]]:
        (size,) = _LENGTH.unpack(self._take(_LENGTH.size))
        rest = self._length - _LENGTH.size - size
        try:
            if rest < 0 or size > _INDEX_LIMIT:
                raise ValueError
            entries = [(str(name), int(length)) for name, length in json.loads(self._take(size))]
        except (ValueError, TypeError):
            raise self._altered() from None
        names = [name for name, _ in entries]
        if sum(length for _, length in entries) != rest or any(length < 0 for _, length in entries):
            raise self._altered()
        if not names or len(set(names)) < len(names) or not all(map(_stays_inside, names)):
            raise self._altered()
        return entries

    def _take(self, size: int) -> bytes:
        return b"".join(self.parts(size))

    def _decrypted(self) -> Iterator[bytes]:
        for number in range(self._chunks):
            last = number == self._chunks - 1
            size = self._length - number * CHUNK if last else CHUNK
            chunk = self._file.read(size + _TAG)
            if len(chunk) < size + _TAG:
                raise self._cut_short()
            plain = self._cipher.decrypt(number, last, chunk)
            if plain is None:
                raise self._altered()
            yield plain

    def _altered(self) -> AlteredFile:
        return AlteredFile(f"{self.path}: altered since it was encrypted; get it from its source again")

    def _cut_short(self) -> AlteredFile:
        return AlteredFile(f"{self.path}: ends before its end; get it from its source again")


class _Cipher:
    """AES-256-GCM under the key, and with the nonces, of one container."""

    def __init__(self, key: Key, scrypt: Scrypt | None, file_salt: bytes, fields: bytes) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        except ImportError:
            raise MissingDependency("cryptography", "protect", "encrypt and to decrypt") from None
        derived = HKDF(SHA256(), 32 + 7 + 32, file_salt, fields).derive(key.master(scrypt))
        self._aead, self._prefix, self.commitment = AESGCM(derived[:32]), derived[32:39], derived[39:]
        self._invalid = InvalidTag

    def encrypt(self, number: int, last: bool, chunk: Bytes) -> bytes:
        return self._aead.encrypt(self._nonce(number, last), chunk, None)

    def decrypt(self, number: int, last: bool, chunk: bytes) -> bytes | None:
        """The chunk's plaintext; None where it is not the chunk that was encrypted."""
        try:
            return self._aead.decrypt(self._nonce(number, last), chunk, None)
        except self._invalid:
            return None

    def _nonce(self, number: int, last: bool) -> bytes:
        return self._prefix + number.to_bytes(4, "big") + bytes([last])


def _all_of(entry: Entry) -> Iterator[Bytes]:
    """The entry's parts, which must be of the length that the header already promised."""
    size = 0
    for part in entry.parts:
        size += memoryview(part).nbytes
        yield part
    if size != entry.size:
        raise OutputError(f"{entry.name}: changed while it was encrypted; try again")


def _chunks(parts: Iterable[Bytes]) -> Iterator[bytearray]:
    held = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        while view:
            room = CHUNK - len(held)
            held += view[:room]
            view = view[room:]
            if len(held) == CHUNK:
                yield held
                held = bytearray()
    if held:
        yield held


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
