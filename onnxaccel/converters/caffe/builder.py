"""The graph under construction: shapes as Caffe counts them, weights under their names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.converters.caffe.net import Layer, bounded
from onnxaccel.errors import ConversionError, MissingWeights
from onnxaccel.graph.builder import Builder, Dim, dims_of
from onnxaccel.registry import Registry

LayerFunction = Callable[["NetBuilder", Layer, list[ir.Value]], "ir.Value | list[ir.Value]"]
"""``function(net, layer, bottoms) -> top`` or a list of tops, their shapes set by `NetBuilder.shaped`."""

layer_type: Registry[LayerFunction] = Registry("Caffe layer")
"""Layers by type: ``@layer_type("Convolution")``."""


class FixedBatch(ConversionError):
    """A layer holds for the declared batch size only; the network is then written for that one."""


@dataclass(frozen=True)
class Stored:
    """Where an initializer comes from: blob ``index`` of ``layer``."""

    layer: Layer
    index: int


class NetBuilder:
    """Builds the ONNX graph of a Caffe network.

    Args:
        graph: The graph to fill.
        dynamic_batch: Whether the first dimension of the inputs is dynamic.
        trainable: Whether the model is to be trained.

    Attributes:
        op: Writes nodes.
        parameters: Names of the initializers that Caffe would train, in order.
        stored: The blob behind each initializer that holds weights or statistics.
        frozen: Names of nodes that stay in inference mode when the network is trained.
        factors: What the stored sums of BatchNorm layers are divided by, by layer.
        batch: The first size that the first input declares.
        sole: Whether the layer being written is the only reader of its first bottom.
    """

    def __init__(self, graph: ir.Graph, dynamic_batch: bool = True, trainable: bool = False) -> None:
        self.op = Builder(graph, prefix="caffe")
        self.dynamic_batch = dynamic_batch
        self.trainable = trainable
        self.parameters: list[str] = []
        self.stored: dict[str, Stored] = {}
        self.frozen: list[str] = []
        self.factors: dict[str, float] = {}
        self.sole = False
        self.batch: int | None = None
        self._graph = graph
        self._shared: dict[str, ir.Value] = {}

    def parameter(
        self,
        layer: Layer,
        role: str,
        index: int,
        *shape: int,
        view: Sequence[int] | None = None,
        train: bool = True,
        scale: float = 1.0,
    ) -> ir.Value:
        """Blob ``index`` of ``layer`` as an initializer ``<layer>.<role>``.

        Layers whose ``param { name: ... }`` are equal share the initializer of the first.

        Args:
            layer: The layer.
            role: "weight", "bias", ...
            index: Which of its blobs.
            *shape: The blob's shape.
            view: The initializer's shape, when it is another one.
            train: Whether Caffe trains it.
            scale: What its values are multiplied with.

        Raises:
            MissingWeights: The blob is absent or misshapen, or shared with one of another shape.
        """
        specs = layer.proto.param
        shared = specs[index].name if index < len(specs) else ""
        if shared in self._shared:
            layer.used = max(layer.used, index + 1)
            return self._sharing(layer, index, shape, view or shape, self._shared[shared])
        bounded(layer, f"blob {index}", shape)
        data = layer.blob(index, *shape)
        if scale != 1:
            data = data * np.float32(scale)
        name = f"{layer.name}.{role}"
        value = ir.val(
            name, const_value=ir.tensor(np.ascontiguousarray(data.reshape(view or shape)), name=name)
        )
        if name in self._graph.initializers:
            raise ConversionError(f"{layer}: there are two layers of this name with weights; rename one")
        self._graph.register_initializer(value)
        self.stored[name] = Stored(layer, index)
        if train:
            self.parameters.append(name)
        if shared:
            self._shared[shared] = value
        return value

    def _sharing(
        self, layer: Layer, index: int, shape: Sequence[int], view: Sequence[int], value: ir.Value
    ) -> ir.Value:
        owner = self.stored[value.name or ""]
        held = [size for size in dims(value) if isinstance(size, int)]
        permissive = layer.proto.param[index].share_mode == 1
        if math.prod(shape) != math.prod(held) or not (permissive or list(view) == held):
            raise MissingWeights(
                f"{layer}: blob {index} has shape {list(shape)}; it is shared with {owner.layer}, "
                f"where it has shape {held}"
            )
        return value if list(view) == held else self.op.Reshape(value, list(view))

    def shaped(self, value: ir.Value, dims: Sequence[Dim], layer: Layer) -> ir.Value:
        """Set the shape of a layer's result, and name its node after the layer."""
        bounded(layer, "its top", dims)
        value.shape = ir.Shape(list(dims))
        node = value.producer()
        if node is not None:
            node.name = layer.name
        return value

    def like(self, value: ir.Value, bottom: ir.Value, layer: Layer) -> ir.Value:
        """`shaped` for a result of the shape of ``bottom``."""
        return self.shaped(value, dims(bottom), layer)

    def constant(self, layer: Layer, data: npt.NDArray[Any]) -> ir.Value:
        """A result that does not depend on any bottom: an initializer."""
        bounded(layer, "its top", list(data.shape))
        return self.op.constant(data)


def dims(value: ir.Value) -> list[Dim]:
    """The dimensions of a blob; every blob has a known rank."""
    found = dims_of(value)
    assert found is not None
    return found


def axis_of(layer: Layer, axis: int, bottom: ir.Value) -> int:
    """An axis counted from the front.

    Raises:
        ConversionError: The blob has no such axis.
    """
    rank = len(dims(bottom))
    if not -rank <= axis < rank:
        raise ConversionError(f"{layer}: axis {axis} of a blob with {rank} axes")
    return axis % rank


def count(layer: Layer, sizes: list[Dim]) -> int:
    """The product of sizes that must be fixed.

    Raises:
        ConversionError: One of them is dynamic.
    """
    if not all(isinstance(size, int) for size in sizes):
        raise ConversionError(f"{layer}: needs fixed sizes, its bottom has {sizes}; give the input's --shape")
    return math.prod(size for size in sizes if isinstance(size, int))


def need(layer: Layer, bottoms: Sequence[ir.Value], least: int, most: int | None = None) -> None:
    """Refuse a layer with too few or too many bottoms.

    Raises:
        ConversionError: Their number is outside ``least`` .. ``most``; without ``most`` it must be ``least``.
    """
    most = least if most is None else most
    if not least <= len(bottoms) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise ConversionError(f"{layer}: has {len(bottoms)} bottoms, needs {wanted}")


def enum_name(proto: Any, name: str) -> str:
    """The name of an enum field's value."""
    found: str = proto.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number[getattr(proto, name)].name
    return found


def pair(values: Any, height: int, width: int, has_2d: bool, default: int, rank: int = 2) -> list[int]:
    """A size per spatial axis from Caffe's spellings: one value, one per axis, or ``_h`` and ``_w``."""
    if has_2d:
        return [height, width]
    given = list(values) if not isinstance(values, int) else [values]
    if not given:
        return [default] * rank
    return given * rank if len(given) == 1 else given
