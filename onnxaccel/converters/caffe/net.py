"""Reading a network: prototxt and weights, brought to today's form and filtered for one phase."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.converters.caffe.schema import MAX_BYTES, message, parse_binary, parse_text
from onnxaccel.errors import ConversionError, MissingWeights

_V1_TYPES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}
"""Layer types of old networks whose names did not change by capitalisation alone."""


@dataclass
class Layer:
    """One layer.

    Attributes:
        name: Its name.
        type: Its type, for instance "Convolution".
        bottoms: Names of the blobs it reads.
        tops: Names of the blobs it writes; one that it also reads is changed in place.
        proto: The LayerParameter.
        blobs: Its weights, in Caffe's order; empty where there are none.
        line: Line of the prototxt that names it, 0 when unknown.
    """

    name: str
    type: str
    bottoms: list[str]
    tops: list[str]
    proto: Any
    blobs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    line: int = 0

    def __str__(self) -> str:
        where = f", line {self.line}" if self.line else ""
        return f"layer {self.name!r} ({self.type}{where})"

    def blob(self, index: int, *shape: int) -> npt.NDArray[np.float32]:
        """Weight blob ``index`` in the given shape; old files wrote 1s before the sizes.

        Raises:
            MissingWeights: It is absent or has another number of elements.
        """
        if index >= len(self.blobs):
            raise MissingWeights(
                f"{self}: the caffemodel has no weights for it (blob {index}); give the right one"
            )
        blob = self.blobs[index]
        trimmed = list(blob.shape)
        while len(trimmed) > len(shape) and trimmed[0] == 1:
            trimmed.pop(0)
        if blob.size != int(np.prod(shape)) or (len(trimmed) == len(shape) and trimmed != list(shape)):
            raise MissingWeights(
                f"{self}: blob {index} has shape {list(blob.shape)}, the layer needs {list(shape)}"
            )
        return blob.reshape(shape)


def read_net(path: Path, phase: str = "TEST") -> list[Layer]:
    """The layers of a prototxt that take part in ``phase``, old forms upgraded, the inputs as Input layers.

    Raises:
        ConversionError: A syntax error, or no layers.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: cannot be read ({error})") from None
    proto = parse_text(text, "NetParameter", str(path))
    if proto.layers and proto.layer:
        raise ConversionError(f"{path}: mixes 'layer' and 'layers'; upgrade the old ones")
    protos = [*_inputs(proto, path), *(_upgraded(old) for old in proto.layers), *proto.layer]
    state = proto.state if proto.HasField("state") else message("NetState")()
    state.phase = (
        message("NetState").DESCRIPTOR.fields_by_name["phase"].enum_type.values_by_name[phase].number
    )
    layers = [
        Layer(p.name, p.type, list(p.bottom), list(p.top), p, line=_line(text, p.name))
        for p in protos
        if _takes_part(p, state)
    ]
    if not layers:
        raise ConversionError(f"{path}: the network has no layer in phase {phase}")
    return layers


def load_weights(layers: list[Layer], path: Path) -> None:
    """Give each layer the weights that the caffemodel holds under its name.

    Raises:
        ConversionError: The file is damaged or too large.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConversionError(f"{path}: {size} bytes are more than a caffemodel can hold")
    proto = parse_binary(path.read_bytes(), "NetParameter", str(path))
    stored = {p.name: p.blobs for p in [*proto.layers, *proto.layer] if p.blobs}
    if not stored:
        raise ConversionError(f"{path}: no weights in it; is it a caffemodel?")
    for layer in layers:
        layer.blobs = [_array(blob, layer, path) for blob in stored.get(layer.name, ())]


def _array(blob: Any, layer: Layer, path: Path) -> npt.NDArray[np.float32]:
    data = np.array(blob.data if blob.data else blob.double_data, np.float32)
    shape = (
        list(blob.shape.dim) if blob.HasField("shape") else [blob.num, blob.channels, blob.height, blob.width]
    )
    if int(np.prod(shape)) != data.size:
        raise MissingWeights(f"{path}: {layer}: a blob declares shape {shape} but holds {data.size} values")
    return data.reshape(shape)


def _inputs(proto: Any, path: Path) -> list[Any]:
    """The old ``input`` fields as Input layers."""
    layers = []
    for index, name in enumerate(proto.input):
        layer = message("LayerParameter")(name=name, type="Input", top=[name])
        if proto.input_shape:
            dims = list(proto.input_shape[index].dim)
        else:
            dims = list(proto.input_dim[4 * index : 4 * index + 4])
        if not dims:
            raise ConversionError(f"{path}: input {name!r} has no shape")
        layer.input_param.shape.add(dim=dims)
        layers.append(layer)
    return layers


def _upgraded(old: Any) -> Any:
    """A layer of the V1 form (``layers { type: CONVOLUTION }``) as today's."""
    kind = old.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[old.type].name
    name = _V1_TYPES.get(kind, "".join(word.capitalize() for word in kind.split("_")))
    new = message("LayerParameter")(name=old.name, type=name, bottom=old.bottom, top=old.top)
    for parameter, value in old.ListFields():
        if parameter.name.endswith("_param"):
            getattr(new, parameter.name).CopyFrom(value)
    for rule in ("include", "exclude"):
        getattr(new, rule).extend(getattr(old, rule))
    new.loss_weight.extend(old.loss_weight)
    for index in range(max(len(old.blobs_lr), len(old.weight_decay), len(old.param))):
        spec = new.param.add()
        if index < len(old.param):
            spec.name = old.param[index]
        if index < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[index]
        if index < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[index]
    return new


def _takes_part(layer: Any, state: Any) -> bool:
    """Caffe's rule: any include rule must hold, or no exclude rule may."""
    if layer.include:
        return any(_holds(rule, state) for rule in layer.include)
    return not any(_holds(rule, state) for rule in layer.exclude)


def _holds(rule: Any, state: Any) -> bool:
    stages = set(state.stage)
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or rule.min_level <= state.level)
        and (not rule.HasField("max_level") or rule.max_level >= state.level)
        and set(rule.stage) <= stages
        and not set(rule.not_stage) & stages
    )


def _line(text: str, name: str) -> int:
    """The line of the prototxt on which a layer is named."""
    found = re.search(rf"\bname\s*:\s*[\"']{re.escape(name)}[\"']", text)
    return text.count("\n", 0, found.start()) + 1 if found else 0
