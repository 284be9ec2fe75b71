"""A comparison as one HTML file that needs nothing else: no script, no network, no font, no library."""

from __future__ import annotations

import os
from pathlib import Path

from onnxaccel.compare.document import write_text
from onnxaccel.compare.results import Comparison
from onnxaccel.report.html.page import render

__all__ = ["render", "write"]


def write(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write the report of a comparison, atomically.

    Raises:
        OutputError: It cannot be written there.
    """
    return write_text(path, render(comparison))
