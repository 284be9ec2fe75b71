"""What all sides of a training share: the optimizer and its settings, the loss, batches and epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from onnxaccel.data import Source, label_kind
from onnxaccel.errors import TrainingError
from onnxaccel.graph import optimizers
from onnxaccel.graph.settings import Settings

LOSSES = ("cross_entropy", "mse", "bce_with_logits")
"""Losses that frameworks have with one formula."""

_SETTINGS: dict[str, tuple[str, ...]] = {
    "sgd": ("lr", "momentum", "nesterov", "weight_decay"),
    "adam": ("lr", "beta1", "beta2", "eps", "weight_decay"),
    "adamw": ("lr", "beta1", "beta2", "eps", "weight_decay"),
}
"""Optimizers that can be compared, and their settings here."""


@dataclass(frozen=True)
class Plan(Settings):
    """How all sides train.

    Attributes:
        optimizer: "sgd", "adam" or "adamw".
        lr: The learning rate, constant; None: 0.01 for sgd, else 0.001.
        momentum: Of sgd.
        nesterov: Of sgd.
        beta1: Of adam and adamw: decay of the first moment.
        beta2: Decay of the second moment.
        eps: What keeps adam's division finite. Keras and Caffe add it before the correction of the moments'
            bias, torch after it.
        weight_decay: Added to the gradient; in adamw taken off the weights.
        dropout: Whether Dropout drops. Each side draws masks of its own; without them the loss curves of all
            sides are the same but for rounding.
        loss: "cross_entropy", "mse" or "bce_with_logits"; "": what fits the data's targets.
        batch_size: Samples per batch; all batches are full, what is left of an epoch is left out.
        epochs: Passes over the data.
        max_steps: Steps in all, at most; each epoch is shortened alike.
    """

    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    dropout: bool = True
    loss: str = ""
    batch_size: int = 64
    epochs: int = 3
    max_steps: int = 600

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in _SETTINGS:
            raise TrainingError(
                f"unknown optimizer {self.optimizer!r} in a comparison; choose one of {', '.join(_SETTINGS)}"
            )
        if self.loss not in ("", *LOSSES):
            raise TrainingError(
                f"unknown loss {self.loss!r} in a comparison; choose one of {', '.join(LOSSES)}"
            )
        for name in ("batch_size", "epochs", "max_steps"):
            if getattr(self, name) < 1 or not isinstance(getattr(self, name), int):
                raise TrainingError(f"training: {name} must be a whole number above 0")
        if self.lr is None:
            object.__setattr__(self, "lr", 0.01 if self.optimizer == "sgd" else 0.001)
        given = self.settings
        betas = {"betas": (given.pop("beta1"), given.pop("beta2"))} if "beta1" in given else {}
        optimizers.create(self.optimizer, **given, **betas)  # refuses what is out of range

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, data: Source) -> Plan:
        """A plan from the settings that were given, the loss chosen by the data.

        Raises:
            TrainingError: There is no such setting, or it is out of range.
            DataError: The data cannot be read.
        """
        given = dict(given or {})
        known = [field.name for field in fields(cls)]
        foreign = sorted(set(given) - set(known))
        if foreign:
            raise TrainingError(f"a comparison's training has no {foreign[0]}; it has {', '.join(known)}")
        plan = cls(**given)
        if not plan.loss:
            plan = cls(**{**asdict(plan), "loss": label_kind(data)})
        return plan

    @property
    def settings(self) -> dict[str, Any]:
        """The optimizer's settings, by the names of this class."""
        return {name: getattr(self, name) for name in _SETTINGS[self.optimizer]}

    @property
    def labels(self) -> bool:
        """Whether the targets are class labels."""
        return self.loss == "cross_entropy"

    def shared(self) -> dict[str, float | int | str]:
        """What `onnxaccel.compare.results.Settings.training` says."""
        return {
            "optimizer": self.optimizer,
            **self.settings,
            "dropout": self.dropout,
            "loss": self.loss,
            "batch_size": self.batch_size,
            "epochs": self.epochs,
        }

    def options(self) -> str:
        """The options of ``onnxaccel train`` that train so."""
        given = self.settings
        words = [f"--optimizer {self.optimizer} --lr {given['lr']:g}"]
        if self.optimizer == "sgd":
            words += [f"--momentum {given['momentum']:g}"] + ["--nesterov"] * given["nesterov"]
        else:
            words.append(f"--optimizer-option betas={given['beta1']:g},{given['beta2']:g}")
        words.append(f"--weight-decay {given['weight_decay']:g}")
        words.append(f"--loss {self.loss} --batch-size {self.batch_size} --epochs {self.epochs}")
        return " ".join(words)
