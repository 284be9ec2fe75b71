"""SIGINT, SIGTERM and SIGHUP, taken where the state of a training is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def on_signals(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Give the signals that ask a program to end to ``handler``, within the block.

    Those that are ignored stay ignored, as ``nohup`` wants it with SIGHUP. Outside the main thread, where
    Python takes no signals, the block does nothing.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


class Impatient(KeyboardInterrupt):
    """A second signal came before the first was heeded."""


class Interruption:
    """Within its ``with`` block the signals only leave a note; `between` raises where it is safe.

    A second signal raises at once, for whoever does not want to wait.
    """

    def __init__(self) -> None:
        self._noted = False
        self._stack = ExitStack()

    def __enter__(self) -> Interruption:
        self._stack.enter_context(on_signals(self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

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
