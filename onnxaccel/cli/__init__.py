"""The command line: each verb reads its options, calls one function, and prints the result.

Standard output carries results (with ``--json`` exactly one JSON document); progress and errors go to
standard error. Exit status: 0 done, 1 failed with one clear line, 2 wrong usage, 130 interrupted.
One file per verb; importing it adds the verb, in the order of the help page.
"""

from __future__ import annotations

from onnxaccel.cli import convert, train, evaluate, graphs, optimize, compare, report  # isort: skip
from onnxaccel.cli import models, protect, doctor  # isort: skip
from onnxaccel.cli.app import app, main

__all__ = [
    "app",
    "compare",
    "convert",
    "doctor",
    "evaluate",
    "graphs",
    "main",
    "models",
    "optimize",
    "protect",
    "report",
    "train",
]
