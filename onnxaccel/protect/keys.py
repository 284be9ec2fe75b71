"""Encryption keys: a file of 32 random bytes, or a passphrase; and where they are found.

A container says which of the two it was sealed with. Keys are looked for in the environment, so that child
processes find them as well: ``ONNXACCEL_KEY_FILE`` is the path of a key file, ``ONNXACCEL_PASSPHRASE`` a
passphrase.
"""

from __future__ import annotations

import base64
import functools
import os
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from onnxaccel.errors import MissingKey, OutputError, ProtectionError, WrongKey

KEY_FILE = "ONNXACCEL_KEY_FILE"
PASSPHRASE = "ONNXACCEL_PASSPHRASE"

SIZE = 32
"""Bytes of a key: AES-256."""

_PREFIX = "onnxaccel-key-1:"
"""How a key file begins, so that people and secret scanners know it for what it is."""


@dataclass(frozen=True)
class Scrypt:
    """How a passphrase becomes a key: scrypt's parameters (RFC 7914) and its salt.

    Attributes:
        salt: 16 random bytes.
        log_n: Binary logarithm of the cost N.
        r: Block size; memory is 128 N r bytes.
        p: Parallelism; time grows with it.
    """

    salt: bytes
    log_n: int = 17
    r: int = 8
    p: int = 1

    @classmethod
    def fresh(cls) -> Scrypt:
        """The parameters that are written, with a salt of their own: 128 MiB and about 0.3 s."""
        return cls(secrets.token_bytes(16))

    @property
    def acceptable(self) -> bool:
        """Whether a file may ask for it: at most 1 GiB, and not so little that a passphrase is guessed."""
        return 15 <= self.log_n <= 20 and self.r == 8 and 1 <= self.p <= 4


@dataclass(frozen=True)
class Key:
    """A key to seal and to open files with; its secret is left out of its text.

    Attributes:
        secret: The key's 32 bytes, or the passphrase.
        scrypt: For a passphrase the parameters that files are written with; None for a key.
    """

    secret: bytes = field(repr=False)
    scrypt: Scrypt | None = None

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Key:
        """Read a key file that `generate` wrote.

        Raises:
            MissingKey: It cannot be read.
            ProtectionError: It holds no key.
        """
        try:
            with Path(path).open("rb") as file:
                text = file.read(4096).decode("ascii", "replace").strip()
        except OSError as error:
            raise MissingKey(f"{path}: the key file cannot be read ({error.strerror})") from None
        try:
            secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except ValueError:
            secret = b""
        if not text.startswith(_PREFIX) or len(secret) != SIZE:
            raise ProtectionError(
                f"{path}: not an encryption key; make one with `onnxaccel keygen encryption`"
            )
        return cls(secret)

    @classmethod
    def from_passphrase(cls, passphrase: str) -> Key:
        """A key that scrypt derives from a passphrase.

        Raises:
            MissingKey: It is empty.
        """
        if not passphrase:
            raise MissingKey("the passphrase is empty")
        return _of_passphrase(unicodedata.normalize("NFC", passphrase).encode())

    @classmethod
    def given(cls) -> Key:
        """The key that the environment names: the key file, or else the passphrase.

        Raises:
            MissingKey: It names none.
        """
        if KEY_FILE in os.environ:
            return cls.from_file(os.environ[KEY_FILE])
        if PASSPHRASE in os.environ:
            return cls.from_passphrase(os.environ[PASSPHRASE])
        raise MissingKey(
            f"encryption needs a key: give --key-file or --passphrase, or set {KEY_FILE} or {PASSPHRASE}"
        )

    @classmethod
    def for_opening(cls, path: str | os.PathLike[str], by_passphrase: bool) -> Key:
        """The key of the kind that a container needs, from the environment.

        Raises:
            MissingKey: There is none of that kind.
        """
        if by_passphrase and PASSPHRASE in os.environ:
            return cls.from_passphrase(os.environ[PASSPHRASE])
        if not by_passphrase and KEY_FILE in os.environ:
            return cls.from_file(os.environ[KEY_FILE])
        kind, option, variable = (
            ("a passphrase", "--passphrase", PASSPHRASE)
            if by_passphrase
            else ("a key file", "--key-file", KEY_FILE)
        )
        raise MissingKey(f"{path}: encrypted with {kind}; give {option}, or set {variable}")

    def master(self, scrypt: Scrypt | None) -> bytes:
        """The 32 bytes that a container's own keys are derived from.

        Args:
            scrypt: The container's parameters; None where it was sealed with a key file.

        Raises:
            WrongKey: The container takes a key file and this is a passphrase, or the other way round.
        """
        if (scrypt is None) != (self.scrypt is None):
            kinds = ("a key file", "a passphrase")
            raise WrongKey(
                f"encrypted with {kinds[scrypt is not None]}, and {kinds[scrypt is None]} was given"
            )
        return self.secret if scrypt is None else _stretched(self.secret, scrypt)


def generate(path: str | os.PathLike[str]) -> Path:
    """Write a new key file, readable by its owner alone.

    Raises:
        OutputError: There is a file of that name, or it cannot be written.
    """
    secret = base64.b64encode(secrets.token_bytes(SIZE)).decode()
    return write_secret(Path(path), f"{_PREFIX}{secret}\n".encode())


def write_secret(path: Path, content: bytes) -> Path:
    """Write a new file that its owner alone may read; one that is there stays: what it locks would be lost.

    Raises:
        OutputError: There is a file of that name, or it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise OutputError(f"{path}: there is a file of that name; keys are never overwritten") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
    return path


@functools.cache
def _of_passphrase(passphrase: bytes) -> Key:
    """One key per passphrase and process, so that what it writes shares a salt and is derived once."""
    return Key(passphrase, Scrypt.fresh())


@functools.cache
def _stretched(passphrase: bytes, scrypt: Scrypt) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt as Derivation

    n = 2**scrypt.log_n
    return Derivation(salt=scrypt.salt, length=SIZE, n=n, r=scrypt.r, p=scrypt.p).derive(passphrase)
