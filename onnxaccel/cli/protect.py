"""`onnxaccel keygen`, `encrypt`, `decrypt`, `sign` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxaccel.cli.app import app
from onnxaccel.cli.options import Json, ModelFile, Out, writable
from onnxaccel.cli.output import plain, print_json
from onnxaccel.cli.protection import KeyFile, Passphrase, ask

Signature = Annotated[
    Path | None, typer.Option(help="The signature's file; by default MODEL.onnx.sig.", show_default=False)
]

keygen_app = typer.Typer(help="Make keys, to encrypt with and to sign with.", no_args_is_help=True)
app.add_typer(keygen_app, name="keygen")


@keygen_app.command("encryption")
def keygen_encryption(
    output: Annotated[Path, typer.Argument(metavar="KEY", help="The key file to write.")],
    json_: Json = False,
) -> None:
    """Make a key to encrypt and to decrypt with; who has it can read the models, who loses it cannot."""
    from onnxaccel.protection import generate

    _show("Encryption key", {"output": str(generate(output))}, json_)


@keygen_app.command("signing")
def keygen_signing(
    output: Annotated[Path, typer.Argument(metavar="PRIVATE.pem", help="The private key to write.")],
    json_: Json = False,
) -> None:
    """Make a pair of keys: the private one signs, the public one, PRIVATE.pub.pem, verifies."""
    from onnxaccel.protection import generate_pair

    private, public = generate_pair(output)
    _show("Signing keys", {"private": str(private), "public": str(public)}, json_)


@app.command()
def encrypt(
    model: ModelFile,
    key_file: Annotated[Path | None, typer.Option(help="The key, from `keygen encryption`.")] = None,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Ask for a passphrase instead.")] = False,
    output: Out = None,
    json_: Json = False,
) -> None:
    """Encrypt a model with its external data, or a checkpoint, into one file."""
    from onnxaccel.protection import Key
    from onnxaccel.protection import encrypt as run

    if key_file is not None and passphrase:
        raise typer.BadParameter("--key-file or --passphrase, not both")
    target = writable(output or model.with_suffix(f".encrypted{model.suffix}"))
    if key_file is not None:
        key = Key.from_file(key_file)
    else:
        key = Key.from_passphrase(ask(confirm=True)) if passphrase else Key.given()
    run(model, target, key)
    found = {"output": str(target), "bytes": target.stat().st_size, "still_readable": str(model)}
    _show("Encrypted", found, json_)


@app.command()
def decrypt(
    model: ModelFile,
    key_file: KeyFile = None,
    passphrase: Passphrase = False,
    output: Out = None,
    json_: Json = False,
) -> None:
    """Write a model as it was before it was encrypted, its external data beside it."""
    from onnxaccel.protection import decrypt as run

    target = writable(output or model.with_suffix(f".decrypted{model.suffix}"))
    first, *others = run(model, target)
    _show("Decrypted", {"output": str(first), "external_data": [str(path) for path in others]}, json_)


@app.command()
def sign(
    model: ModelFile,
    key: Annotated[Path, typer.Option(metavar="PRIVATE.pem", help="The private key, EC, in PEM.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where the signature goes; by default MODEL.onnx.sig."),
    ] = None,
    json_: Json = False,
) -> None:
    """Sign a model with its metadata and external data, encrypted or not, in OpenSSF's format."""
    from onnxaccel.graph.files import files_of
    from onnxaccel.protection import sign as run

    signature = run(model, key, output)
    _show("Signed", {"output": str(signature), "files": [str(path) for path in files_of(model)]}, json_)


@app.command()
def verify(
    model: ModelFile,
    key: Annotated[Path, typer.Option(metavar="PUBLIC.pem", help="The public key to trust, EC, in PEM.")],
    signature: Signature = None,
    json_: Json = False,
) -> None:
    """Check that a model is what the owner of a key signed, whole and unaltered."""
    from onnxaccel.protection import verify as run

    _show("Verified", {"key": str(key), "files": [str(path) for path in run(model, key, signature)]}, json_)


def _show(title: str, found: dict[str, object], json_: bool) -> None:
    from onnxaccel.report.terminal import show

    if json_:
        print_json(found)
    else:
        show(title, ("", ""), [(name.replace("_", " "), plain(value)) for name, value in found.items()])
