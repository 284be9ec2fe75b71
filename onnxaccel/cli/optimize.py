"""`onnxaccel optimize`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from onnxaccel.cli.app import app
from onnxaccel.cli.options import (
    DATA_HELP,
    Ep,
    Json,
    Layout,
    Mean,
    ModelFile,
    Out,
    Scale,
    with_preprocessing,
    writable,
)
from onnxaccel.cli.output import print_json, say
from onnxaccel.cli.protection import KeyFile, Passphrase, RequireSignature


@app.command()
def optimize(
    model: ModelFile,
    data: Annotated[str | None, typer.Option(help=f"To calibrate and to compare on. {DATA_HELP}")] = None,
    max_error: Annotated[
        float, typer.Option(help="Largest loss of accuracy; without labels, largest relative error.", min=0)
    ] = 0.01,
    output: Out = None,
    ep: Ep = "auto",
    only: Annotated[
        list[str] | None, typer.Option(help='Variants to try, for instance "int8 static"; repeatable.')
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per run.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each candidate.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of a turn.", min=0.01)] = 1.0,
    time_limit: Annotated[float, typer.Option(help="Seconds that a candidate may hang.", min=1)] = 120,
    memory_limit: Annotated[int, typer.Option(help="MiB that a candidate may hold.", min=64)] = 8192,
    profile: Annotated[bool, typer.Option("--profile", help="Show the winner's time by operator.")] = False,
    mean: Mean = None,
    scale: Scale = None,
    layout: Layout = None,
    key_file: KeyFile = None,
    passphrase: Passphrase = False,
    require_signature: RequireSignature = None,
    json_: Json = False,
) -> None:
    """Find the fastest variant of a model within a budget of error."""
    from onnxaccel.report.terminal import show_optimization
    from onnxaccel.runtime.optimize import Limits
    from onnxaccel.runtime.optimize import optimize as run

    target = writable(output or model.with_suffix(".optimized.onnx"))
    found = run(
        with_preprocessing(model, mean, scale, layout, require_signature),
        data,
        max_error=max_error,
        output=target,
        ep=ep,
        variants=only,
        batch_size=batch_size,
        rounds=rounds,
        seconds=seconds,
        limits=Limits(time_limit, memory_limit * 2**20),
        with_profile=profile,
        progress=say,
    )
    for warning in found.warnings:
        say(f"warning: {warning}")
    if json_:
        print_json(asdict(found))
    else:
        show_optimization(found)
