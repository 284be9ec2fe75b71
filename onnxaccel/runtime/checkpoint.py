"""Checkpoints: a folder of safetensors files, each with its tensors and, in its header, the rest as JSON.

    step-000001200.safetensors   the newest ones
    best.safetensors             the one after the best epoch so far
    lock                         held by the training that writes here

A checkpoint is one file, so that it is whole or absent: it is written beside its place, flushed, and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save, save_file

from onnxaccel.bounds import regular, within
from onnxaccel.errors import CheckpointError, OutputError
from onnxaccel.files import atomic_folder
from onnxaccel.protect.container import Entry, Opened, is_sealed, seal
from onnxaccel.protect.keys import Key
from onnxaccel.records import record_of

BEST = "best.safetensors"
"""The file that holds the checkpoint after the best epoch."""

_KEY = "onnxaccel"
_LOCK = "lock"

State = dict[str, npt.NDArray[Any]]


@dataclass
class Progress:
    """Where a training run stands.

    Attributes:
        epoch: Epochs finished.
        batch: Batches finished of the epoch after those.
        steps: Steps since the start.
        settings: What a resumed training must have in common with this one, as text by name.
        history: One dictionary per finished epoch.
        partial: Running sums of the epoch under way.
    """

    epoch: int = 0
    batch: int = 0
    steps: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    partial: dict[str, float] = field(default_factory=dict)

    def must_fit(self, settings: Mapping[str, str], folder: Path) -> None:
        """Raise `CheckpointError` unless a training with these settings can go on from here."""
        for name, here in settings.items():
            there = self.settings.get(name)
            if there != here:
                raise CheckpointError(f"{folder}: the checkpoint was written with {name} {there}, not {here}")


class Checkpoints:
    """A folder of checkpoints; `held` locks it for the one training that writes to it.

    Args:
        folder: The folder; made when it is held.
        keep: How many of the newest checkpoints to keep, beside the best one.
        key: What to encrypt them with; one that is not encrypted is then refused, as it may be anyone's.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2, key: Key | None = None) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.key = key
        self._ours: list[Path] = []

    @contextmanager
    def held(self, resume: bool) -> Iterator[None]:
        """Hold the folder's lock, which ends with the process, however that ends.

        Args:
            resume: Whether the checkpoints that are there are gone on from; else the first one saved takes
                the place of them all.

        Raises:
            CheckpointError: Another training holds it, or there is nothing to resume.
            OutputError: The folder cannot be written.
        """
        if resume and not self.exists():
            raise CheckpointError(f"{self.folder}: no checkpoint in it; start without --resume")
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            except BlockingIOError:
                holder = os.pread(lock, 64, 0).decode("ascii", "replace").strip()
                raise CheckpointError(
                    f"{self.folder}: another training (process {holder}) writes its checkpoints here; "
                    "give each training a folder of its own"
                ) from None
            except OSError as error:
                raise OutputError(
                    f"{self.folder}: checkpoints cannot be written ({error.strerror or error})"
                ) from None
            self._ours = self._numbered() if resume else []
            yield

    def save(self, state: Mapping[str, npt.NDArray[Any]], progress: Progress, *, best: bool = False) -> None:
        """Write a checkpoint, and remove those that are not to be kept once it is whole.

        Args:
            state: Everything that is carried from step to step.
            progress: Where the training stands.
            best: Also keep it as the best one.

        Raises:
            OutputError: The folder cannot be written.
        """
        path = self.folder / f"step-{progress.steps:09d}.safetensors"
        tensors = {name: np.array(array, order="C") for name, array in state.items()}
        header = {_KEY: json.dumps(asdict(progress))}
        stale = [] if self._ours else [*self._numbered(), self.folder / BEST]
        try:
            # The best one first: killed in between, a resumed training comes to that epoch again, and to the
            # same best one. The other way round it would take the one before for it.
            for name in [BEST, path.name] if best else [path.name]:
                with atomic_folder(self.folder) as scratch:
                    _write(scratch / name, tensors, header, self.key)
                    while stale:  # of another training, and perhaps of more steps than this one
                        stale.pop().unlink(missing_ok=True)
            self._ours = [*(p for p in self._ours if p != path), path]
            for old in self._ours[: -self.keep]:
                old.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{self.folder}: the checkpoint cannot be written ({error})") from None
        self._ours = self._ours[-self.keep :]

    def exists(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return bool(self._numbered())

    def latest(self) -> tuple[State, Progress]:
        """The newest checkpoint.

        Raises:
            CheckpointError: It is damaged.
        """
        return _load(self._ours[-1], self.key)

    def best(self) -> State | None:
        """The tensors of the best checkpoint, or None where there is none.

        Raises:
            CheckpointError: It is damaged.
        """
        path = self.folder / BEST
        return _load(path, self.key)[0] if path.is_file() else None

    def _numbered(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))


def _write(path: Path, tensors: State, header: dict[str, str], key: Key | None) -> None:
    if key is None:
        save_file(tensors, path, metadata=header)
        return
    content = save(tensors, metadata=header)
    with path.open("wb") as file:
        seal(file, key, [Entry(path.name, len(content), [content])])


def _load(path: Path, key: Key | None) -> tuple[State, Progress]:
    if not within(path, path.parent):
        raise CheckpointError(f"{path}: refused, the link leaves its folder; copy the checkpoint there")
    regular(path, CheckpointError)
    if is_sealed(path) != (key is not None):
        there, here = ("encrypted", "not") if key is None else ("not encrypted", "encrypted")
        raise CheckpointError(f"{path}: {there}, and the model is {here}; train that model from the start")
    try:
        if key is not None:
            with Opened(path, key) as container:
                (content,) = container.contents().values()
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            return load(bytes(content)), record_of(Progress, header["__metadata__"][_KEY])
        with safe_open(os.fspath(path), framework="numpy") as file:
            progress = record_of(Progress, file.metadata()[_KEY])
            if not all(0 <= n < 2**53 for n in (progress.epoch, progress.batch, progress.steps)):
                raise ValueError("it stands at an epoch, batch or step that is not possible")
            return {name: file.get_tensor(name) for name in file.keys()}, progress
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged ({error}); remove it, to go on from the one before or to train again"
        ) from None
