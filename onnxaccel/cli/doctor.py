"""`onnxaccel doctor`."""

from __future__ import annotations

from dataclasses import asdict

from onnxaccel.cli.app import app
from onnxaccel.cli.options import Json
from onnxaccel.cli.output import print_json


@app.command()
def doctor(json_: Json = False) -> None:
    """Show devices, providers, frameworks and versions, and what is missing."""
    from onnxaccel.report.terminal import show_environment
    from onnxaccel.runtime.environment import examine

    found = examine()
    if json_:
        print_json(asdict(found))
    else:
        show_environment(found)
