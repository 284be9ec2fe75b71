"""`onnxaccel evaluate` and `onnxaccel predict`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from onnxaccel.cli.app import app
from onnxaccel.cli.options import (
    DATA_HELP,
    Ep,
    EpOption,
    Json,
    Layout,
    LossOption,
    Mean,
    ModelFile,
    Scale,
    StrictEp,
    Threads,
    Workers,
    merged,
    names,
    provider_of,
    shared,
    with_preprocessing,
)
from onnxaccel.cli.output import print_json
from onnxaccel.cli.protection import KeyFile, Passphrase, RequireSignature


@app.command()
def evaluate(
    model: ModelFile,
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    loss: Annotated[str | None, typer.Option(help="Loss; by default it follows from the data.")] = None,
    loss_option: LossOption = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples per batch; 256, or what optimize recorded.", min=1)
    ] = None,
    ep: Ep = "auto",
    ep_option: EpOption = None,
    strict_ep: StrictEp = False,
    threads: Threads = 0,
    metrics: Annotated[str, typer.Option(help="Further metrics: top5, mae, confusion.")] = "",
    workers: Workers = 1,
    mean: Mean = None,
    scale: Scale = None,
    layout: Layout = None,
    key_file: KeyFile = None,
    passphrase: Passphrase = False,
    require_signature: RequireSignature = None,
    json_: Json = False,
) -> None:
    """Measure loss and accuracy over a data set."""
    from onnxaccel.graph import losses
    from onnxaccel.report.terminal import show
    from onnxaccel.runtime.distributed import leads
    from onnxaccel.runtime.evaluator import evaluate as run

    shared(workers)
    settings = merged(loss_option, "--loss-option")
    found = run(
        with_preprocessing(model, mean, scale, layout, require_signature),
        data,
        loss=losses.create(loss or "cross_entropy", settings) if settings else loss,
        ep=provider_of(ep, ep_option, strict_ep),
        batch_size=batch_size,
        threads=threads,
        metrics=names(metrics),
    )
    if not leads():
        return
    document = asdict(found)
    further = document.pop("metrics")
    if json_:
        print_json(document | ({"metrics": further} if further else {}))
        return
    confusion = further.pop("confusion", None)
    show("Evaluation", ("", ""), [(key.replace("_", " "), v) for key, v in (document | further).items()])
    if confusion is not None:
        columns = ["class", *(str(c) for c in range(len(confusion)))]
        show("Confusion: true class by predicted", columns, [(c, *row) for c, row in enumerate(confusion)])


@app.command()
def predict(
    model: ModelFile,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="An image, a .npy or .npz file, or a data SPEC.")
    ],
    ep: Ep = "auto",
    ep_option: EpOption = None,
    strict_ep: StrictEp = False,
    mean: Mean = None,
    scale: Scale = None,
    layout: Layout = None,
    key_file: KeyFile = None,
    passphrase: Passphrase = False,
    require_signature: RequireSignature = None,
    json_: Json = False,
) -> None:
    """Run a model on one input and print what it gives."""
    from onnxaccel.report.terminal import show
    from onnxaccel.runtime.predictor import predict as run

    predictions = run(
        with_preprocessing(model, mean, scale, layout, require_signature),
        source,
        ep=provider_of(ep, ep_option, strict_ep),
    )
    if json_:
        print_json([asdict(p) for p in predictions])
    else:
        show(
            "Predictions",
            ("sample", "output", "values"),
            [(p.sample, p.output, p.summary()) for p in predictions],
        )
