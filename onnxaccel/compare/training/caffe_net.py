"""A Caffe network as all sides train it: Input layers for its data, one loss on its scores, one solver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format

from onnxaccel.compare.training.plan import Plan
from onnxaccel.converters.caffe.assemble import DATA
from onnxaccel.converters.caffe.deploy import append_computed
from onnxaccel.converters.caffe.layers.head import HEADS
from onnxaccel.converters.caffe.net import Layer, read_net
from onnxaccel.converters.caffe.schema import message
from onnxaccel.errors import ConversionError

_LABEL, _LOSS = "onnxaccel_label", "onnxaccel_loss"

_TYPES = {"sgd": "SGD", "adam": "Adam"}
"""Caffe's name of an optimizer."""


def write(
    prototxt: Path,
    folder: Path,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    plan: Plan,
    solver: dict[str, Any],
) -> dict[str, Any]:
    """Write the networks of both phases and their solver.

    Args:
        prototxt: The network, with data layers or without.
        folder: Where to.
        shapes: Shape of a batch and of its targets.
        plan: How all sides train.
        solver: The solver's settings, as `solver_settings` gives them.

    Returns:
        "solver" (its path), "net" (names of the blobs "data", "label", "loss" and "scores") and "drops"
        (whether there is Dropout).

    Raises:
        ConversionError: The network cannot be read, or cannot be trained so.
    """
    if plan.loss != "cross_entropy":
        raise ConversionError(
            f"Caffe has no loss with the divisor of {plan.loss}; compare with cross_entropy"
        )
    trained = read_net(prototxt, "TRAIN")
    drops = [layer for layer in trained if layer.type == "Dropout"]
    for layer in [] if plan.dropout else drops:
        layer.proto.dropout_param.dropout_ratio = 0.0
    data, scores = _data(trained, prototxt), _scores(trained)
    names = {"data": data, "label": _LABEL, "loss": _LOSS, "scores": scores}
    nets = {}
    for phase, layers in (("TRAIN", trained), ("TEST", read_net(prototxt, "TEST"))):
        net = _network(layers, data, scores, shapes[0])
        if phase == "TRAIN":
            net.layer.add(name=_LABEL, type="Input", top=[_LABEL]).input_param.shape.add(dim=shapes[1])
            net.layer.add(name=_LOSS, type="SoftmaxWithLoss", bottom=[scores, _LABEL], top=[_LOSS])
        nets[phase] = folder / f"{phase.lower()}.prototxt"
        nets[phase].write_text(text_format.MessageToString(net))
    file = folder / "solver.prototxt"
    lines = [f'train_net: "{nets["TRAIN"]}"', f'test_net: "{nets["TEST"]}"', "test_iter: 1"]
    lines += ["test_interval: 1000000000", "test_initialization: false", "solver_mode: CPU"]
    lines += [
        f'{key}: "{value}"' if isinstance(value, str) else f"{key}: {value}" for key, value in solver.items()
    ]
    file.write_text("\n".join(lines) + "\n")
    return {"solver": str(file), "net": names, "drops": bool(drops)}


def solver_settings(plan: Plan, seed: int) -> dict[str, Any]:
    """What a solver.prototxt says of an optimizer; the rate is constant, so that its SGD is torch's.

    Raises:
        ConversionError: Caffe has no such optimizer.
    """
    settings, kind = plan.settings, _TYPES.get(plan.optimizer)
    if kind is None:
        raise ConversionError(f"Caffe has no {plan.optimizer}; compare with sgd or adam")
    common = {
        "base_lr": settings["lr"],
        "lr_policy": "fixed",
        "max_iter": plan.max_steps,
        "weight_decay": settings["weight_decay"],
        "random_seed": seed,
    }
    if plan.optimizer == "adam":
        moments = {"momentum": settings["beta1"], "momentum2": settings["beta2"], "delta": settings["eps"]}
        return common | {"type": kind} | moments
    kind = "Nesterov" if settings["nesterov"] else kind
    return common | {"type": kind, "momentum": settings["momentum"]}


def _data(layers: list[Layer], prototxt: Path) -> str:
    """The blob of the network's input."""
    blobs = [layer.tops[0] for layer in layers if layer.type in DATA or layer.type == "Input"]
    if not blobs:
        raise ConversionError(f"{prototxt}: no layer of the TRAIN phase brings data")
    return blobs[0]


def _scores(layers: list[Layer]) -> str:
    """The blob that the loss is taken of: what the softmax reads, else what comes last."""
    heads = [layer for layer in layers if layer.type == "SoftmaxWithLoss"]
    if not heads:
        heads = [layer for layer in layers[-1:] if layer.type == "Softmax"]
    if heads:
        return heads[0].bottoms[0]
    return [layer for layer in layers if layer.type not in HEADS][-1].tops[0]


def _network(layers: list[Layer], data: str, scores: str, shape: tuple[int, ...]) -> Any:
    """The layers that lead from the data to the scores."""
    net = message("NetParameter")(name="onnxaccel")
    net.layer.add(name=data, type="Input", top=[data]).input_param.shape.add(dim=shape)
    ends = [layer for layer in layers if layer.type == "Softmax" and layer.bottoms == [scores]]
    known = append_computed(net, [layer for layer in layers if layer not in ends], {data})
    if scores not in known:
        raise ConversionError(f"blob {scores!r} cannot be computed from {data!r} alone")
    return net
