"""One layer with one choice of parameters: its network, weights and inputs, run by us and by a real Caffe."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxaccel as oa
from onnxaccel.converters.caffe.reference import Forward
from onnxaccel.converters.caffe.schema import message
from onnxaccel.runtime.session import Session

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

STORED = Path(__file__).with_name("references.npz")
"""What a real Caffe gave, for machines without one; benchmarks/caffe_layers.py writes it."""


def remembered(key: str, blobs: Sequence[str]) -> Feed:
    """The blobs that a real Caffe once gave under this key."""
    with np.load(STORED) as archive:
        return {blob: archive[f"{key}/{blob}"] for blob in blobs}


@dataclass(frozen=True)
class Case:
    """A layer ``l`` with bottoms a, b, c ... and tops y, y1, y2 ...

    Attributes:
        type: Its type.
        settings: Its parameters in prototxt form.
        inputs: Shape of each bottom, or (shape, kind), kind as in `values`.
        blobs: Shape of each weight blob, or the blob itself.
        tops: How many tops it has.
        as_caffe: The same in layers that the built Caffe has, for a layer that it lacks.
        formula: Computes the tops from (feed, blobs), for a layer that Caffe cannot be asked about.
        dynamic: Whether another batch size than the declared one is tried as well.
        trained: Convert in trainable form.
    """

    type: str
    settings: str = ""
    inputs: tuple[Any, ...] = ((2, 4, 7, 7),)
    blobs: tuple[Any, ...] = ()
    tops: int = 1
    as_caffe: str = ""
    formula: Callable[[Feed, list[Array]], list[Array] | Array] | None = None
    dynamic: bool = True
    trained: bool = False

    def __str__(self) -> str:
        form = "-trained" if self.trained else ""
        return f"{self.type}-{zlib.crc32(repr(self.key).encode()):08x}{form}"

    @property
    def key(self) -> tuple[Any, ...]:
        blobs = tuple(b if isinstance(b, tuple) else (b.shape, b.tolist()) for b in self.blobs)
        return self.type, self.settings, self.inputs, blobs, self.tops, self.trained

    @property
    def bottoms(self) -> list[str]:
        return ["abcdefg"[i] for i in range(len(self.inputs))]

    @property
    def outputs(self) -> list[str]:
        return ["y", *(f"y{i}" for i in range(1, self.tops))]

    def prototxt(self, real: bool = False) -> str:
        """The network; ``real``: for the built Caffe."""
        lines = ['name: "case"\n', inputs(**dict(zip(self.bottoms, self._shapes(), strict=True)))]
        if real and self.as_caffe:
            return "".join([*lines, self.as_caffe])
        return "".join(
            [*lines, layer(self.type, " ".join(self.bottoms), " ".join(self.outputs), self.settings, "l")]
        )

    def _shapes(self) -> list[tuple[int, ...]]:
        return [i[0] if isinstance(i[0], tuple) else i for i in self.inputs]

    def weights(self) -> list[Array]:
        rng = np.random.default_rng(zlib.crc32(self.type.encode()))
        return [
            rng.standard_normal(b).astype(np.float32) if isinstance(b, tuple) else np.asarray(b, np.float32)
            for b in self.blobs
        ]

    def feed(self, batch: int | None = None) -> Feed:
        """Inputs; ``batch``: in place of the declared first size, where it is that of the first input."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()) + (batch or 0))
        first = next((shape[0] for shape in self._shapes()), 0)
        feed = {}
        for name, given, shape in zip(self.bottoms, self.inputs, self._shapes(), strict=True):
            kind = given[1] if isinstance(given[0], tuple) else "normal"
            if batch is not None and shape[0] == first:
                shape = (batch, *shape[1:])
            feed[name] = values(kind, shape, rng)
        return feed

    def write(self, folder: Path) -> tuple[Path, Path, Path | None]:
        """Our prototxt, Caffe's, and the caffemodel (None: no weights)."""
        ours, real = folder / f"{self}.prototxt", folder / f"{self}.real.prototxt"
        ours.write_text(self.prototxt())
        real.write_text(self.prototxt(real=True))
        if not self.blobs:
            return ours, real, None
        weights = folder / f"{self}.caffemodel"
        weights.write_bytes(caffemodel({"l": self.weights()}))
        return ours, real, weights

    def batches(self) -> list[int | None]:
        return [None, 3] if self.dynamic else [None]

    def passes(self, folder: Path) -> list[Forward]:
        """What to ask a real Caffe: a forward pass per batch size; none where there is a formula."""
        if self.formula is not None:
            return []
        _, real, weights = self.write(folder)
        return [Forward(real, weights, self.feed(b), tuple(self.outputs)) for b in self.batches()]

    def ours(self, folder: Path) -> list[Feed]:
        """Our outputs for the same feeds."""
        prototxt, _, weights = self.write(folder)
        files = [prototxt] if weights is None else [prototxt, weights]
        model = oa.convert(*files, outputs=self.outputs, verify=False, trainable=self.trained)
        session = Session(model)
        names = set(model.input_names())
        return [session.run({k: v for k, v in self.feed(b).items() if k in names}) for b in self.batches()]

    def by_formula(self) -> list[Feed]:
        """The formula's outputs for the same feeds."""
        assert self.formula is not None
        results = []
        for batch in self.batches():
            tops = self.formula(self.feed(batch), self.weights())
            results.append(dict(zip(self.outputs, tops if isinstance(tops, list) else [tops], strict=True)))
        return results


def layer(kind: str, bottom: str, top: str, rest: str = "", name: str = "") -> str:
    """A layer as prototxt; bottoms and tops stand side by side."""
    bottoms = " ".join(f'bottom: "{b}"' for b in bottom.split())
    tops = " ".join(f'top: "{t}"' for t in top.split())
    return f'layer {{ name: "{name or top}" type: "{kind}" {bottoms} {tops} {rest} }}\n'


def inputs(**shapes: tuple[int, ...]) -> str:
    """Input layers as prototxt."""
    dims = {name: " ".join(f"dim: {d}" for d in shape) for name, shape in shapes.items()}
    return "".join(layer("Input", "", name, f"input_param {{ shape {{ {d} }} }}") for name, d in dims.items())


def values(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random input: "normal", "positive", "ties" (few values), "probabilities" (rows that sum to 1).

    "below:K" and "signed:K" are whole numbers from 0 or -1 on, "cont" is 0 where a sequence begins, "rois:K"
    are regions of an image of side K.
    """
    kind, _, limit = kind.partition(":")
    if kind == "below":
        return rng.integers(0, int(limit), shape).astype(np.float32)
    if kind == "signed":
        return rng.integers(-1, int(limit), shape).astype(np.float32)
    if kind == "cont":
        marks = (rng.random(shape) > 0.3).astype(np.float32)
        marks[0] = 0
        return marks
    if kind == "positive":
        return (rng.random(shape) + 0.1).astype(np.float32)
    if kind == "ties":
        return np.round(rng.standard_normal(shape) * 1.5).astype(np.float32)
    if kind == "probabilities":
        e = np.exp(rng.standard_normal(shape))
        return (e / e.sum(1, keepdims=True)).astype(np.float32)
    if kind == "rois":  # image, x1, y1, x2, y2
        corner = rng.integers(0, int(limit) // 2, (shape[0], 2))
        size = rng.integers(0, int(limit) // 2, (shape[0], 2))
        return np.concatenate([np.zeros((shape[0], 1)), corner, corner + size], 1).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32)


def caffemodel(blobs: dict[str, list[Array]]) -> bytes:
    """A caffemodel with the given blobs per layer."""
    net = message("NetParameter")(name="case")
    for name, arrays in blobs.items():
        layer = net.layer.add(name=name)
        for array in arrays:
            blob = layer.blobs.add(data=array.ravel())
            blob.shape.dim.extend(array.shape)
    data: bytes = net.SerializeToString()
    return data
