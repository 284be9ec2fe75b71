"""The loss that a Caffe network was trained with, as the metadata of its conversion has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxaccel.errors import TrainingError

_FITTING = {
    "EuclideanLoss": "mse",
    "SigmoidCrossEntropyLoss": "bce_with_logits",
    "SmoothL1Loss": "smooth_l1",
    "SoftmaxWithLoss": "cross_entropy",
}
"""Losses of the same minimum; Caffe's own divisors come with its solver."""


def fitting(heads: Sequence[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The name and the settings of the loss that fits the heaviest of a network's heads.

    Args:
        heads: ``Metadata.heads``. Without any loss among them it is "cross_entropy".

    Raises:
        TrainingError: The heaviest loss has no counterpart here.
    """
    losses = [head for head in heads if "Loss" in head["type"] and head["loss_weight"] > 0]
    if not losses:
        return "cross_entropy", {}
    head = max(losses, key=lambda one: float(one["loss_weight"]))
    name = _FITTING.get(head["type"])
    if name is None:
        raise TrainingError(
            f"the network was trained with {head['type']} (layer {head['layer']!r}), which is none of ours; "
            "choose a --loss"
        )
    ignored = head["settings"].get("ignore_label")
    return name, {"ignore_index": ignored} if name == "cross_entropy" and ignored is not None else {}
