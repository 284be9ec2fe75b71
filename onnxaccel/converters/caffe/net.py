"""Reading a network: a prototxt brought to today's form and filtered for one phase."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxaccel.bounds import read_text
from onnxaccel.converters.caffe.schema import message, parse_text
from onnxaccel.converters.caffe.upgrade import upgraded
from onnxaccel.errors import ConversionError, MissingWeights

Fill = Callable[["Layer", int, tuple[int, ...]], npt.NDArray[np.float32]]
"""Fresh weights: ``fill(layer, index of the blob, shape)``."""

_TOKEN = re.compile(r"#[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|[{}<>]|\blayers?\b")


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
        line: Line of the prototxt where it begins, 0 when unknown.
        fill: Makes the weights of a layer that has none; None: they must be there.
        used: How many of its blobs have been asked for.
    """

    name: str
    type: str
    bottoms: list[str]
    tops: list[str]
    proto: Any
    blobs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    line: int = 0
    fill: Fill | None = None
    used: int = 0

    def __str__(self) -> str:
        where = f", line {self.line}" if self.line else ""
        return f"layer {self.name!r} ({self.type}{where})"

    def blob(self, index: int, *shape: int) -> npt.NDArray[np.float32]:
        """Weight blob ``index`` in the given shape; 1s in front do not count, old files wrote them.

        Raises:
            MissingWeights: It is absent or has another shape.
        """
        self.used = max(self.used, index + 1)
        if index >= len(self.blobs) and self.fill is not None:
            return self.fill(self, index, shape)
        if index >= len(self.blobs):
            raise MissingWeights(
                f"{self}: there are no weights for it (blob {index}); give the .caffemodel of this network"
            )
        blob = self.blobs[index]
        if _trimmed(blob.shape) != _trimmed(shape):
            raise MissingWeights(
                f"{self}: blob {index} has shape {list(blob.shape)}, the layer needs {list(shape)}"
            )
        return blob.reshape(shape)


def read_net(path: Path, phase: str = "TEST", level: int = 0, stages: Sequence[str] = ()) -> list[Layer]:
    """The layers of a prototxt that take part, old forms upgraded, the inputs as Input layers.

    Args:
        path: The prototxt.
        phase: "TRAIN" or "TEST".
        level: Caffe's level; as in Caffe, that of the prototxt's own ``state`` does not count.
        stages: Names of stages, added to those of the prototxt's own ``state``.

    Raises:
        ConversionError: A syntax error, or no layers.
    """
    text = read_text(path, ConversionError)
    proto = parse_text(text, "NetParameter", str(path))
    return layers_of(proto, str(path), phase, level, stages, _lines(text))


def layers_of(
    proto: Any,
    source: str,
    phase: str = "TEST",
    level: int = 0,
    stages: Sequence[str] = (),
    lines: Sequence[int] = (),
) -> list[Layer]:
    """The layers of a NetParameter, see `read_net`.

    Args:
        proto: The NetParameter.
        source: What it was read from, for messages.
        phase: "TRAIN" or "TEST".
        level: Caffe's level.
        stages: Names of stages.
        lines: Line of each of its layers, as far as known.

    Raises:
        ConversionError: It has no layers in this phase, or mixes old and new ones.
    """
    state = message("NetState")()
    state.CopyFrom(proto.state)
    state.phase = state.DESCRIPTOR.fields_by_name["phase"].enum_type.values_by_name[phase].number
    state.stage.extend(stages)
    state.level = level
    layers = [
        Layer(p.name, p.type, list(p.bottom), list(p.top), p, line=lines[place] if place < len(lines) else 0)
        for p, place in upgraded(proto, source)
        if _takes_part(p, state, source)
    ]
    if not layers:
        raise ConversionError(f"{source}: the network has no layer in phase {phase}")
    return layers


def _trimmed(shape: Sequence[int]) -> list[int]:
    sizes = list(shape)
    while sizes and sizes[0] == 1:
        sizes.pop(0)
    return sizes


def _takes_part(layer: Any, state: Any, source: str) -> bool:
    """Caffe's rule: any include rule must hold, or no exclude rule may."""
    if layer.include and layer.exclude:
        raise ConversionError(f"{source}: layer {layer.name!r} has both include and exclude rules")
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


def _lines(text: str) -> list[int]:
    """The lines on which the outermost ``layer`` or ``layers`` blocks begin, in order."""
    found, depth = [], 0
    for token in _TOKEN.finditer(text):
        word = token.group()
        if word in "{<":
            depth += 1
        elif word in "}>":
            depth -= 1
        elif depth == 0 and word in ("layer", "layers"):
            found.append(text.count("\n", 0, token.start()) + 1)
    return found


MAX_COUNT = 2**31 - 1
"""Elements that a blob of Caffe can have."""


def bounded(layer: Layer, what: str, sizes: Sequence[int | str | None]) -> None:
    """Refuse sizes that no blob of Caffe can have, before anything is allocated for them.

    Raises:
        ConversionError: A size is not positive, or there are more than 2^31 - 1 elements.
    """
    fixed = [size for size in sizes if isinstance(size, int)]
    if any(size < 1 for size in fixed):
        raise ConversionError(f"{layer}: {what} would have sizes {list(sizes)}; they must be positive")
    if math.prod(fixed) > MAX_COUNT:
        raise ConversionError(
            f"{layer}: {what} would have {math.prod(fixed)} elements, more than a blob of Caffe can have"
        )
