"""`onnxaccel train`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
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
    Out,
    Scale,
    StrictEp,
    Threads,
    Workers,
    group_of,
    merged,
    names,
    provider_of,
    shared,
    with_preprocessing,
    writable,
)
from onnxaccel.cli.output import print_json
from onnxaccel.cli.protection import KeyFile, Passphrase, RequireSignature, may_resume
from onnxaccel.cli.solve import train_by_solver


@app.command()
def train(
    context: typer.Context,
    model: ModelFile,
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    val: Annotated[str | None, typer.Option(help="Validation data, evaluated after each epoch.")] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="cross_entropy, nll, multi_margin, mse, l1, huber, smooth_l1, bce, bce_with_logits, kl_div, "
            "hinge, cosine, ctc, or output: a number that the model itself computes. By default that of a "
            "Caffe network's own head, else cross_entropy."
        ),
    ] = None,
    loss_option: LossOption = None,
    optimizer: Annotated[
        str,
        typer.Option(
            help="sgd, adam, adamw, nadam, radam, rmsprop, adagrad, adadelta, lion or lamb; torch's formulas."
        ),
    ] = "adamw",
    lr: Annotated[float | None, typer.Option(help="Learning rate; by default the optimizer's own.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum (sgd).")] = None,
    nesterov: Annotated[bool, typer.Option(help="Nesterov momentum (sgd).")] = False,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.")] = None,
    optimizer_option: Annotated[
        list[str] | None,
        typer.Option(help="Any setting of the optimizer, by torch's name: betas=0.9,0.98; repeatable."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            help="Settings for the parameters that a pattern matches, or @bias or @norm: "
            "'encoder.*:lr_mult=0.1,weight_decay=0'; repeatable, later ones win."
        ),
    ] = None,
    no_decay_bias_norm: Annotated[
        bool, typer.Option("--no-decay-bias-norm", help="No weight decay on biases and normalisations.")
    ] = False,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave the parameters that a pattern matches as they are: 'features.*'; repeatable.",
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(metavar="N", help="Replace the last layer by a new one for N classes.", min=1),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="Train as Caffe does, by this solver.prototxt; 'recorded' is the one of the conversion."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Epochs in all.", min=1)] = 5,
    batch_size: Annotated[int, typer.Option(help="Samples per batch.", min=1)] = 64,
    ep: Ep = "auto",
    ep_option: EpOption = None,
    strict_ep: StrictEp = False,
    engine: Annotated[
        str, typer.Option(help="graph, or ort-training: onnxruntime's own packages up to 1.19.2.")
    ] = "graph",
    threads: Threads = 0,
    precision: Annotated[
        str, typer.Option(help="fp32; bf16 or fp16 for products in that type, weights in float32.")
    ] = "fp32",
    clip_norm: Annotated[
        float | None, typer.Option(help="Scale gradients down to this norm, all together.")
    ] = None,
    clip_value: Annotated[float | None, typer.Option(help="Cut each gradient's elements at this.")] = None,
    accumulate: Annotated[int, typer.Option(help="Batches per update of the parameters.", min=1)] = 1,
    ema: Annotated[
        float | None,
        typer.Option(help="Average the weights with this decay; validate and export the average."),
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(help="constant, step, multistep, exponential, polynomial, cosine, one_cycle, plateau."),
    ] = "constant",
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.", min=0)] = 0,
    schedule_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the schedule; repeatable.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the images.")] = False,
    crop: Annotated[int, typer.Option(help="Pad images by so many pixels and crop at random.", min=0)] = 0,
    brightness: Annotated[float, typer.Option(help="Strength of random brightness, 0 to 1.")] = 0.0,
    contrast: Annotated[float, typer.Option(help="Strength of random contrast, 0 to 1.")] = 0.0,
    saturation: Annotated[float, typer.Option(help="Strength of random saturation, 0 to 1.")] = 0.0,
    metrics: Annotated[str, typer.Option(help="Further metrics of --val: top5, mae, confusion.")] = "",
    monitor: Annotated[
        str | None, typer.Option(help="What the best epoch is chosen by; val_loss where there is --val.")
    ] = None,
    early_stopping: Annotated[
        int | None, typer.Option(metavar="EPOCHS", help="Stop after so many epochs without a better.", min=1)
    ] = None,
    min_delta: Annotated[float, typer.Option(help="By how much an epoch must be better.", min=0)] = 0.0,
    best: Annotated[
        bool, typer.Option("--best", help="Export the best epoch's weights; early stopping always does.")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder to save the state in.")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Also save within an epoch.", min=1)
    ] = None,
    keep: Annotated[int, typer.Option(help="How many of the newest checkpoints to keep.", min=1)] = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    logdir: Annotated[Path | None, typer.Option(help="Write TensorBoard scalars to this folder.")] = None,
    detect_anomaly: Annotated[
        bool,
        typer.Option("--detect-anomaly", help="Check all parameters each step; name the node at fault."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the data's order and of Dropout.")] = 0,
    mean: Mean = None,
    scale: Scale = None,
    layout: Layout = None,
    workers: Workers = 1,
    key_file: KeyFile = None,
    passphrase: Passphrase = False,
    require_signature: RequireSignature = None,
    output: Out = None,
    json_: Json = False,
) -> None:
    """Train a model on onnxruntime."""
    from onnxaccel.data import Augmentation
    from onnxaccel.graph import losses, schedules
    from onnxaccel.graph.optimizers import NO_DECAY_ON_BIAS_AND_NORM, create
    from onnxaccel.report.terminal import EpochDisplay, show_epochs
    from onnxaccel.runtime.trainer import Trainer

    target = writable(output or model.with_suffix(".trained.onnx"))
    if solver is not None:
        if workers > 1:
            raise typer.BadParameter("--solver trains in one process; leave out --workers")
        loaded = with_preprocessing(model, mean, scale, layout, require_signature)
        may_resume(loaded, resume, require_signature)
        return train_by_solver(context, loaded, solver, provider_of(ep, ep_option, strict_ep), target)
    shared(workers)
    given = {"lr": lr, "momentum": momentum, "nesterov": nesterov or None, "weight_decay": weight_decay}
    settings = {name: value for name, value in given.items() if value is not None}
    settings |= merged(optimizer_option, "--optimizer-option")
    groups = [*(NO_DECAY_ON_BIAS_AND_NORM if no_decay_bias_norm else ()), *map(group_of, group or ())]
    rates = schedules.create(schedule, {"warmup": warmup} | merged(schedule_option, "--schedule-option"))
    loaded = with_preprocessing(model, mean, scale, layout, require_signature)
    may_resume(loaded, resume, require_signature)
    loss, own = (loss, {}) if loss else losses.fitting(loaded.metadata.heads)
    trainer = Trainer(
        loaded,
        loss=losses.create(loss, own | merged(loss_option, "--loss-option")),
        optimizer=create(optimizer, settings | {"groups": groups}),
        ep=provider_of(ep, ep_option, strict_ep),
        seed=seed,
        threads=threads,
        clip_norm=clip_norm,
        clip_value=clip_value,
        accumulate=accumulate,
        ema=ema,
        precision=precision,
        freeze=freeze or (),
        num_classes=num_classes,
        engine=engine,
        detect_anomaly=detect_anomaly,
    )
    augmentation = Augmentation(flip, crop, brightness, contrast, saturation)
    with EpochDisplay(epochs) if trainer.leads else nullcontext() as display:
        history = trainer.fit(
            data,
            val,
            epochs=epochs,
            batch_size=batch_size,
            schedule=rates,
            augmentation=augmentation if augmentation != Augmentation() else None,
            metrics=names(metrics),
            monitor=monitor,
            early_stopping=early_stopping,
            min_delta=min_delta,
            best=best,
            checkpoint_folder=checkpoint,
            checkpoint_every=checkpoint_every,
            keep=keep,
            resume=resume,
            logdir=logdir,
            on_tick=display.tick if display is not None else lambda tick: None,
        )
    if not trainer.leads:
        return
    trainer.export(target)
    if json_:
        epochs_ = [{k: v for k, v in asdict(e).items() if k != "metrics" or v} for e in history.epochs]
        print_json(asdict(history) | {"epochs": epochs_, "output": str(target)})
    else:
        show_epochs(history.epochs)
        print(f"{history.samples_per_second:,.0f} samples/s on {history.provider}; trained model: {target}")
