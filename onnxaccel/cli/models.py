"""`onnxaccel models`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from onnxaccel.cli.app import app
from onnxaccel.cli.options import Json, names
from onnxaccel.cli.output import plain, print_json

models_app = typer.Typer(
    help="The reference models, with the same weights in each framework.", no_args_is_help=True
)
app.add_typer(models_app, name="models")


@models_app.command("list")
def models_list(json_: Json = False) -> None:
    """List the reference models."""
    from onnxaccel import models
    from onnxaccel.report.terminal import show

    found = [
        {
            "name": name,
            "description": models.describe(name),
            "frameworks": models.frameworks(name),
            "inputs": models.inputs(name).kind,
            "input_shape": models.inputs(name).shape,
            "vocabulary": models.inputs(name).vocabulary or None,
            "targets": models.targets(name),
        }
        for name in models.names()
    ]
    if json_:
        print_json(found)
    else:
        shown = ("name", "description", "frameworks", "input_shape")
        rows = [[plain(entry[key]) for key in shown] for entry in found]
        show("Reference models", ("name", "description", "frameworks", "one sample"), rows)


@models_app.command("export")
def models_export(
    name: Annotated[str, typer.Argument(help="A name from `models list`.")],
    framework: Annotated[str, typer.Option(help="tensorflow, pytorch or caffe, if it has the model.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write into.")] = Path(),
    input_shape: Annotated[
        str,
        typer.Option(help="Shape of one sample, for instance 64 or 3,32,32 (channels first), or a length."),
    ] = "",
    classes: Annotated[int, typer.Option(help="Number of classes.", min=2)] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.")] = 0,
    json_: Json = False,
) -> None:
    """Write a reference model in its framework's own format, with freshly drawn weights."""
    from onnxaccel import models
    from onnxaccel.report.terminal import show

    try:
        shape = tuple(int(n) for n in names(input_shape)) or None
    except ValueError:
        raise typer.BadParameter(
            f"--input-shape {input_shape!r}: write whole numbers, as in 64 or 3,32,32"
        ) from None
    exported = models.export(name, framework, output, seed=seed, input_shape=shape, classes=classes)
    if json_:
        print_json(asdict(exported))
    else:
        show("Exported", ("", ""), [(key, plain(value)) for key, value in asdict(exported).items()])
