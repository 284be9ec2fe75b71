"""`onnxaccel gradient` and `onnxaccel inspect`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from onnxaccel.cli.app import app
from onnxaccel.cli.options import Json, ModelFile, Out, names, writable
from onnxaccel.cli.output import plain, print_json
from onnxaccel.cli.protection import KeyFile, Passphrase, RequireSignature


@app.command()
def gradient(
    model: ModelFile,
    output: Out = None,
    wrt: Annotated[str, typer.Option(help="inputs, parameters, or names: N,N.")] = "inputs",
    key_file: KeyFile = None,
    passphrase: Passphrase = False,
    require_signature: RequireSignature = None,
    json_: Json = False,
) -> None:
    """Write the gradient graph, in standard operators, for any ONNX runtime to run."""
    from onnxaccel.graph.autodiff import gradient as run
    from onnxaccel.graph.inspect import interface
    from onnxaccel.graph.model import Model
    from onnxaccel.report.terminal import show

    target = writable(output or model.with_suffix(".gradient.onnx"))
    result = run(
        Model.load(model, public_key=require_signature),
        wrt if wrt in ("inputs", "parameters") else names(wrt),
    )
    result.check()
    result.save(target)
    found = {
        "output": str(target),
        "inputs": interface(result.inputs),
        "outputs": interface(result.outputs),
        "nodes": result.graph.num_nodes(),
    }
    if json_:
        print_json(found)
    else:
        show("Gradient graph", ("", ""), [(key, plain(value)) for key, value in found.items()])


@app.command()
def inspect(
    model: ModelFile,
    key_file: KeyFile = None,
    passphrase: Passphrase = False,
    require_signature: RequireSignature = None,
    json_: Json = False,
) -> None:
    """Show inputs, outputs, parameters and FLOPs, and what can be trained and what not."""
    from onnxaccel.graph.inspect import inspect as run
    from onnxaccel.graph.model import Model
    from onnxaccel.report.terminal import show_inspection

    found = run(Model.load(model, public_key=require_signature))
    if json_:
        print_json(asdict(found))
    else:
        show_inspection(str(model), found)
