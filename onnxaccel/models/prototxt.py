"""The layers of a Caffe net, written as prototxt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Held(NamedTuple):
    """A layer that holds weights: its name, its type, and the name that its weights have in PyTorch."""

    name: str
    kind: str
    weights: str


class Layers:
    """The layers of a net; each method appends some and gives the blob that they end in.

    Attributes:
        held: Those that hold weights.
    """

    def __init__(self) -> None:
        self.held: list[Held] = []
        self._text: list[str] = []

    def __str__(self) -> str:
        return "\n".join(self._text)

    def convolution(
        self,
        name: str,
        bottom: str,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        pad: int = 0,
        group: int = 1,
        bias: bool = True,
        top: str | None = None,
    ) -> str:
        """A convolution; Caffe rounds its output's size down, as TensorFlow and PyTorch do."""
        return self._windowed("Convolution", name, bottom, outputs, kernel, stride, pad, group, bias, top)

    def deconvolution(self, name: str, bottom: str, outputs: int, kernel: int, *, stride: int) -> str:
        """A transposed convolution with bias."""
        return self._windowed("Deconvolution", name, bottom, outputs, kernel, stride, 0, 1, True, None)

    def dense(self, name: str, bottom: str, outputs: int, top: str | None = None) -> str:
        """A dense layer; it flattens what it reads."""
        settings = f'num_output: {outputs} weight_filler {{ type: "xavier" }}'
        return self._holding("InnerProduct", name, [bottom], top, f"inner_product_param {{ {settings} }}")

    def norm(self, name: str, blob: str) -> str:
        """A batch normalization in place, which in Caffe is two layers: the statistics, and the scale.

        ε is PyTorch's; Caffe's moving average is kept as a sum, of the fraction 0.9 here.
        """
        settings = "batch_norm_param { eps: 1e-5 moving_average_fraction: 0.9 }"
        self._holding("BatchNorm", name, [blob], blob, settings)
        return self._holding("Scale", f"{name}_scale", [blob], blob, "scale_param { bias_term: true }", name)

    def relu(self, name: str, blob: str, kind: str = "ReLU") -> str:
        """A rectifier in place; the kind "ReLU6" is one of several forks, with OpenCV's reader among them."""
        return self.add(kind, name, [blob], blob)

    def max_pool(self, name: str, bottom: str) -> str:
        """Max pooling over 2x2."""
        return self.add(
            "Pooling", name, [bottom], name, "pooling_param { pool: MAX kernel_size: 2 stride: 2 }"
        )

    def global_pool(self, name: str, bottom: str) -> str:
        """The mean over height and width."""
        return self.add("Pooling", name, [bottom], name, "pooling_param { pool: AVE global_pooling: true }")

    def add(self, kind: str, name: str, bottoms: Sequence[str], top: str, settings: str = "") -> str:
        """A layer of any type; ``settings`` is its parameter message."""
        blobs = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
        tail = f"\n  {settings}" if settings else ""
        self._text.append(f'layer {{ name: "{name}" type: "{kind}" {blobs} top: "{top}"{tail} }}')
        return top

    def _windowed(
        self,
        kind: str,
        name: str,
        bottom: str,
        outputs: int,
        kernel: int,
        stride: int,
        pad: int,
        group: int,
        bias: bool,
        top: str | None,
    ) -> str:
        settings = f"num_output: {outputs} kernel_size: {kernel}"
        settings += f" stride: {stride}" if stride > 1 else ""
        settings += f" pad: {pad}" if pad else ""
        settings += f" group: {group}" if group > 1 else ""
        settings += "" if bias else " bias_term: false"
        settings += ' weight_filler { type: "xavier" }'
        return self._holding(kind, name, [bottom], top, f"convolution_param {{ {settings} }}")

    def _holding(
        self,
        kind: str,
        name: str,
        bottoms: Sequence[str],
        top: str | None,
        settings: str,
        weights: str | None = None,
    ) -> str:
        self.held.append(Held(name, kind, weights or name))
        return self.add(kind, name, bottoms, top or name, settings)
