"""onnxaccel's side of a training: the trainable graph on one execution provider."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from onnxaccel.compare.training.curve import in_turns
from onnxaccel.graph import losses, optimizers
from onnxaccel.graph.model import Model
from onnxaccel.graph.solver import Solver
from onnxaccel.runtime.session import Session
from onnxaccel.runtime.trainer import Trainer

Array = npt.NDArray[Any]


class Side:
    """See `onnxaccel.compare.training.curve`."""

    def __init__(self, setup: dict[str, Any], x: Array, y: Array) -> None:
        model = Model.load(setup["model"])
        self.axis = setup["loss_settings"].get("axis", 1)
        drops = [node.name or "" for node in model.graph.all_nodes() if node.op_type == "Dropout"]
        self.notes = ["dropout"] if drops and setup["dropout"] else []
        model.metadata.frozen += [] if setup["dropout"] else drops
        self._trainer = Trainer(
            model,
            loss=losses.create(setup["loss"], setup["loss_settings"]),
            optimizer=_optimizer(setup, model),
            ep=setup["mode"],
            seed=setup["seed"],
            threads=setup["threads"],
            metrics=False,
        )
        self._threads = setup["threads"]
        self._session: Session | None = None

    def ready(self, x: Array, y: Array) -> tuple[Array, Array]:
        """The batch as it is."""
        return x, y

    def step(self, batch: tuple[Array, Array]) -> float:
        """One step."""
        return self._trainer.step(*batch)

    def timed(self, batches: list[Any]) -> Any:
        """Steps on these batches, the session of the scores out of the way."""
        self._session = None
        return in_turns(self.step, batches)

    def scores(self, x: Array) -> Array:
        """The scores of the trained model."""
        if self._session is None:
            self._session = Session(self._trainer.model(), self._trainer.provider, self._threads)
        found = self._session.run({self._session.input_names[0]: x})
        return found[self._session.output_names[0]]


def _optimizer(setup: dict[str, Any], model: Model) -> optimizers.Optimizer:
    """The optimizer; of a Caffe network Caffe's own, with the rates of its layers."""
    name, settings = setup["optimizer"], dict(setup["settings"])
    if setup["solver"] is not None:
        return Solver.of(setup["solver"]).optimizer(model.metadata.multipliers)
    if name != "sgd":
        settings["betas"] = settings.pop("beta1"), settings.pop("beta2")
    return optimizers.create(name, **settings)
