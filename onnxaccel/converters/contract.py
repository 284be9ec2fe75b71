"""What a converter is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxaccel.graph.model import OPSET, Model

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Options:
    """What the user asked of a conversion.

    Attributes:
        inputs: Names of tensors of the source to make inputs; empty: inferred.
        outputs: Names of tensors of the source to make outputs; empty: inferred.
        shapes: Shape by input name; -1 is a dynamic dimension.
        dim_names: Names of dynamic dimensions by input name and axis; equal names are equal sizes.
        factory: "module:callable" that builds the module a state dict belongs to.
        opset: The opset to write.
        trainable: Keep every parameter under its name, BatchNormalization and Dropout as nodes.
        parameters: Names of a frozen graph's constants to make parameters; empty: by rule.
        custom_objects: Module with the custom classes and functions of a Keras file.
        solver: A Caffe solver.prototxt: layers without weights start from their fillers, and the model keeps
            how it is trained.
        trust_pickle: Allow unpickling, that is, running code from the file.
        progress: Called with one line per stage.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dim_names: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    factory: str | None = None
    opset: int = OPSET
    trainable: bool = False
    parameters: tuple[str, ...] = ()
    custom_objects: str | None = None
    solver: Path | None = None
    trust_pickle: bool = False
    progress: Callable[[str], None] = lambda line: None


@dataclass
class Conversion:
    """A converted model, and its source framework ready to be compared with it.

    Attributes:
        model: The ONNX model, in inference form: Dropout and BatchNormalization, where kept, are nodes with
            ``training_mode`` 0; ``metadata.framework``, ``format`` and ``trainable`` are filled in.
        reference: Runs the source framework in inference mode: arrays by the ONNX model's input names in,
            arrays by the ONNX model's output names out. None when there is nothing to run.
        reference_name: What ``reference`` is, for messages ("PyTorch 2.13.0").
        ranges: Half-open ranges [low, high) of integer inputs (an Embedding's number of rows), by name.
        batch_sizes: Sizes of the dynamic batch dimension to compare at.
        example: Inputs by name that the source is known to take: their sizes stand for dynamic dimensions,
            and their integers are fed where the source takes no random ones (lengths, offsets).
        rows: Names of outputs that are a set of rows (a detector's boxes): their order does not count.
        steps: By how many integers outputs of integers may differ from the reference.
        step: A rounding step of the source's own arithmetic, relative to the largest value: errors up to it
            are allowed.
        close: Releases what ``reference`` holds (a subprocess, a session).
    """

    model: Model
    reference: Callable[[Arrays], Arrays] | None
    reference_name: str
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    batch_sizes: tuple[int, ...] = (2, 3)
    example: Arrays = field(default_factory=dict)
    rows: frozenset[str] = frozenset()
    steps: int = 0
    step: float = 0.0
    close: Callable[[], None] = lambda: None
