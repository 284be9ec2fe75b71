"""The registry refuses what would silently overwrite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnxaccel.registry import Registry


def test_a_name_is_registered_once() -> None:
    things: Registry[Callable[[], int]] = Registry("thing")

    @things("a", "b")
    def one() -> int:
        return 1

    assert list(things) == ["a", "b"]
    assert things.get("b") is one
    assert things.get("c") is None
    with pytest.raises(ValueError, match="thing 'a' is registered already"):
        things("a")(one)
