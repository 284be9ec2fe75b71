"""Signatures by OpenSSF's model-signing (https://github.com/sigstore/model-transparency), with own keys.

A signature is a Sigstore bundle: the SHA-256 of each file, signed by ECDSA. It needs no network. The library
signs folders; a model's files seldom have one to themselves, so it is shown a folder of links to exactly
them. So the signature holds for these files and for no fewer, whatever lies beside them, and the library's
own ``model_signing verify key FOLDER --ignore_unsigned_files`` agrees.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onnxaccel.errors import MissingDependency, MissingKey, OutputError, ProtectionError, SignatureError
from onnxaccel.files import scratch_folder
from onnxaccel.protect.keys import write_secret

_BUNDLE_LIMIT = 2**24
"""Bytes of a signature that are read, at most."""


def signature_of(path: Path) -> Path:
    """Where a file's signature lies unless said otherwise: beside it, with ".sig" appended."""
    return path.with_name(path.name + ".sig")


def generate_pair(private: Path) -> tuple[Path, Path]:
    """Write a key pair on the curve P-256: the private key for its owner alone, the public key beside it.

    Returns:
        The paths of both; the public key's is the private one's with ".pub.pem" in place of its suffix.

    Raises:
        OutputError: There are files of those names, or they cannot be written.
        MissingDependency: cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            PublicFormat,
        )
    except ImportError:
        raise MissingDependency("cryptography", "protect", "make keys") from None
    public = private.with_suffix(".pub.pem")
    if public.exists():
        raise OutputError(f"{public}: there is a file of that name; keys are never overwritten")
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_secret(private, secret)
    write_secret(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    public.chmod(0o644)
    return private, public


def sign(files: Sequence[Path], private_key: Path, signature: Path) -> None:
    """Sign files together.

    Args:
        files: The files, the first one's folder holds the others or folders with them.
        private_key: An EC private key on P-256, P-384 or P-521, PEM.
        signature: Where the signature is written.

    Raises:
        MissingKey: The key cannot be read.
        ProtectionError: The key is none that signs.
        OutputError: The signature cannot be written.
        MissingDependency: model-signing is not installed.
    """
    signing, _, hashing = _library()
    must_be_readable(private_key)
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except (ValueError, TypeError, AttributeError) as error:
        raise ProtectionError(
            f"{private_key}: not an EC private key in PEM without a passphrase ({_cause(error)})"
        ) from None
    with _folder_of(files) as folder:
        try:
            config.set_hashing_config(_hashing(hashing)).sign(folder, signature)
        except OSError as error:
            raise OutputError(f"{signature}: cannot be written ({error.strerror})") from None


def verify(files: Sequence[Path], public_key: Path, signature: Path) -> None:
    """Check that files are exactly those that were signed.

    Args:
        files: The files, the first one's folder holds the others or folders with them.
        public_key: The EC public key to trust, PEM.
        signature: The signature.

    Raises:
        SignatureError: There is no signature, it is another key's, or a file was altered, added or left out.
        MissingKey: The key cannot be read.
        ProtectionError: The key is none that verifies.
        MissingDependency: model-signing is not installed.
    """
    _, verifying, hashing = _library()
    must_be_readable(public_key)
    must_be_signed(files[0], signature)
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError, AttributeError) as error:
        raise ProtectionError(f"{public_key}: not an EC public key in PEM ({_cause(error)})") from None
    with _folder_of(files) as folder:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # it prints warnings
                config.set_hashing_config(_hashing(hashing)).verify(folder, signature)
        except Exception as error:  # the library's parsers raise what they will on a damaged bundle
            raise SignatureError(
                f"{files[0]}: not what {signature} signs with this key ({_cause(error)}); get it from its "
                "source again"
            ) from None


def must_be_signed(path: Path, signature: Path) -> None:
    """Raise `SignatureError` unless there is a signature to look into."""
    if not signature.is_file():
        raise SignatureError(f"{path}: not signed, there is no {signature}")
    if signature.stat().st_size > _BUNDLE_LIMIT:
        raise SignatureError(f"{signature}: too large for a signature")


def must_be_readable(key: Path) -> None:
    """Raise `MissingKey` unless a key file can be read."""
    try:
        key.open("rb").close()
    except OSError as error:
        raise MissingKey(f"{key}: the key cannot be read ({error.strerror})") from None


def _library() -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError:
        raise MissingDependency("model-signing", "protect", "sign and to verify") from None
    return signing, verifying, hashing


def _hashing(hashing: Any) -> Any:
    """Every file counts: by default the library passes over those with names of git's."""
    config = hashing.Config().set_allow_symlinks(True)
    return config.set_ignored_paths(paths=[], ignore_git_paths=False)


@contextlib.contextmanager
def _folder_of(files: Sequence[Path]) -> Iterator[Path]:
    """A folder of links to files, named after the first one, which is the name that the signature bears."""
    with scratch_folder() as scratch:
        folder = scratch / files[0].name
        base = files[0].parent.resolve()
        for file in files:
            link = folder / os.path.relpath(file.parent.resolve() / file.name, base)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        yield folder


def _cause(error: Exception) -> str:
    """The first line of one of the library's messages, without the digests."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(": Expected 'Digest")[0].partition('["')[2] or line.rstrip(" .")
