"""SIGINT and SIGTERM, taken where the state of a training is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class Impatient(KeyboardInterrupt):
    """A second signal came before the first was heeded."""


class Interruption:
    """Within its ``with`` block the two signals only leave a note; `between` raises where it is safe.

    A second signal raises at once, for whoever does not want to wait. Outside the main thread, where Python
    takes no signals, the block does nothing.
    """

    def __init__(self) -> None:
        self._noted = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """The items; raises KeyboardInterrupt before the next one when a signal has come."""
        for item in items:
            self.check()
            yield item
        self.check()

    @property
    def noted(self) -> bool:
        """Whether a signal has come."""
        return self._noted

    def check(self) -> None:
        """Raise KeyboardInterrupt when a signal has come."""
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted:
            raise Impatient
        self._noted = True
