"""The command line: each verb reads its options, calls one function, and prints the result.

Standard output carries results (with ``--json`` exactly one JSON document); progress and errors go to
standard error. Exit status: 0 done, 1 failed with one clear line, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxaccel.errors import AccelError, OutputError

_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""Wrong usage; from click or, in newer versions of typer, from its own copy of it."""

app = typer.Typer(
    name="onnxaccel",
    help="Convert TensorFlow, PyTorch and Caffe models to ONNX, train them on onnxruntime, and compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX model.")]
Ep = Annotated[str, typer.Option(help="Execution provider: auto, cpu, cuda or tensorrt.")]
Out = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the result.")]
Threads = Annotated[int, typer.Option(help="Threads within an operator; 0: onnxruntime decides.")]
Mean = Annotated[
    str | None, typer.Option(help="Subtracted from raw data: one number, or one per channel, N,N,N.")
]
Scale = Annotated[float | None, typer.Option(help="Raw data is multiplied by this, after the mean.")]
Layout = Annotated[str | None, typer.Option(help="Layout of image inputs: NCHW or NHWC.")]
DATA_HELP = "Class folders of images, MNIST IDX, .npz, .csv, sklearn:digits; #train, #0:8000 pick a part."


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
        list[str] | None, typer.Option(help="An input's shape, NAME=1,3,224,224; -1 is dynamic.")
    ] = None,
    factory: Annotated[
        str | None, typer.Option(help="module:callable that builds a state dict's module.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset to write.", min=18)] = 18,
    tolerance: Annotated[float, typer.Option(help="Largest relative error to the source framework.")] = 1e-4,
    verify: Annotated[bool, typer.Option(help="Compare with the source framework.")] = True,
    trust_pickle: Annotated[bool, typer.Option(help="Unpickle: runs code from the file.")] = False,
    json_: Json = False,
) -> None:
    """Convert a model to ONNX and prove that the numbers match."""
    from onnxaccel.converters import convert as run
    from onnxaccel.graph.inspect import interface, operators
    from onnxaccel.report.terminal import show

    target = _writable(output or Path(source[0].stem + ".onnx"))
    model = run(
        *source,
        trainable=trainable,
        inputs=_names(inputs),
        outputs=_names(outputs),
        shapes=dict(_shape(s) for s in shape or ()),
        factory=factory,
        opset=opset,
        tolerance=tolerance,
        verify=verify,
        trust_pickle=trust_pickle,
        progress=_say,
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
        _print_json(result)
    else:
        show("Converted", ("", ""), [(key.replace("_", " "), _plain(value)) for key, value in result.items()])


@app.command()
def train(
    model: ModelFile,
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    val: Annotated[str | None, typer.Option(help="Validation data, evaluated after each epoch.")] = None,
    loss: Annotated[str, typer.Option(help="cross_entropy, mse or bce_with_logits.")] = "cross_entropy",
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adamw",
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    momentum: Annotated[float | None, typer.Option(help="Momentum (sgd).")] = None,
    nesterov: Annotated[bool, typer.Option(help="Nesterov momentum (sgd).")] = False,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.")] = None,
    epochs: Annotated[int, typer.Option(help="Epochs in all.", min=1)] = 5,
    batch_size: Annotated[int, typer.Option(help="Samples per batch.", min=1)] = 64,
    ep: Ep = "auto",
    threads: Threads = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder to save the state in.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the data's order and of Dropout.")] = 0,
    mean: Mean = None,
    scale: Scale = None,
    layout: Layout = None,
    output: Out = None,
    json_: Json = False,
) -> None:
    """Train a model on onnxruntime."""
    from onnxaccel.graph.optimizers import create
    from onnxaccel.report.terminal import EpochDisplay, show_epochs
    from onnxaccel.runtime.trainer import Trainer

    target = _writable(output or model.with_suffix(".trained.onnx"))
    settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov or None, "weight_decay": weight_decay}
    trainer = Trainer(
        _with_preprocessing(model, mean, scale, layout),
        loss=loss,
        optimizer=create(optimizer, **{k: v for k, v in settings.items() if v is not None}),
        ep=ep,
        seed=seed,
        threads=threads,
    )
    with EpochDisplay(epochs) as display:
        history = trainer.fit(
            data,
            val,
            epochs=epochs,
            batch_size=batch_size,
            checkpoint_folder=checkpoint,
            resume=resume,
            on_tick=display.tick,
        )
    trainer.export(target)
    if json_:
        _print_json(asdict(history) | {"output": str(target)})
    else:
        show_epochs(history.epochs)
        print(f"{history.samples_per_second:,.0f} samples/s on {history.provider}; trained model: {target}")


@app.command()
def evaluate(
    model: ModelFile,
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    loss: Annotated[str | None, typer.Option(help="Loss; by default it follows from the data.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per batch.", min=1)] = 256,
    ep: Ep = "auto",
    threads: Threads = 0,
    mean: Mean = None,
    scale: Scale = None,
    layout: Layout = None,
    json_: Json = False,
) -> None:
    """Measure loss and accuracy over a data set."""
    from onnxaccel.report.terminal import show
    from onnxaccel.runtime.evaluator import evaluate as run

    found = run(
        _with_preprocessing(model, mean, scale, layout),
        data,
        loss=loss,
        ep=ep,
        batch_size=batch_size,
        threads=threads,
    )
    if json_:
        _print_json(asdict(found))
    else:
        show("Evaluation", ("", ""), [(key.replace("_", " "), value) for key, value in asdict(found).items()])


@app.command()
def predict(
    model: ModelFile,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="An image, a .npy or .npz file, or a data SPEC.")
    ],
    ep: Ep = "auto",
    mean: Mean = None,
    scale: Scale = None,
    layout: Layout = None,
    json_: Json = False,
) -> None:
    """Run a model on one input and print what it gives."""
    from onnxaccel.report.terminal import show
    from onnxaccel.runtime.predictor import predict as run

    predictions = run(_with_preprocessing(model, mean, scale, layout), source, ep=ep)
    if json_:
        _print_json([asdict(p) for p in predictions])
    else:
        show(
            "Predictions",
            ("sample", "output", "values"),
            [(p.sample, p.output, p.summary()) for p in predictions],
        )


@app.command()
def gradient(
    model: ModelFile,
    output: Out = None,
    wrt: Annotated[str, typer.Option(help="inputs, parameters, or names: N,N.")] = "inputs",
    json_: Json = False,
) -> None:
    """Write the gradient graph, in standard operators, for any ONNX runtime to run."""
    from onnxaccel.graph.autodiff import gradient as run
    from onnxaccel.graph.inspect import interface
    from onnxaccel.graph.model import Model
    from onnxaccel.report.terminal import show

    target = _writable(output or model.with_suffix(".gradient.onnx"))
    result = run(Model.load(model), wrt if wrt in ("inputs", "parameters") else _names(wrt))
    result.check()
    result.save(target)
    found = {
        "output": str(target),
        "inputs": interface(result.inputs),
        "outputs": interface(result.outputs),
        "nodes": result.graph.num_nodes(),
    }
    if json_:
        _print_json(found)
    else:
        show("Gradient graph", ("", ""), [(key, _plain(value)) for key, value in found.items()])


@app.command()
def inspect(model: ModelFile, json_: Json = False) -> None:
    """Show inputs, outputs, parameters and FLOPs, and what can be trained and what not."""
    from onnxaccel.graph.inspect import inspect as run
    from onnxaccel.graph.model import Model
    from onnxaccel.report.terminal import show_inspection

    found = run(Model.load(model))
    if json_:
        _print_json(asdict(found))
    else:
        show_inspection(str(model), found)


models_app = typer.Typer(
    help="The reference models, defined in TensorFlow, PyTorch and Caffe.", no_args_is_help=True
)
app.add_typer(models_app, name="models")


@models_app.command("list")
def models_list(json_: Json = False) -> None:
    """List the reference models."""
    from onnxaccel import models
    from onnxaccel.report.terminal import show

    found = [{"name": name, "description": models.describe(name)} for name in models.names()]
    if json_:
        _print_json(found)
    else:
        show("Reference models", ("name", "description"), [tuple(entry.values()) for entry in found])


@models_app.command("export")
def models_export(
    name: Annotated[str, typer.Argument(help="A name from `models list`.")],
    framework: Annotated[str, typer.Option(help="tensorflow, pytorch or caffe.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write into.")] = Path(),
    input_shape: Annotated[str, typer.Option(help="Shape of one sample, for instance 64 or 3,32,32.")] = "",
    classes: Annotated[int, typer.Option(help="Number of classes.", min=2)] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.")] = 0,
    json_: Json = False,
) -> None:
    """Write a reference model in its framework's own format, with freshly drawn weights."""
    from onnxaccel import models
    from onnxaccel.report.terminal import show

    shape = tuple(int(n) for n in _names(input_shape)) or None
    exported = models.export(name, framework, output, seed=seed, input_shape=shape, classes=classes)
    if json_:
        _print_json(asdict(exported))
    else:
        show("Exported", ("", ""), [(key, _plain(value)) for key, value in asdict(exported).items()])


@app.command()
def doctor(json_: Json = False) -> None:
    """Show devices, providers, frameworks and versions, and what is missing."""
    from onnxaccel.report.terminal import show_environment
    from onnxaccel.runtime.environment import examine

    found = examine()
    if json_:
        _print_json(asdict(found))
    else:
        show_environment(found)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        status = typer.main.get_command(app).main(words, prog_name="onnxaccel", standalone_mode=False)
    except _UsageError as error:
        error.show()
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except AccelError as error:
        if debug:
            raise
        _say(f"error: {error}")
        status = 1
    except BrokenPipeError:  # the reader of our output has left, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:
        if debug:
            raise
        _say(f"error: {type(error).__name__}: {error}; this is a bug in onnxaccel, --debug shows where")
        status = 1
    if status == 130:
        _say("interrupted; where --checkpoint was given, the state is saved and --resume goes on from it")
    sys.exit(status if isinstance(status, int) else 0)


def _say(line: str) -> None:
    print(" ".join(line.split("\n")), file=sys.stderr, flush=True)


def _print_json(document: Any) -> None:
    print(json.dumps(document, default=str))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_plain(entry)) for entry in value)
    return value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, dims = text.rpartition("=")
    try:
        return name, tuple(int(d) for d in dims.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no shape; write NAME=1,3,224,224") from None


def _writable(path: Path) -> Path:
    """Refuse an output that cannot be written before any work is done."""
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder {folder} does not exist; create it first")
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "a folder of that name is there")
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); choose another place with -o"
        ) from None
    return path


def _with_preprocessing(path: Path, mean: str | None, scale: float | None, layout: str | None) -> Any:
    from onnxaccel.graph.model import Model

    model = Model.load(path)
    preprocessing = model.metadata.preprocessing
    try:
        if mean is not None:
            preprocessing.mean = [float(n) for n in _names(mean)]
    except ValueError:
        raise typer.BadParameter(f"--mean {mean!r}: give one number, or one per channel") from None
    if scale is not None:
        preprocessing.scale = scale
    if layout is not None:
        if layout not in ("NCHW", "NHWC"):
            raise typer.BadParameter(f"--layout {layout!r}: choose NCHW or NHWC")
        preprocessing.layout = layout
    return model


if __name__ == "__main__":
    main()
