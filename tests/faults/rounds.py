"""What the fault suite does to the real command line, and how it tells whether anything was lost.

Each verb runs on a small model in a folder of its own:

    net.* m.onnx d.npz key                      what it reads
    out/made.*                                  its output, beside which nothing may stay
    state/                                      a training's checkpoints
    tmp/                                        where its temporary files go

In half of the rounds an older file stands at the output's name; then that file, or the new one, must stand
there at any time.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pytest

from onnxaccel import models
from onnxaccel.files import PREFIX, scratch_folder
from onnxaccel.graph.model import Model
from onnxaccel.protection import decrypt, generate

OLD = b"an older file that the run is to replace"
NETWORK = "net.prototxt net.caffemodel"
TRAINING = (
    "train m.onnx --data d.npz#train --val d.npz#test --epochs 30 --batch-size 16 --best --ema 0.9 --ep cpu "
    "--threads 1 --optimizer adamw --schedule cosine --checkpoint state --checkpoint-every 3 -o out/made.onnx"
)
SESSION = ".ses"
"""A file that onnxruntime keeps where temporary files go, always of this name."""

STEPS = 30 * 8
"""Steps of the training above."""

GRACE = 60
"""Seconds that the processes of a killed run may need to end."""


@dataclass(frozen=True)
class Verb:
    """A command line that is disturbed.

    Attributes:
        words: It, with paths relative to its folder.
        output: The file it makes.
        content: What of the output is the same after each run; None: nothing, it must be a sound model.
        environment: Variables that it needs.
    """

    words: str
    output: str = "out/made.onnx"
    content: Callable[[Path], bytes] | None = Path.read_bytes
    environment: tuple[tuple[str, str], ...] = ()


def decrypted(path: Path) -> bytes:
    """What an encrypted model was before; the key lies in the folder above."""
    with pytest.MonkeyPatch.context() as patch, scratch_folder() as folder:
        patch.setenv("ONNXACCEL_KEY_FILE", str(path.parents[1] / "key"))
        return decrypt(path, folder / "plain.onnx")[0].read_bytes()


VERBS = {
    "convert": Verb(f"convert {NETWORK} --trainable -o out/made.onnx"),
    "train": Verb(TRAINING),
    "optimize": Verb(
        "optimize m.onnx --data d.npz#test --batch-size 1 --rounds 1 --seconds 0.01 --only int8\\ dynamic "
        "-o out/made.onnx",
        content=None,
    ),
    "encrypt": Verb(
        "encrypt m.onnx -o out/made.onnx", content=decrypted, environment=(("ONNXACCEL_KEY_FILE", "key"),)
    ),
}


class Loss(AssertionError):
    """A fault cost something that it may not cost."""


def prepare(folder: Path) -> Path:
    """Make what the verbs read."""
    folder.mkdir(parents=True, exist_ok=True)
    made = models.export("mlp", "caffe", folder, input_shape=(16,), classes=4)
    for source, name in zip(made.files, NETWORK.split(), strict=False):
        os.replace(source, folder / name)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 16)).astype(np.float32)
    y = np.argmax(x @ rng.normal(size=(16, 4)), 1)
    np.savez(folder / "d.npz", x_train=x[:128], y_train=y[:128], x_test=x[128:], y_test=y[128:])
    done = run(Verb(f"convert {NETWORK} --trainable -o m.onnx"), fresh(folder, folder / "setup"))
    assert done.returncode == 0, done.stderr
    os.replace(folder / "setup/m.onnx", folder / "m.onnx")
    generate(folder / "key")
    shutil.rmtree(folder / "setup")
    return folder


def fresh(inputs: Path, folder: Path, old: bool = False) -> Path:
    """A folder for one round."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("out", "tmp"):
        (folder / name).mkdir(parents=True)
    for file in inputs.iterdir():
        if file.is_file():
            shutil.copy(file, folder / file.name)
    if old:
        (folder / "out/made.onnx").write_bytes(OLD)
    return folder


def start(verb: Verb, folder: Path, *more: str, **popen: object) -> subprocess.Popen[str]:
    """Start a verb as users do, in a session of its own."""
    words = [word.replace("\0", " ") for word in verb.words.replace("\\ ", "\0").split()]
    environment = {
        **os.environ,
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **dict(verb.environment),
    }
    settings = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | popen
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "onnxaccel", *words, *more],
        cwd=folder,
        env=environment,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
        **settings,
    )


def run(verb: Verb, folder: Path, *more: str, **popen: object) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    process = start(verb, folder, *more, **popen)
    _, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, "", errors)


@dataclass
class Reference:
    """An undisturbed run: what its output holds (see `Verb.content`) and how long it took."""

    content: bytes
    seconds: float


def reference(verb: Verb, inputs: Path, folder: Path) -> Reference:
    """Run a verb undisturbed."""
    fresh(inputs, folder)
    began = time.monotonic()
    done = run(verb, folder)
    assert done.returncode == 0, done.stderr
    tidy(verb, folder)
    seconds = time.monotonic() - began
    return Reference(verb.content(folder / verb.output) if verb.content else b"", seconds)


def kill(
    verb: Verb, folder: Path, seconds: float, chance: random.Random, writing: bool, *more: str
) -> tuple[bool, bool]:
    """kill -9 at a random moment within ``seconds``, or with ``writing`` while it writes a file.

    That is its output, or a checkpoint which is drawn at random too.

    Returns:
        Whether it was running still, and whether it was writing.

    Raises:
        Loss: A process that it started goes on.
    """
    process = start(verb, folder, *more)
    if writing:
        step = chance.randrange(STEPS) if "--checkpoint" in verb.words else 0
        while process.poll() is None and not (newest(folder) >= step and scratch(folder)):
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.001))
    else:
        wait(process, chance.uniform(0, seconds))
    process.kill()
    found = bool(scratch(folder))
    process.communicate()
    alone(process.pid)
    return process.returncode == -signal.SIGKILL, found


def newest(folder: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max((int(p.stem[5:]) for p in folder.glob("state/step-*")), default=0)


def wait(process: subprocess.Popen[str], seconds: float) -> None:
    """Sleep for so long, or until the process ends."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def scratch(folder: Path) -> list[Path]:
    """Scratch folders in which something is being written."""
    try:
        return [p for name in ("out", "state") for p in (folder / name).glob(f"{PREFIX}*/*")]
    except FileNotFoundError:  # it was removed while it was looked into
        return []


def alone(session: int) -> None:
    """Raise unless all processes of a session end soon."""
    deadline = time.monotonic() + GRACE
    while left := members(session):
        if time.monotonic() > deadline:
            raise Loss(f"processes that go on: {left}")
        time.sleep(0.05)


def members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def intact(verb: Verb, folder: Path, old: bool, expected: Reference) -> bool:
    """Check what stands at the output's name after a fault; gives whether it is the new file.

    Raises:
        Loss: It is neither the old nor the new file, or there is another one beside it.
    """
    output = folder / verb.output
    names = {p.name for p in output.parent.iterdir() if not p.name.startswith(PREFIX)}
    if names - {output.name}:
        raise Loss(f"files beside the output: {names}")
    if not output.exists():
        if old:
            raise Loss("the older file is gone")
        return False
    if old and output.read_bytes() == OLD:
        return False
    if verb.content is None:
        Model.load(output).check()
    elif verb.content(output) != expected.content:
        raise Loss("the output is neither the old nor the new file")
    return True


def tidy(verb: Verb, folder: Path) -> None:
    """Raise unless a run that ended well left its output and nothing else."""
    out, tmp = ([p.name for p in (folder / name).glob("*") if p.name != SESSION] for name in ("out", "tmp"))
    if out != [Path(verb.output).name] or tmp:
        raise Loss(f"left behind: out {out}, tmp {tmp}")
    state = {p.name for p in folder.glob("state/*") if not p.name.startswith("step-")}
    if state - {"best.safetensors", "lock"} or len(list(folder.glob("state/step-*"))) > 2:
        raise Loss(f"left behind in the checkpoint folder: {sorted(state)}")


def finish(verb: Verb, folder: Path, expected: Reference) -> bool:
    """Run to the end after a fault, resuming where there is a checkpoint; gives whether it resumed.

    Raises:
        Loss: It fails, leaves something behind, or ends with another result.
    """
    resume = ["--resume"] if list(folder.glob("state/step-*")) else []
    done = run(verb, folder, *resume)
    if done.returncode:
        raise Loss(f"the next run ends with {done.returncode}: {done.stderr}")
    tidy(verb, folder)
    if not intact(verb, folder, False, expected):
        raise Loss("the next run left no output")
    return bool(resume)


@dataclass
class Counts:
    """What became of a number of rounds, none of which lost anything.

    Attributes:
        rounds: Runs that were disturbed before they ended.
        writing: Those disturbed while a file was being written.
        completed: Those whose output was whole already.
        after: Runs to the end after a fault.
        resumed: Those of them that went on from a checkpoint; all ended with the undisturbed run's bits.
    """

    rounds: int = 0
    writing: int = 0
    completed: int = 0
    after: int = 0
    resumed: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def killed_rounds(
    verb: Verb, inputs: Path, folder: Path, rounds: Iterable[int], expected: Reference, every: int = 1
) -> Counts:
    """Kill a verb again and again.

    Args:
        verb: What to run.
        inputs: The folder that `prepare` made.
        folder: Where to run it.
        rounds: Numbers of the rounds, each the seed of its own chance.
        expected: The undisturbed run.
        every: After how many rounds it is run to its end; the leftovers of all must then be gone.

    Raises:
        Loss: Something was lost.
    """
    counts = Counts()
    for done, number in enumerate(rounds, 1):
        chance, old = random.Random(number), bool(number % 2)
        running = False
        while not running:
            if done % every == 1 % every:
                fresh(inputs, folder)
            (folder / verb.output).unlink(missing_ok=True)
            if old:
                (folder / verb.output).write_bytes(OLD)
            running, writing = kill(verb, folder, expected.seconds, chance, number % 4 > 1)
            completed = intact(verb, folder, old, expected)
        counts += Counts(1, writing, completed)
        if done % every == 0:
            counts += Counts(after=1, resumed=finish(verb, folder, expected))
    return counts


def signalled_rounds(
    verb: Verb, inputs: Path, folder: Path, rounds: Iterable[int], expected: Reference
) -> Counts:
    """Ask a verb to end, by SIGINT, SIGTERM and SIGHUP in turns, at random moments.

    It ends with 130, or as the system does it where Python itself is still starting or already ending; as
    by SIGINT where a library was being imported, since we make of each signal what Python makes of that.

    Raises:
        Loss: Something was lost, or it ended in another way.
    """
    counts = Counts()
    for number in rounds:
        chance, old = random.Random(number), bool(number % 2)
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[number % 3]
        fresh(inputs, folder, old)
        process = start(verb, folder)
        wait(process, chance.uniform(expected.seconds / 4, expected.seconds))
        writing, running = bool(scratch(folder)), process.poll() is None
        training = (folder / "state/lock").exists()
        process.send_signal(wanted)
        _, errors = process.communicate(timeout=GRACE)
        alone(process.pid)
        completed = intact(verb, folder, old, expected)
        taken = process.returncode == 130 and "interrupted; " in errors
        if (
            not taken
            and not completed
            and (training or -process.returncode not in (wanted, signal.SIGINT, -1))
        ):
            raise Loss(f"{wanted.name}: status {process.returncode}, {errors}")
        if process.returncode and any(scratch(folder)):
            raise Loss(f"{wanted.name}: scratch files stay")
        counts += Counts(running, writing, completed, 1, finish(verb, folder, expected))
    return counts


def full_rounds(verb: Verb, inputs: Path, disk: Disk, sizes: Iterable[int], expected: Reference) -> Counts:
    """Run a verb on disks too small for it, then on the same with more room.

    Args:
        verb: What to run.
        inputs: The folder that `prepare` made.
        disk: The disk.
        sizes: How many bytes are free when it starts.
        expected: The undisturbed run.

    Raises:
        Loss: Something was lost, or the message does not say what is wrong.
    """
    counts = Counts()
    for number, size in enumerate(sizes):
        old = bool(number % 2)
        disk.resize(None)
        folder = fresh(inputs, disk.folder / "r", old)
        disk.resize(size)
        done = run(verb, folder)
        completed = intact(verb, folder, old, expected)
        if completed is not (done.returncode == 0):
            raise Loss(f"status {done.returncode}: {done.stderr}")
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1]
            if done.returncode != 1 or not re.match("error: .*No space left on device", last):
                raise Loss(f"status {done.returncode}: {done.stderr}")
        disk.resize(None)
        counts += Counts(not completed, 0, completed, 1, finish(verb, folder, expected))
    return counts


class Disk:
    """A small disk in memory, for those who may mount one.

    Args:
        folder: Where to mount it.

    Raises:
        PermissionError: This user may not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._mount("size=64m")

    def resize(self, free: int | None) -> None:
        """Leave so many bytes free; None: plenty."""
        used = shutil.disk_usage(self.folder).used
        self._mount(f"remount,size={used + free if free is not None else 2**26}")

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", str(self.folder)], check=True)

    def read_only(self) -> None:
        """Let nothing be written any more."""
        self._mount("remount,ro")

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PermissionError(done.stderr)
