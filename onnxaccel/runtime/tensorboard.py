"""Scalars for TensorBoard, written through its own record writer."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from onnxaccel.errors import MissingDependency, OutputError
from onnxaccel.runtime.history import Epoch


class Scalars:
    """An event file in a folder; of tensorboard only the writer is imported, never TensorFlow.

    Args:
        folder: The log folder; made where it is missing. Each training adds a file of its own.

    Raises:
        MissingDependency: tensorboard is not installed.
        OutputError: The folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise MissingDependency("tensorboard", "tensorboard", "write TensorBoard's event files") from None
        self._event: Any = Event
        self._summary: Any = Summary
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.0"
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._file = (Path(folder) / name).open("wb")
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from None
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Write scalars by tag; None is left out."""
        entries = [self._summary.Value(tag=t, simple_value=v) for t, v in values.items() if v is not None]
        event = self._event(wall_time=time.time(), step=step, summary=self._summary(value=entries))
        self._write(event)

    def add_epoch(self, step: int, epoch: Epoch) -> None:
        """Write what an epoch gave."""
        values: dict[str, float | None] = {
            "train/loss": epoch.loss,
            "train/accuracy": epoch.accuracy,
            "val/loss": epoch.val_loss,
            "val/accuracy": epoch.val_accuracy,
        }
        metrics = {f"val/{k}": v for k, v in epoch.metrics.items() if isinstance(v, float)}
        self.add(step, {**values, **metrics})

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()
