"""`onnxaccel train --solver`: training as Caffe's solver trains."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from onnxaccel.cli.output import print_json

RECORDED = "recorded"
"""What stands for the solver that the model was converted with."""

_FREE = frozenset(
    {
        "model",
        "data",
        "val",
        "solver",
        "loss",
        "batch_size",
        "ep",
        "ep_option",
        "strict_ep",
        "threads",
        "checkpoint",
        "keep",
        "resume",
        "logdir",
        "seed",
        "mean",
        "scale",
        "layout",
        "output",
        "key_file",
        "passphrase",
        "require_signature",
        "json_",
    }
)
"""Options of `train` that a solver leaves free."""


def train_by_solver(context: typer.Context, model: Any, solver: str, provider: Any, target: Path) -> None:
    """Train by a solver.prototxt, and print what came out.

    Args:
        context: The parameters of `onnxaccel train`.
        model: The model, its preprocessing as the options have it.
        solver: The path of the solver, or `RECORDED`.
        provider: The execution provider.
        target: Where the trained model goes.
    """
    from onnxaccel.report.terminal import EpochDisplay, show
    from onnxaccel.runtime.solving import solve

    given = {name: context.params[name] for name in context.params if _given(context, name)}
    taken = sorted(set(given) - _FREE)
    if taken:
        raise typer.BadParameter(f"--solver says how to train; leave out --{taken[0].replace('_', '-')}")
    settings = _solver(solver, model)
    interval = settings.test_interval or settings.max_iter
    with EpochDisplay(-(-settings.max_iter // interval)) as display:
        solved = solve(
            model,
            settings,
            context.params["data"],
            context.params["val"],
            loss=given.get("loss"),
            batch_size=given.get("batch_size"),
            ep=provider,
            threads=context.params["threads"],
            seed=given.get("seed"),
            checkpoint_folder=context.params["checkpoint"],
            keep=context.params["keep"],
            resume=context.params["resume"],
            logdir=context.params["logdir"],
            on_tick=display.tick,
        )
    solved.trainer.export(target)
    result = {
        "iterations": solved.iterations,
        "iterations_per_second": solved.iterations_per_second,
        "tests": [asdict(test) for test in solved.tests],
        **asdict(solved.history),
        "output": str(target),
    }
    if context.params["json_"]:
        print_json(result)
        return
    rows = [(test.iteration, test.loss, test.accuracy) for test in solved.tests]
    show("Tests", ("iteration", "loss", "accuracy"), rows)
    speed = f"{solved.iterations_per_second:,.1f} iterations/s on {solved.history.provider}"
    print(f"{speed}; trained model: {target}")


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _solver(text: str, model: Any) -> Any:
    from onnxaccel.converters.caffe.solver import read_solver
    from onnxaccel.graph.solver import Solver

    if text != RECORDED:
        return read_solver(Path(text))
    if model.metadata.solver is None:
        raise typer.BadParameter("--solver recorded: the model was converted without --solver; give the file")
    return Solver.of(model.metadata.solver)
