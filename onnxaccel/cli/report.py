"""`onnxaccel report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxaccel.cli.app import app
from onnxaccel.cli.options import Json, writable
from onnxaccel.cli.output import print_json, say


@app.command()
def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="COMPARISON.json...", help="Documents of `compare --json`.")
    ],
    html: Annotated[Path | None, typer.Option(help="Write the report to this one file, with charts.")] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write the scalars for TensorBoard to this folder.")
    ] = None,
    json_: Json = False,
) -> None:
    """Show comparisons again; those of several machines side by side."""
    from onnxaccel.compare.document import document, load
    from onnxaccel.report import comparison, machines
    from onnxaccel.report import html as pages
    from onnxaccel.report import tensorboard as scalars
    from onnxaccel.report.html import machines as machine_pages

    if html is not None:
        writable(html)
    found = [load(file) for file in files]
    if len(found) == 1:
        (only,) = found
        if html is not None:
            pages.write(only, html)
        shown = document(only)
    else:
        beside = machines.side_by_side(found, [str(file) for file in files])
        if html is not None:
            machine_pages.write(beside, html)
        shown = machines.document(beside)
    if tensorboard is not None:
        for file, one in zip(files, found, strict=True):
            scalars.write(one, tensorboard / file.stem if len(found) > 1 else tensorboard)
    if json_:
        print_json(shown)
    elif len(found) == 1:
        comparison.show(only)
    else:
        machines.show(beside)
    if html is not None:
        say(f"written to {html}")
