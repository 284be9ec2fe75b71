"""Protection as users run it: by exit status and by what is printed."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import onnxaccel as oa
from onnxaccel import models, protection
from onnxaccel.protect.keys import KEY_FILE, PASSPHRASE, Key

DIGITS = "sklearn:digits#1500:"
SIGNED = ("--require-signature", "s.pub.pem")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, keys, and the encrypted and signed model."""
    folder = tmp_path_factory.mktemp("protected")
    module = models.build("mlp", "pytorch", input_shape=(64,))
    oa.convert(module, torch.zeros(2, 64), trainable=True).save(folder / "m.onnx")
    protection.generate(folder / "k.key")
    protection.generate_pair(folder / "s.pem")
    return folder


def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in (KEY_FILE, PASSPHRASE)}
    command = [sys.executable, "-m", "onnxaccel", *(str(argument) for argument in arguments)]
    return subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True)


def document(*arguments: object, cwd: Path, **environment: str) -> Any:
    done = run(*arguments, "--json", cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_model_s_way_through(folder: Path) -> None:
    """Keys, encrypted, signed, trained, evaluated, decrypted: and the numbers are the plain model's."""
    made = document("encrypt", "m.onnx", "--key-file", "k.key", cwd=folder)
    assert made["output"] == "m.encrypted.onnx" and made["still_readable"] == "m.onnx"
    signed = document("sign", "m.encrypted.onnx", "--key", "s.pem", cwd=folder)
    assert signed == {"output": "m.encrypted.onnx.sig", "files": ["m.encrypted.onnx"]}
    assert (
        document("verify", "m.encrypted.onnx", "--key", "s.pub.pem", cwd=folder)["files"] == signed["files"]
    )
    options = [
        "--data",
        "sklearn:digits#0:300",
        "--val",
        DIGITS,
        "--epochs",
        1,
        "--ep",
        "cpu",
        "--threads",
        1,
    ]
    opening = ["--key-file", "k.key", "--require-signature", "s.pub.pem"]
    secret = document("train", "m.encrypted.onnx", *options, *opening, "--checkpoint", "c", cwd=folder)
    plain = document("train", "m.onnx", *options, cwd=folder)
    assert secret["epochs"][0]["val_loss"] == plain["epochs"][0]["val_loss"]
    assert secret["output"] == "m.encrypted.trained.onnx"
    assert protection.is_sealed(folder / secret["output"]) and not protection.is_sealed(
        folder / plain["output"]
    )
    found = document("evaluate", secret["output"], "--data", DIGITS, cwd=folder, ONNXACCEL_KEY_FILE="k.key")
    assert found["loss"] == pytest.approx(plain["epochs"][0]["val_loss"], rel=1e-5)
    back = document("decrypt", secret["output"], "--key-file", "k.key", cwd=folder)
    assert oa.evaluate(folder / back["output"], DIGITS).accuracy == found["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "e.onnx", "--data", DIGITS], "encrypted with a key file; give --key-file"),
        (["predict", "e.onnx", DIGITS, "--key-file", "none"], "none: the key file cannot be read"),
        (["inspect", "m.onnx", "--require-signature", "s.pub.pem"], "not signed, there is no m.onnx.sig"),
        (["gradient", "e.onnx", "--key-file", "other.key"], "another key encrypted it than the one given"),
        (["optimize", "short.onnx", "--key-file", "k.key"], "short.onnx: ends before its end"),
        (["decrypt", "m.onnx", "--key-file", "k.key"], "m.onnx: not a file that onnxaccel encrypted"),
        (["encrypt", "m.onnx"], "encryption needs a key: give --key-file or --passphrase"),
        (
            ["encrypt", "m.onnx", "--passphrase"],
            f"no terminal to ask for the passphrase on; set {PASSPHRASE}",
        ),
        (["keygen", "encryption", "k.key"], "keys are never overwritten"),
        (
            ["train", "signed.onnx", "--data", DIGITS, "--checkpoint", "c", "--resume", *SIGNED],
            "checkpoints are not signed",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_one_line_says_what_is_wrong(folder: Path, arguments: list[str], words: str) -> None:
    if not (folder / "e.onnx").exists():
        key = Key.from_file(folder / "k.key")
        sealed = protection.encrypt(folder / "m.onnx", folder / "e.onnx", key).read_bytes()
        (folder / "short.onnx").write_bytes(sealed[:-1])
        protection.generate(folder / "other.key")
        (folder / "signed.onnx").write_bytes((folder / "m.onnx").read_bytes())
        protection.sign(folder / "signed.onnx", folder / "s.pem")
    before = sorted(folder.iterdir())
    done = run(*arguments, cwd=folder)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_passphrase_is_asked_for(folder: Path) -> None:
    """On the terminal, twice when it is new; never echoed."""
    typed = asked(["encrypt", "m.onnx", "--passphrase", "-o", "p.onnx"], folder)
    assert "Passphrase: " in typed and "Again: " in typed and "horse" not in typed
    done = run("inspect", "p.onnx", cwd=folder, ONNXACCEL_PASSPHRASE="correct horse")
    assert done.returncode == 0, done.stderr
    typed = asked(["decrypt", "p.onnx", "--passphrase"], folder)
    assert "Again" not in typed
    assert (folder / "p.decrypted.onnx").read_bytes() == (folder / "m.onnx").read_bytes()


def asked(arguments: list[str], folder: Path) -> str:
    """Run on a terminal and type the passphrase; gives what the terminal showed."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in (KEY_FILE, PASSPHRASE)}
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxaccel", *arguments],
        cwd=folder,
        env=kept,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = ""
    try:
        while select.select([ours], [], [], 60)[0]:
            shown += os.read(ours, 4096).decode()
            if shown.endswith(("Passphrase: ", "Again: ")):
                os.write(ours, b"correct horse\n")
                shown += "\n"
    except OSError:  # the terminal is gone: the process has ended
        pass
    finally:
        os.close(ours)
    assert process.wait(60) == 0, shown
    return shown
