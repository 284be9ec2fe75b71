"""What verbs print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from typing import Any


def say(line: str) -> None:
    """Print one line to standard error, without control characters: it may hold names out of a file."""
    print("".join(c if c.isprintable() else " " for c in line), file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """Print the one JSON document of ``--json``."""
    print(json.dumps(document, default=str))


def plain(value: object) -> object:
    """A value as a person reads it in a table's cell."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(plain(entry)) for entry in value)
    return value
