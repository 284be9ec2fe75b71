"""`onnxaccel convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxaccel.cli.app import app
from onnxaccel.cli.options import Json, Out, names, shape_of, writable
from onnxaccel.cli.output import plain, print_json, say


@app.command()
def convert(
    source: Annotated[
        list[Path], typer.Argument(help="The model's files: model.pb, or net.prototxt net.caffemodel.")
    ],
    output: Out = None,
    trainable: Annotated[bool, typer.Option(help="Keep parameters, BatchNormalization and Dropout.")] = False,
    inputs: Annotated[str, typer.Option(help="Tensors to cut the source graph at: N,N.")] = "",
    outputs: Annotated[str, typer.Option(help="Tensors to end the source graph at: N,N.")] = "",
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="An input's shape, NAME=1,3,224,224; -1 or a word (ids=batch,sequence) is dynamic."
        ),
    ] = None,
    factory: Annotated[
        str | None, typer.Option(help="module:callable that builds a state dict's module.")
    ] = None,
    parameters: Annotated[
        str, typer.Option(help="With --trainable: constants of a frozen graph that are parameters: N,N.")
    ] = "",
    custom_objects: Annotated[
        str | None, typer.Option(help="Module with the custom layers of a Keras file; runs its code.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset to write.", min=18)] = 18,
    tolerance: Annotated[float, typer.Option(help="Largest relative error to the source framework.")] = 1e-4,
    verify: Annotated[bool, typer.Option(help="Compare with the source framework.")] = True,
    solver: Annotated[
        Path | None,
        typer.Option(help="Caffe's solver.prototxt: fresh weights from the fillers."),
    ] = None,
    trust_pickle: Annotated[bool, typer.Option(help="Unpickle: runs code from the file.")] = False,
    json_: Json = False,
) -> None:
    """Convert a model to ONNX and prove that the numbers match."""
    from onnxaccel.converters import convert as run
    from onnxaccel.graph.inspect import interface, operators
    from onnxaccel.report.terminal import show

    target = writable(output or Path(source[0].stem + ".onnx"))
    model = run(
        *source,
        trainable=trainable,
        inputs=names(inputs),
        outputs=names(outputs),
        shapes=dict(shape_of(s) for s in shape or ()),
        factory=factory,
        parameters=names(parameters),
        custom_objects=custom_objects,
        opset=opset,
        tolerance=tolerance,
        verify=verify,
        solver=solver,
        trust_pickle=trust_pickle,
        progress=say,
    )
    model.save(target)
    result = {
        "output": str(target),
        "source_framework": model.metadata.framework,
        "source_format": model.metadata.format,
        "inputs": interface(model.inputs),
        "outputs": interface(model.outputs),
        "max_relative_error": model.metadata.max_relative_error,
        "opset": model.opset,
        "operators": operators(model),
        "trainable_parameters": len(model.metadata.trainable or ()),
    }
    if json_:
        print_json(result)
    else:
        show("Converted", ("", ""), [(key.replace("_", " "), plain(value)) for key, value in result.items()])
