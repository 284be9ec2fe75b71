"""The options by which verbs open encrypted models and demand signatures."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxaccel.errors import MissingKey, SignatureError
from onnxaccel.protect.keys import KEY_FILE, PASSPHRASE

if TYPE_CHECKING:
    from onnxaccel.graph.model import Model


def ask(confirm: bool = False) -> str:
    """The passphrase: what the environment holds, else what is typed; never an argument, which others see.

    Args:
        confirm: Ask twice, as for a passphrase that is new.

    Raises:
        MissingKey: There is no terminal to ask on, or what was typed twice differs.
    """
    if PASSPHRASE in os.environ:
        return os.environ[PASSPHRASE]
    if not sys.stdin.isatty():
        raise MissingKey(f"there is no terminal to ask for the passphrase on; set {PASSPHRASE}")
    typed = getpass.getpass("Passphrase: ")
    if confirm and getpass.getpass("Again: ") != typed:
        raise MissingKey("the passphrases differ; nothing was encrypted")
    return typed


def _use_key_file(path: Path | None) -> Path | None:
    if path is not None:
        os.environ[KEY_FILE] = str(path.resolve())
    return path


def _use_passphrase(wanted: bool) -> bool:
    if wanted:
        os.environ[PASSPHRASE] = ask()
    return wanted


KeyFile = Annotated[
    Path | None,
    typer.Option(help=f"Key of encrypted files; or set {KEY_FILE}.", callback=_use_key_file),
]
"""Goes into the environment, where `Model.load` and child processes find it; so does the next."""
Passphrase = Annotated[
    bool,
    typer.Option(
        "--passphrase",
        help=f"Ask for the passphrase of encrypted files; or set {PASSPHRASE}.",
        callback=_use_passphrase,
    ),
]
RequireSignature = Annotated[
    Path | None,
    typer.Option(metavar="PUBLIC.pem", help="Refuse a model that is not signed by this key, or was altered."),
]


def may_resume(model: Model, resume: bool, required: Path | None) -> None:
    """Refuse to go on from checkpoints that anyone may have written, where signatures are demanded."""
    if resume and required is not None and model.key is None:
        raise SignatureError(
            "--require-signature and --resume: checkpoints are not signed; those of an encrypted model are "
            "authenticated by its key, so encrypt the model, or leave out one of the two"
        )
