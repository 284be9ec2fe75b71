"""Settings of losses and optimizers: frozen dataclasses whose fields are checked by their type and range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from onnxaccel.errors import TrainingError
from onnxaccel.registry import Registry

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """A frozen dataclass of flags, numbers and tuples of numbers, checked when it is made.

    A field is a flag, a number or a tuple of as many numbers as its default is, and one or more numbers where
    that is None. Other fields are checked by the class that has them.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            problem = _misfit(value, field.default)
            if problem is None and field.name in self._checked_range():
                problem = _out_of_range(value)
            if problem is not None:
                raise TrainingError(f"{type(self).__name__}: {field.name} {problem}, it is {value!r}")

    def _checked_range(self) -> set[str]:
        """Names of the fields that must not be negative."""
        return {field.name for field in fields(self)}


def _misfit(value: Any, default: Any) -> str | None:
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "must be true or false"
    if isinstance(default, (int, float)):
        return None if _is_number(value) else "must be a number"
    if isinstance(default, tuple) and default and _is_number(default[0]):
        fits = isinstance(value, tuple) and len(value) == len(default) and all(map(_is_number, value))
        return None if fits else f"must be {len(default)} numbers"
    if default is None and value is not None:
        numbers = value if isinstance(value, tuple) else (value,)
        return None if all(map(_is_number, numbers)) else "must be one or more numbers"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _out_of_range(value: Any) -> str | None:
    numbers = [v for v in (value if isinstance(value, tuple) else [value]) if _is_number(v)]
    return None if all(v >= 0 for v in numbers) else "must not be negative"


def made(registry: Registry[type[S]], name: str, settings: Mapping[str, Any]) -> S:
    """What is registered as ``name``, with its settings.

    Raises:
        TrainingError: There is no such entry, it has no such setting, or a setting is out of range.
    """
    kind = registry.get(name)
    if kind is None:
        raise TrainingError(f"unknown {registry.kind} {name!r}; choose one of {', '.join(registry)}")
    known = [field.name for field in fields(kind)]
    foreign = sorted(set(settings) - set(known))
    if foreign:
        has = f"it has {', '.join(known)}" if known else "it has no settings"
        raise TrainingError(f"{registry.kind} {name!r} has no {foreign[0]}; {has}")
    return kind(**settings)
