"""The one form in which rules, layers, losses, optimizers and readers are registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

F = TypeVar("F")


class Registry(Generic[F]):
    """Named functions of one kind, each registered once.

        gradient = Registry("gradient rule")

        @gradient("Relu")
        def relu(...): ...

    Args:
        kind: What the entries are, for messages ("gradient rule", "loss").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, F] = {}

    def __call__(self, *names: str) -> Callable[[F], F]:
        """Register the decorated function under each of ``names``; a name taken twice raises ValueError."""

        def register(function: F) -> F:
            for name in names:
                if name in self._entries:
                    raise ValueError(f"{self.kind} {name!r} is registered already")
                self._entries[name] = function
            return function

        return register

    def get(self, name: str) -> F | None:
        """The entry called ``name``, or None."""
        return self._entries.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries
