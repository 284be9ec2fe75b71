"""The graph under construction: blobs by name, shapes as Caffe counts them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.converters.caffe.net import Layer
from onnxaccel.errors import ConversionError
from onnxaccel.graph.builder import Builder, Dim, dims_of
from onnxaccel.registry import Registry

LayerFunction = Callable[["NetBuilder", Layer, list[ir.Value]], "ir.Value | list[ir.Value]"]
"""``function(net, layer, bottoms) -> top`` or a list of tops, their shapes set by `NetBuilder.shaped`."""

layer_type: Registry[LayerFunction] = Registry("Caffe layer")
"""Layers by type: ``@layer_type("Convolution")``."""


class NetBuilder:
    """Builds the ONNX graph of a Caffe network.

    Args:
        graph: The graph to fill.

    Attributes:
        op: Writes nodes.
        parameters: Names of the initializers that Caffe would train, in order.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.op = Builder(graph, prefix="caffe")
        self.parameters: list[str] = []
        self._graph = graph

    def parameter(
        self, layer: Layer, role: str, data: npt.NDArray[np.float32], train: bool = True
    ) -> ir.Value:
        """An initializer ``<layer>.<role>`` holding weights of ``layer``."""
        name = f"{layer.name}.{role}"
        if name not in self._graph.initializers:
            self._graph.register_initializer(
                ir.val(name, const_value=ir.tensor(np.ascontiguousarray(data), name=name))
            )
            if train:
                self.parameters.append(name)
        return self._graph.initializers[name]

    def shaped(self, value: ir.Value, dims: list[Dim], layer: Layer) -> ir.Value:
        """Set the shape of a layer's result, and name its node after the layer."""
        value.shape = ir.Shape(dims)
        node = value.producer()
        if node is not None:
            node.name = layer.name
        return value

    def like(self, value: ir.Value, bottom: ir.Value, layer: Layer) -> ir.Value:
        """`shaped` for a result of the shape of ``bottom``."""
        return self.shaped(value, dims(bottom), layer)


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


def pair(values: Any, height: int, width: int, has_2d: bool, default: int, rank: int = 2) -> list[int]:
    """A size per spatial axis from Caffe's spellings: one value, one per axis, or ``_h`` and ``_w``."""
    if has_2d:
        return [height, width]
    given = list(values) if not isinstance(values, int) else [values]
    if not given:
        return [default] * rank
    return given * rank if len(given) == 1 else given
