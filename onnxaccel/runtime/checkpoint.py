"""Checkpoints: one safetensors file with the tensors and, in its header, the rest as JSON.

One file, so that a checkpoint is whole or absent: it is written beside its place, flushed, and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from onnxaccel.errors import CheckpointError, OutputError
from onnxaccel.graph.model import atomic_folder

FILE = "checkpoint.safetensors"
"""The file's name inside the checkpoint folder."""

_KEY = "onnxaccel"


@dataclass
class Progress:
    """Where a training run stands.

    Attributes:
        epoch: Epochs finished.
        batch: Batches finished of the epoch after those.
        steps: Steps since the start.
        seed: The seed that the order of the data is drawn from.
        batch_size: Samples per batch.
        optimizer: The optimizer and its settings, as text.
        loss: The loss's name.
        history: One dictionary per finished epoch.
        partial: Running sums of the epoch under way.
    """

    epoch: int
    batch: int
    steps: int
    seed: int
    batch_size: int
    optimizer: str
    loss: str
    history: list[dict[str, Any]]
    partial: dict[str, float]


def save(folder: Path, state: Mapping[str, npt.NDArray[Any]], progress: Progress) -> Path:
    """Write a checkpoint, replacing the one before only when it is whole.

    Raises:
        OutputError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as scratch:
            tensors = {name: np.array(array, order="C") for name, array in state.items()}
            save_file(tensors, scratch / FILE, metadata={_KEY: json.dumps(asdict(progress))})
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder}: the checkpoint cannot be written ({error})") from None
    return folder / FILE


def load(folder: Path) -> tuple[dict[str, npt.NDArray[Any]], Progress]:
    """Read a checkpoint.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: no checkpoint in it; start without --resume")
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            progress = Progress(**json.loads(file.metadata()[_KEY]))
            return {name: file.get_tensor(name) for name in file.keys()}, progress
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove it and train again") from None
