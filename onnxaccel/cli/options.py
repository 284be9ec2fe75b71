"""Options that several verbs share, and what turns their text into values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxaccel.cli.output import say
from onnxaccel.errors import OutputError
from onnxaccel.files import scratch_folder

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX model.")]
Ep = Annotated[
    str, typer.Option(help="Execution provider: auto, cpu, cuda, tensorrt, tensorrt-rtx or openvino.")
]
EpOption = Annotated[
    list[str] | None, typer.Option("--ep-option", help="The provider's option NAME=VALUE; repeatable.")
]
StrictEp = Annotated[bool, typer.Option("--strict-ep", help="Fail where nodes fall back to the CPU.")]
Out = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the result.")]
Threads = Annotated[int, typer.Option(help="Threads within an operator; 0: onnxruntime decides.")]
Workers = Annotated[int, typer.Option(help="Processes on this machine that share each batch.", min=1)]
Mean = Annotated[
    str | None, typer.Option(help="Subtracted from raw data: one number, or one per channel, N,N,N.")
]
Scale = Annotated[float | None, typer.Option(help="Raw data is multiplied by this, after the mean.")]
LossOption = Annotated[
    list[str] | None,
    typer.Option(
        "--loss-option",
        help="A setting of the loss, by torch's name: label_smoothing=0.1, axis=-1; repeatable.",
    ),
]
Layout = Annotated[str | None, typer.Option(help="Layout of image inputs: NCHW or NHWC.")]
DATA_HELP = "Class folders of images, MNIST IDX, .npz, .csv, sklearn:digits; #train, #0:8000 pick a part."


def names(text: str) -> list[str]:
    """The names in ``N,N,N``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def settings_of(text: str, option: str) -> dict[str, Any]:
    """The settings in ``NAME=VALUE,NAME=VALUE``; a value is a word, a flag or one or more numbers."""
    values: dict[str, list[Any]] = {}
    for part in names(text):
        name, equals, value = part.rpartition("=")
        if equals:
            values[name.strip()] = []
        if not values:
            raise typer.BadParameter(f"{option} {text!r}: write NAME=VALUE, or NAME=VALUE,VALUE")
        values[list(values)[-1]].append(_value(value.strip()))
    return {name: tuple(parts) if len(parts) > 1 else parts[0] for name, parts in values.items()}


def merged(texts: list[str] | None, option: str) -> dict[str, Any]:
    """The settings of an option that was given several times."""
    return {name: value for text in texts or () for name, value in settings_of(text, option).items()}


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def group_of(text: str) -> tuple[str, dict[str, Any]]:
    """Pattern and settings of ``PATTERN:lr_mult=0.1,weight_decay=0``."""
    pattern, colon, settings = text.rpartition(":")
    if not colon or not pattern:
        raise typer.BadParameter(f"--group {text!r}: write PATTERN:NAME=VALUE, as in '*.bias:weight_decay=0'")
    return pattern, settings_of(settings, "--group")


def shape_of(text: str) -> tuple[str, tuple[int | str, ...]]:
    """Name and dimensions of ``NAME=1,3,224,224``; words are names of dynamic dimensions."""
    name, _, dims = text.rpartition("=")
    try:
        return name, tuple(d if d.isidentifier() else int(d) for d in dims.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no shape; write NAME=1,3,224,224") from None


def provider_of(ep: str, options: list[str] | None, strict: bool) -> Any:
    """The provider that --ep, --ep-option and --strict-ep ask for; its name alone where that says all."""
    if not options and not strict:
        return ep
    from onnxaccel.runtime.providers import resolve
    from onnxaccel.runtime.providers.options import parse

    return resolve(ep, parse(options or ()), strict)


def shared(workers: int) -> None:
    """Run this command in so many processes instead, where this is not one of them yet."""
    from onnxaccel.runtime.distributed import size_of_group
    from onnxaccel.runtime.launch import launch

    if workers > 1 and size_of_group() == 1:
        raise typer.Exit(launch(sys.argv[1:], workers, say=say))


def writable(path: Path) -> Path:
    """Refuse an output that cannot be written before any work is done."""
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder {folder} does not exist; create it first")
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "a folder of that name is there")
        with scratch_folder(folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); choose another place with -o"
        ) from None
    return path


def with_preprocessing(
    path: Path,
    mean: str | None,
    scale: float | None,
    layout: str | None,
    require_signature: Path | None = None,
) -> Any:
    """The model, with its preprocessing changed by what the options say; signed, where that is demanded."""
    from onnxaccel.graph.model import Model

    model = Model.load(path, public_key=require_signature)
    for name, value in preprocessing_of(mean, scale, layout).items():
        setattr(model.metadata.preprocessing, name, value)
    return model


def preprocessing_of(mean: str | None, scale: float | None, layout: str | None) -> dict[str, Any]:
    """The fields of `onnxaccel.graph.model.Preprocessing` that options give."""
    given: dict[str, Any] = {}
    try:
        if mean is not None:
            given["mean"] = [float(n) for n in names(mean)]
    except ValueError:
        raise typer.BadParameter(f"--mean {mean!r}: give one number, or one per channel") from None
    if scale is not None:
        given["scale"] = scale
    if layout is not None:
        if layout not in ("NCHW", "NHWC"):
            raise typer.BadParameter(f"--layout {layout!r}: choose NCHW or NHWC")
        given["layout"] = layout
    return given
