"""`Model`: one ONNX graph, how it is loaded, checked, annotated and saved."""

from __future__ import annotations

import base64
import copy
import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxaccel import bounds
from onnxaccel.errors import ModelError, OutputError
from onnxaccel.files import atomic_folder
from onnxaccel.graph.files import proto_in_memory, read_proto, verify, write_sealed
from onnxaccel.graph.proto_file import serialized, with_references, without_large, write_proto
from onnxaccel.graph.session import SessionSettings as SessionSettings
from onnxaccel.graph.shapes import Loops, keep_ranks
from onnxaccel.graph.wellformed import check_graph, read_small
from onnxaccel.protect.container import Entry, Opened, is_sealed
from onnxaccel.protect.keys import Key
from onnxaccel.records import Malformed, record, record_of

OPSET = 18
"""The opset that models are written in; older ones are raised to it, newer ones are kept."""

MAX_IR_VERSION = 10
"""The newest IR version that every onnxruntime since 1.18 reads."""

PROTO_LIMIT = 2**31 - 2**20
"""Bytes of weights above which a file needs external data (protobuf stops at 2 GiB)."""

LARGE = 2**22
"""Bytes of weights from which on libraries are given a file with external data, not a copy of all weights."""

_KEY = "onnxaccel"

logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # its complaints reach the user as ours


class PackedArray(TypedDict):
    """A float32 array as text: its shape, and its little-endian bytes in base64."""

    shape: list[int]
    float32: str


def packed(array: npt.NDArray[Any]) -> PackedArray:
    """An array as `PackedArray`, to be kept in metadata."""
    data = np.ascontiguousarray(array, "<f4")
    return {"shape": list(data.shape), "float32": base64.b64encode(data.tobytes()).decode()}


def unpacked(array: PackedArray) -> npt.NDArray[np.float32]:
    """The array of a `PackedArray`.

    Raises:
        ModelError: It is damaged.
    """
    try:
        data = np.frombuffer(base64.b64decode(array["float32"], validate=True), "<f4")
        return data.reshape(array["shape"]).astype(np.float32)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ModelError(f"an array in the model's metadata is damaged ({error}); convert it again") from None


@dataclass
class Preprocessing:
    """How raw data becomes the model's input: ``(x - mean) * scale``, in the given layout, then cropped.

    Attributes:
        mean: Subtracted, one value or one per channel, in the raw data's units. None: 0.
        scale: Multiplied afterwards. None: 1/255 for uint8 images, 1 for all else.
        layout: "NCHW" or "NHWC" for images; None: read off the model's input shape.
        channels: "RGB" or "BGR".
        mean_image: Instead of ``mean``, one value per pixel of the whole image, see `packed`; or the path of
            a Caffe mean file that was not there when the model was converted.
        resize: Height and width that images are brought to before they are cropped.
        crop: Side of the square that is cut out: at random in training, else from the centre.
        mirror: Whether training turns half of the images left to right.
    """

    mean: list[float] | None = None
    scale: float | None = None
    layout: str | None = None
    channels: str = "RGB"
    mean_image: PackedArray | str | None = None
    resize: tuple[int, int] | None = None
    crop: int | None = None
    mirror: bool = False


@dataclass
class Metadata:
    """What onnxaccel knows of a model beyond its graph; stored in the file's ``metadata_props``.

    Attributes:
        framework: "tensorflow", "pytorch", "caffe", or None for an ONNX file from elsewhere.
        format: The source's format, for instance "keras-h5", "torchscript", "caffemodel".
        version: The version of onnxaccel that converted it.
        max_relative_error: The parity gate's result; None when the model was not compared.
        trainable: Names of the parameters that training may change, in order. None: not known, then
            every float initializer that a gradient reaches counts (see `graph.training`).
        frozen: Names of BatchNormalization and Dropout nodes that stay in inference mode in training.
        running_variance: How BatchNormalization's running variance is updated from a batch of m values:
            "unbiased" (factor m/(m-1): PyTorch, Caffe) or "population" (ONNX's definition, Keras 3).
        preprocessing: How raw data becomes the input.
        session: How to run the model, where `onnxaccel optimize` found it out.
        heads: What a Caffe network is trained with: of each loss and accuracy its "layer", "type", "bottoms",
            "tops", "loss_weight" and "settings".
        running_factors: By BatchNormalization node, the sum of the weights that Caffe's running statistics
            were averaged with so far, 0 at the start (see `graph.training_form.to_training_form`).
        multipliers: Caffe's lr_mult and decay_mult by parameter, where they are not both 1.
        batch_sizes: Samples per batch that the source trains and tests with, by "train" and "test".
        solver: Caffe's solver, the fields of `onnxaccel.graph.solver.Solver`.
    """

    framework: str | None = None
    format: str | None = None
    version: str | None = None
    max_relative_error: float | None = None
    trainable: list[str] | None = None
    frozen: list[str] = field(default_factory=list)
    running_variance: str = "population"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    session: SessionSettings | None = None
    heads: list[dict[str, Any]] = field(default_factory=list)
    running_factors: dict[str, float] = field(default_factory=dict)
    multipliers: dict[str, tuple[float, float]] = field(default_factory=dict)
    batch_sizes: dict[str, int] = field(default_factory=dict)
    solver: dict[str, Any] | None = None

    @classmethod
    def from_props(cls, props: dict[str, str]) -> Metadata:
        """Read the metadata of a file; unknown keys are ignored, damaged ones raise `ModelError`."""
        text = props.get(_KEY)
        if text is None:
            return cls()
        try:
            metadata = record_of(cls, text)
            _check_ranges(metadata)
            return metadata
        except Malformed as error:
            raise ModelError(
                f"the model's onnxaccel metadata is damaged ({error}); convert it again"
            ) from None


class Model:
    """One ONNX graph with its weights.

    Args:
        graph_model: The `onnx_ir.Model` to wrap. It is owned by this object from then on.

    Attributes:
        ir: The `onnx_ir.Model`.
        metadata: What onnxaccel knows of it, see `Metadata`.
        key: What `save` encrypts the model with, and the trainer its checkpoints: the key that opened its
            file, or None for a file that was not encrypted.
    """

    def __init__(self, graph_model: ir.Model) -> None:
        self.ir = graph_model
        self.metadata = Metadata.from_props(graph_model.metadata_props)
        self.key: Key | None = None

    # -- in and out ---------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        key: Key | None = None,
        public_key: str | os.PathLike[str] | None = None,
    ) -> Model:
        """Load an ONNX file, with its external data, raised to opset 18.

        Args:
            path: The file. One that is encrypted is decrypted in memory, and `save` encrypts again.
            key: What it was encrypted with; None: the key that the environment names, see
                `onnxaccel.protect.keys`.
            public_key: Refuse the model unless it is signed by the key of this PEM file.

        Raises:
            ModelError: The file is missing, damaged, of a version that cannot be converted, or its external
                data lies outside its folder.
            ProtectionError: It is encrypted, and there is no key, a wrong one, or it was altered; or it is
                not signed.
        """
        path = Path(path)
        bounds.regular(path, ModelError)
        if public_key is not None:
            verify(path, public_key)
        try:
            if is_sealed(path):
                with Opened(path, key) as container:
                    model = cls.from_proto(proto_in_memory(container.contents(), path))
                    model.key = container.key
                    return model
            proto = read_proto(path)
            if _opset(proto) < OPSET:  # the version converter needs the weights in the message
                onnx.load_external_data_for_model(proto, str(path.parent))
            return cls.from_proto(proto, base_dir=path.parent)
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelError(f"{path}: not a readable ONNX model ({_first_line(error)})") from None

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, base_dir: str | os.PathLike[str] = "") -> Model:
        """Wrap a ModelProto; an opset below 18 is raised to 18.

        Args:
            proto: The model. It is not changed.
            base_dir: The folder that its external data is relative to.

        Raises:
            ModelError: The proto is no valid model, or its opset cannot be raised.
        """
        if _opset(proto) < OPSET:
            if _opset(proto) < 9 and any(node.op_type == "Scan" for node in proto.graph.node):
                raise ModelError(
                    "the batched Scan of opset 8 is not read; export the model with opset 9 or more"
                )
            try:
                proto = onnx.version_converter.convert_version(proto, OPSET)
            except Exception as error:
                raise ModelError(
                    f"opset {_opset(proto)} cannot be raised to {OPSET} ({_first_line(error)}); "
                    f"export the model again with opset {OPSET}"
                ) from None
        try:
            model = ir.from_proto(proto)
            ir.external_data.set_base_dir(model.graph, base_dir)
            read_small(model.graph)
            check_graph(model)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"not a valid ONNX model ({_first_line(error)})") from None
        model.ir_version = min(model.ir_version, MAX_IR_VERSION)
        return cls(model)

    def to_proto(self) -> onnx.ModelProto:
        """The model as a ModelProto, metadata included; over 2 GB of weights raise `ModelError`."""
        self._write_metadata()
        if self.nbytes > PROTO_LIMIT:
            raise ModelError("the weights are over 2 GB and fit no ModelProto; save() the model instead")
        inline = ir.external_data.load_to_model(self.ir)
        return ir.to_proto(inline)

    def save(self, path: str | os.PathLike[str], *, apart: bool = False) -> Path:
        """Write the model to ``path``; above 2 GB the weights go to ``path`` + ".data" beside it.

        The files appear at their names only when they are whole. A model with a key is encrypted, into one
        file.

        Args:
            path: Where to write.
            apart: Write the weights beside the model whatever their size.

        Raises:
            OutputError: The path cannot be written.
        """
        path = Path(path)
        self._write_metadata()
        if self.key is not None:
            write_sealed(path, self.key, self._entries(path.name))
            return path
        try:
            with atomic_folder(path.parent) as folder:
                scratch = folder / path.name
                if apart or self.nbytes > PROTO_LIMIT:
                    ir.save(self.ir, scratch, external_data=path.name + ".data")
                else:
                    write_proto(self.ir, scratch)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
        return path

    def copy(self) -> Model:
        """A deep copy of the graph; weights are shared, since tensors are never changed in place."""
        self._write_metadata()
        duplicate = Model(self.ir.clone())
        duplicate.metadata = copy.deepcopy(self.metadata)
        duplicate.key = self.key
        return duplicate

    def _entries(self, name: str) -> list[Entry]:
        """What `save` would write, for a container."""
        if self.nbytes <= PROTO_LIMIT:
            return [Entry(name, *serialized(self.ir))]
        proto, large = with_references(self.ir, f"{name}.data")
        start = proto.SerializeToString()
        size = sum(tensor.nbytes for tensor in large.values())
        weights = Entry(f"{name}.data", size, (tensor.tobytes() for tensor in large.values()))
        return [Entry(name, len(start), [start]), weights]

    def check(self) -> None:
        """Raise `ModelError` unless the graph is valid ONNX (operator schemas, types, order)."""
        proto, large = without_large(self.ir)  # weights of this size say nothing that a type does not
        proto.graph.input.extend(
            onnx.helper.make_tensor_value_info(name, tensor.dtype.value, tensor.shape.numpy())
            for name, tensor in large.items()
        )
        try:
            onnx.checker.check_model(proto, full_check=True)
        except Exception as error:
            raise ModelError(f"the graph is not valid ONNX ({_first_line(error)})") from None

    # -- what is in it ------------------------------------------------------------------------------

    @property
    def graph(self) -> ir.Graph:
        """The graph, as onnx_ir values and nodes."""
        return self.ir.graph

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.ir.opset_imports[""]

    @property
    def inputs(self) -> list[ir.Value]:
        """Graph inputs, those with a default value (initializers) left out."""
        return [v for v in self.graph.inputs if v.name not in self.graph.initializers]

    @property
    def outputs(self) -> list[ir.Value]:
        """Graph outputs."""
        return list(self.graph.outputs)

    @property
    def nbytes(self) -> int:
        """Bytes of all initializers."""
        return sum(
            v.const_value.nbytes for v in self.graph.initializers.values() if v.const_value is not None
        )

    def input_names(self) -> list[str]:
        """Names of the inputs to feed."""
        return [name_of(v) for v in self.inputs]

    def output_names(self) -> list[str]:
        """Names of the outputs."""
        return [name_of(v) for v in self.outputs]

    def weights(self, names: list[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Initializers as numpy arrays, read-only views where possible: all, or those in ``names``."""
        values = self.graph.initializers
        return {name: tensor_of(values[name]) for name in (names if names is not None else values)}

    def set_weights(self, weights: dict[str, np.ndarray[Any, Any]]) -> None:
        """Replace initializers; a name that is not there, or another shape, raises `ModelError`."""
        for name, array in weights.items():
            value = self.graph.initializers.get(name)
            if value is None:
                raise ModelError(f"the model has no parameter {name!r}")
            if tuple(array.shape) != tensor_of(value).shape:
                raise ModelError(
                    f"parameter {name!r} has shape {list(tensor_of(value).shape)}, "
                    f"the weights have {list(array.shape)}"
                )
            value.const_value = ir.tensor(np.asarray(array, tensor_of(value).dtype, order="C"), name=name)

    def infer_shapes(self) -> None:
        """Fill in types and shapes of all values by ONNX's own inference (dimensions stay symbolic).

        What a Loop carries has the shape that it starts with, as far as the body keeps it.
        """
        infer = passes.ShapeInferencePass(strict_mode=False, data_prop=True)
        infer(self.ir)
        while keep_ranks(self.graph):
            infer(self.ir)
        settled = Loops(self.graph)
        while settled.assume():
            infer(self.ir)
            while settled.correct():
                infer(self.ir)

    def _write_metadata(self) -> None:
        self.ir.metadata_props[_KEY] = json.dumps(asdict(self.metadata), sort_keys=True)


def name_of(value: ir.Value) -> str:
    """The name of a value that must have one."""
    if value.name is None:
        raise ModelError("the graph has a value without a name")
    return value.name


def tensor_of(value: ir.Value) -> np.ndarray[Any, Any]:
    """The data of an initializer or of another constant value."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise ModelError(f"{value.name!r} is not a constant of the graph")
    return tensor.numpy()


def _opset(proto: onnx.ModelProto) -> int:
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    return max(versions, default=OPSET)


class _Head(TypedDict):
    """What an entry of `Metadata.heads` has."""

    layer: str
    type: str
    bottoms: list[str]
    tops: list[str]
    loss_weight: float
    settings: dict[str, bool | float | str]


_SIDE = 2**14
"""Pixels along one side of an image that a model takes, at most: damaged metadata must not ask for more."""


def _check_ranges(metadata: Metadata) -> None:
    """Refuse values that are of the right type and mean nothing, or too much."""
    wanted, session = metadata.preprocessing, metadata.session
    for head in metadata.heads:
        record(_Head, head)
    sides = [*(wanted.resize or ()), *([wanted.crop] if wanted.crop is not None else [])]
    for name, fine in (
        ("preprocessing.layout", wanted.layout in (None, "NCHW", "NHWC")),
        ("preprocessing.channels", wanted.channels in ("RGB", "BGR")),
        ("preprocessing.resize or crop", all(0 < side <= _SIDE for side in sides)),
        ("running_variance", metadata.running_variance in ("unbiased", "population")),
        ("session.threads", session is None or 0 <= session.threads <= 2**10),
        ("batch_sizes", all(size > 0 for size in metadata.batch_sizes.values())),
    ):
        if not fine:
            raise Malformed(f"{name} is not possible")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
