"""The geometry that convolutions and poolings share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import onnx_ir as ir

from onnxaccel.graph.builder import Dim, attribute


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution: one entry per spatial axis.

    Attributes:
        kernel: Kernel size.
        strides: Step of the window.
        dilations: Distance between kernel elements.
        begin: Padding before.
        end: Padding after.
        group: Number of groups the channels are split into.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    group: int

    @classmethod
    def of(cls, node: ir.Node, kernel: list[int]) -> Window:
        """Read the attributes of a normalised Conv or ConvTranspose."""
        rank = len(kernel)
        pads = attribute(node, "pads", [0] * 2 * rank)
        return cls(
            list(kernel),
            list(attribute(node, "strides", [1] * rank)),
            list(attribute(node, "dilations", [1] * rank)),
            list(pads[:rank]),
            list(pads[rank:]),
            attribute(node, "group", 1),
        )

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def extent(self) -> list[int]:
        """Size of the dilated kernel, ``d (k - 1) + 1``."""
        return [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]

    def known(self, sizes: list[Dim]) -> TypeGuard[list[int]]:
        """Whether ``sizes`` are the fixed sizes of all spatial axes."""
        return len(sizes) == self.rank and all(isinstance(size, int) for size in sizes)

    @property
    def pads(self) -> list[int]:
        """Padding as ONNX's attribute: all begins, then all ends."""
        return self.begin + self.end
