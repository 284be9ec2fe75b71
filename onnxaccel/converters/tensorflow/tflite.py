"""TensorFlow Lite models, float and quantized, compared with TensorFlow Lite's own interpreter."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from onnxaccel.converters.contract import Arrays, Conversion, Options
from onnxaccel.converters.tensorflow.bridge import import_tensorflow, quiet, tflite_to_onnx
from onnxaccel.converters.tensorflow.functions import finish
from onnxaccel.converters.tensorflow.quantized import exact
from onnxaccel.errors import ConversionError
from onnxaccel.graph.model import Model, name_of

INTEGER_FEEDS = tuple(range(1, 33))
"""Batch sizes to compare quantized models at.

Rounding differs on few inputs, and then by whole steps, so two feeds agree or not by luck.
"""


_STATEFUL = frozenset(
    """UNIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN
    BIDIRECTIONAL_SEQUENCE_RNN LSTM RNN SVDF""".split()
)


def tflite_file(path: Path, options: Options) -> Conversion:
    """A ``.tflite`` flatbuffer; quantized inputs and outputs keep their integers.

    Raises:
        ConversionError: The file is damaged, or an operator has no mapping.
    """
    tf = import_tensorflow()
    if options.inputs or options.outputs or options.shapes:
        raise ConversionError(
            f"{path}: a TensorFlow Lite model is converted whole and at its own shapes; "
            "leave --inputs, --outputs and --shape out"
        )
    _check_whole(path)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advertises its successor, another package
        try:
            interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=1)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise ConversionError(
                f"{path}: TensorFlow Lite cannot read it, it may be damaged ({reason})"
            ) from None
    options.progress("mapping operators (tf2onnx)")
    model = Model.from_proto(tflite_to_onnx(path, options.opset))
    sources = {_plain(d["name"]): d for d in interpreter.get_input_details()}
    results = {_plain(d["name"]): d for d in interpreter.get_output_details()}
    for value in [*model.inputs, *model.outputs]:
        value.name = _plain(name_of(value))
    if [*sources, *results] != [*model.input_names(), *model.output_names()]:
        raise ConversionError(f"{path}: its inputs and outputs are not those of the converted graph")
    dynamic = exact(model)
    finish(model, "tflite")

    def reference(feed: Arrays) -> Arrays:
        for name, detail in sources.items():
            interpreter.resize_tensor_input(detail["index"], feed[name].shape)
        interpreter.allocate_tensors()
        for name, detail in sources.items():
            interpreter.set_tensor(detail["index"], feed[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(detail["index"]) for name, detail in results.items()}

    conversion = Conversion(model, reference, f"TensorFlow Lite {tf.__version__}", _byte_ranges(sources))
    if (
        dynamic
    ):  # its activations have 8 bits, and round otherwise where they are equal but for a float's last bit
        conversion.step = 1 / 255
    if any(not np.issubdtype(d["dtype"], np.floating) for d in results.values()):
        conversion.batch_sizes, conversion.steps = INTEGER_FEEDS, 1
    return conversion


def _check_whole(path: Path) -> None:
    """Unpack every table in Python, within bounds: the interpreter reads past the end of a truncated file.

    Then look for operators that cannot be mapped.
    """
    from tensorflow.lite.python.schema_py_generated import BuiltinOperator, ModelT

    try:
        model = ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    except Exception as error:  # whatever unpacking the wrong bytes ends in
        raise ConversionError(
            f"{path}: a damaged or truncated TensorFlow Lite file ({type(error).__name__}); copy it again"
        ) from None
    for graph in model.subgraphs or ():
        _check_order(graph, model.buffers, path)
    names = {code: name for name, code in vars(BuiltinOperator).items() if isinstance(code, int)}
    used = {names.get(max(c.builtinCode, c.deprecatedBuiltinCode), "?") for c in model.operatorCodes}
    for name in sorted(used & _STATEFUL):
        raise ConversionError(f"{path}: operator {name} keeps a state from call to call and has no ONNX form")


def _check_order(graph: Any, buffers: Any, path: Path) -> None:
    """Refuse operators that read what is not written yet: the interpreter would read foreign memory."""
    count = len(graph.tensors)
    known = {int(index) for index in graph.inputs}
    for place, operator in enumerate(graph.operators or ()):
        for index in map(int, operator.inputs if operator.inputs is not None else ()):
            fine = index == -1 or 0 <= index < count  # -1: an input that is left out
            if not fine or (index >= 0 and index not in known and not _held(graph.tensors[index], buffers)):
                raise ConversionError(
                    f"{path}: a damaged TensorFlow Lite file: operator {place} reads tensor {index}, which "
                    "nothing has written"
                )
        known.update(map(int, operator.outputs if operator.outputs is not None else ()))


def _held(tensor: Any, buffers: Any) -> bool:
    """Whether a tensor has its values from the file, or keeps them from run to run, or has none."""
    if tensor.isVariable or (tensor.shape is not None and 0 in list(tensor.shape)):
        return True
    buffer = buffers[tensor.buffer] if 0 <= tensor.buffer < len(buffers) else None
    return buffer is not None and (bool(buffer.offset) or (buffer.data is not None and len(buffer.data) > 0))


def _byte_ranges(sources: dict[str, dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """The whole range of inputs that are quantized to 8 bits."""
    limits = {name: np.iinfo(d["dtype"]) for name, d in sources.items() if d["dtype"] in (np.int8, np.uint8)}
    return {name: (int(limit.min), int(limit.max) + 1) for name, limit in limits.items()}


def _plain(name: str) -> str:
    return name.removesuffix(":0")
