"""`onnxaccel compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxaccel.cli.app import app
from onnxaccel.cli.options import (
    DATA_HELP,
    Ep,
    Json,
    Layout,
    Mean,
    Scale,
    Threads,
    names,
    preprocessing_of,
    settings_of,
    shape_of,
    writable,
)
from onnxaccel.cli.output import print_json, say
from onnxaccel.cli.protection import KeyFile, Passphrase, RequireSignature


@app.command()
def compare(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="models:NAME, an ONNX file, or a model's files: net.prototxt,net.caffemodel.",
        ),
    ],
    data: Annotated[str | None, typer.Option(help=f"For accuracy and training. {DATA_HELP}")] = None,
    val: Annotated[str | None, typer.Option(help="Data for the accuracy after training.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Compare training as well.")] = False,
    training: Annotated[
        str,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="What all sides train with: optimizer=sgd,lr=0.01,momentum=0.9,batch_size=64,epochs=3.",
        ),
    ] = "",
    inference: Annotated[bool, typer.Option(help="Compare inference.")] = True,
    goal: Annotated[
        str | None, typer.Option(help="What matters most: latency, throughput, memory or training.")
    ] = None,
    ep: Ep = "auto",
    threads: Threads = 0,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes of the inference: N,N.")] = "1,8,32",
    rounds: Annotated[int, typer.Option(help="Turns of each candidate.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of a turn.", min=0.01)] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of weights, order of the data, random inputs.")] = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Run the candidates of this name alone: 'PyTorch *'; repeatable."
        ),
    ] = None,
    optimize: Annotated[bool, typer.Option(help="Look for a faster variant of the converted model.")] = True,
    max_error: Annotated[float, typer.Option(help="Its budget of accuracy, or of error.", min=0)] = 0.01,
    html: Annotated[Path | None, typer.Option(help="Write the report to this one file, with charts.")] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write the scalars for TensorBoard to this folder.")
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(metavar="FRAMEWORK=PATH", help="The Python that a framework lives in; repeatable."),
    ] = None,
    factory: Annotated[
        str | None, typer.Option(help="module:callable that builds a state dict's module.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="An input's shape, NAME=1,3,224,224; repeatable.")
    ] = None,
    inputs: Annotated[str, typer.Option(help="Tensors to cut a TensorFlow graph at: N,N.")] = "",
    outputs: Annotated[str, typer.Option(help="Tensors to end it at: N,N.")] = "",
    trust_pickle: Annotated[bool, typer.Option(help="Unpickle: runs code from the file.")] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds that a candidate may hang.", min=1)] = 300,
    memory_limit: Annotated[int, typer.Option(help="MiB that a candidate may hold.", min=64)] = 8192,
    mean: Mean = None,
    scale: Scale = None,
    layout: Layout = None,
    key_file: KeyFile = None,
    passphrase: Passphrase = False,
    require_signature: RequireSignature = None,
    json_: Json = False,
) -> None:
    """Compare models in their own frameworks with onnxaccel, and say which to choose."""
    from onnxaccel.compare.document import document
    from onnxaccel.compare.frame import compare as run
    from onnxaccel.report import tensorboard as scalars
    from onnxaccel.report.comparison import show
    from onnxaccel.report.html import write
    from onnxaccel.runtime.measure import Limits

    if html is not None:
        writable(html)
    if require_signature is not None:
        from onnxaccel.graph.files import verify

        for path in source:
            verify(path, require_signature)
    found = run(
        source,
        data,
        validation=val,
        inference=inference,
        train=train,
        training=settings_of(training, "--training"),
        goal=goal,
        ep=ep,
        threads=threads,
        batch_sizes=_numbers(batch_sizes),
        rounds=rounds,
        seconds=seconds,
        seed=seed,
        only=only or (),
        optimized=optimize,
        max_error=max_error,
        factory=factory,
        shapes=dict(shape_of(text) for text in shape or ()),
        inputs=names(inputs),
        outputs=names(outputs),
        trust_pickle=trust_pickle,
        preprocessing=preprocessing_of(mean, scale, layout),
        pythons=dict(map(_python, python or ())),
        limits=Limits(time_limit, memory_limit * 2**20),
        progress=say,
    )
    if json_:
        print_json(document(found))
    else:
        show(found)
    if html is not None:
        write(found, html)
        say(f"written to {html}")
    if tensorboard is not None:
        scalars.write(found, tensorboard)
    if not all(entry.answered for entry in found.sources):
        raise typer.Exit(1)


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in names(text)]
    except ValueError:
        raise typer.BadParameter(f"--batch-sizes {text!r}: write numbers, as in 1,8,32") from None


def _python(text: str) -> tuple[str, str]:
    """Framework and path of ``FRAMEWORK=PATH``."""
    framework, equals, path = text.partition("=")
    if not equals or not path:
        raise typer.BadParameter(
            f"--python {text!r}: write FRAMEWORK=PATH, as in caffe=/opt/caffe/bin/python"
        )
    return framework, path
