"""Frozen GraphDefs and SavedModels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxaccel.converters.contract import Arrays, Conversion, Options
from onnxaccel.converters.detect import is_text
from onnxaccel.converters.tensorflow.bridge import FRONT_ENDS, import_tensorflow, quiet, to_onnx
from onnxaccel.errors import ConversionError, UnknownFormat
from onnxaccel.graph.model import Model, Preprocessing


def frozen_graph(path: Path, options: Options) -> Conversion:
    """A GraphDef whose weights are constants, binary or text."""
    tf = import_tensorflow()
    graph_def = _read_graph_def(tf, path)
    inputs = [_tensor(name) for name in options.inputs] or _placeholders(graph_def)
    outputs = [_tensor(name) for name in options.outputs] or _leaves(graph_def)
    _check_names(graph_def, [*inputs, *outputs], path)

    def load() -> None:
        tf.import_graph_def(graph_def, name="")

    with quiet():
        wrapped = tf.compat.v1.wrap_function(load, [])
        function = wrapped.prune(inputs, outputs)
    return convert_function(function, graph_def, inputs, outputs, options, "frozen-graph")


def saved_model(path: Path, options: Options) -> Conversion:
    """A SavedModel folder: its serving signature, or the only one it has."""
    tf = import_tensorflow()
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    with quiet():
        try:
            with _without_optimizer(path) as folder:
                loaded = tf.saved_model.load(str(folder))
        except Exception as error:  # TensorFlow raises whatever its parsers raise
            raise ConversionError(f"{path}: not a readable SavedModel ({_first(error)})") from None
        signatures = dict(loaded.signatures)
        if not signatures:
            raise ConversionError(f"{path}: has no signature to convert; save it with signatures=...")
        chosen = signatures.get("serving_default") or next(iter(signatures.values()))
        frozen = convert_variables_to_constants_v2(chosen)
    graph_def = frozen.graph.as_graph_def(add_shapes=True)
    inputs = [_tensor(name) for name in options.inputs] or [t.name for t in frozen.inputs]
    outputs = [_tensor(name) for name in options.outputs] or [t.name for t in frozen.outputs]
    _check_names(graph_def, [*inputs, *outputs], path)
    names: dict[str, str] = {}
    if not options.inputs:
        names |= dict(zip(inputs, _argument_names(chosen, inputs), strict=True))
    if not options.outputs:
        names |= dict(zip(outputs, sorted(chosen.structured_outputs), strict=True))
    with quiet():
        function = frozen.prune(inputs, outputs) if options.inputs or options.outputs else frozen
    return convert_function(function, graph_def, inputs, outputs, options, "saved-model", names)


@contextmanager
def _without_optimizer(path: Path) -> Iterator[Path]:
    """The SavedModel without its optimizer's slots, which only the Keras that wrote them restores."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    proto = SavedModel()
    try:
        proto.ParseFromString((path / "saved_model.pb").read_bytes())
    except DecodeError as error:
        raise ConversionError(f"saved_model.pb is damaged or truncated: {error}") from None
    for graph in proto.meta_graphs:
        for node in graph.object_graph_def.nodes:
            node.ClearField("slot_variables")
    with tempfile.TemporaryDirectory() as folder:
        for entry in path.iterdir():
            if entry.name not in ("saved_model.pb", "fingerprint.pb"):
                os.symlink(entry.resolve(), Path(folder) / entry.name)
        (Path(folder) / "saved_model.pb").write_bytes(proto.SerializeToString())
        yield Path(folder)


def convert_function(
    function: Any,
    graph_def: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
    options: Options,
    source_format: str,
    names: dict[str, str] | None = None,
) -> Conversion:
    """Convert a function without variables, given also as a GraphDef.

    Args:
        function: Runs the graph: tensors in the order of ``inputs``, a list in the order of ``outputs``.
        graph_def: The graph.
        inputs: Tensor names of the inputs.
        outputs: Tensor names of the outputs.
        options: What the user asked for.
        source_format: The format's name, for the metadata.
        names: Names in the ONNX model, by tensor name; those left out lose their ":0".
    """
    tf = import_tensorflow()
    renamed = {tensor: (names or {}).get(tensor, tensor.removesuffix(":0")) for tensor in [*inputs, *outputs]}
    if len(set(renamed.values())) < len(renamed):  # an output that is an input under another name
        renamed |= {
            t: t.replace(":", "_") + "_output" for t in outputs if renamed[t] in {renamed[i] for i in inputs}
        }
    known = {t: dynamic(options.shapes[renamed[t]]) for t in inputs if renamed[t] in options.shapes}
    options.progress("mapping operators (tf2onnx)")
    proto = to_onnx(graph_def, inputs, outputs, options.opset, renamed, known)
    model = Model.from_proto(proto)
    finish(model, source_format)

    def reference(feed: Arrays) -> Arrays:
        types = [tensor.dtype for tensor in function.inputs[: len(inputs)]]
        tensors = [tf.constant(feed[renamed[t]], dtype) for t, dtype in zip(inputs, types, strict=True)]
        results = function(*tensors)
        if isinstance(results, dict):
            results = list(results.values())
        results = results if isinstance(results, (list, tuple)) else [results]
        return {renamed[t]: r.numpy() for t, r in zip(outputs, results, strict=True)}

    return Conversion(model, reference, f"TensorFlow {tf.__version__}")


def finish(model: Model, source_format: str) -> None:
    """Name the batch dimension, and fill in where the model comes from."""
    import onnx_ir as ir

    for value in [*model.inputs, *model.outputs]:
        if value.shape is not None and value.shape.rank() and not isinstance(value.shape[0], int):
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])
    model.metadata.framework = "tensorflow"
    model.metadata.format = source_format
    images = [v for v in model.inputs if v.shape is not None and v.shape.rank() == 4]
    if images:
        model.metadata.preprocessing = Preprocessing(layout="NHWC")


def dynamic(dims: Sequence[int]) -> list[int | None]:
    """A shape as TensorFlow writes it: None where the user wrote -1."""
    return [None if d == -1 else d for d in dims]


def _read_graph_def(tf: Any, path: Path) -> Any:
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    graph_def = tf.compat.v1.GraphDef()
    data = path.read_bytes()
    try:
        if is_text(data[:4096]):
            text_format.Parse(data.decode(), graph_def)
        else:
            graph_def.ParseFromString(data)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise UnknownFormat(f"{path}: a damaged or truncated TensorFlow graph ({_first(error)})") from None
    if not graph_def.node:
        raise UnknownFormat(f"{path}: a TensorFlow graph without nodes")
    return graph_def


def _placeholders(graph_def: Any) -> list[str]:
    found = [f"{node.name}:0" for node in graph_def.node if node.op == "Placeholder"]
    if not found:
        raise ConversionError("the graph has no placeholder to feed; name its inputs with --inputs NAME:0")
    front = next(
        (n for n in graph_def.node if n.op in FRONT_ENDS and n.op in ("Mfcc", "DecodeJpeg", "DecodePng")),
        None,
    )
    if front is not None:
        raise ConversionError(
            f"operator {front.op} (node {front.name!r}) decodes files and has no ONNX form; "
            f"cut the graph behind it with --inputs {front.name}:0"
        )
    return found


def _leaves(graph_def: Any) -> list[str]:
    consumed = {name.split(":")[0].lstrip("^") for node in graph_def.node for name in node.input}
    ignored = ("Const", "NoOp", "Placeholder", "Assert")
    found = [f"{n.name}:0" for n in graph_def.node if n.name not in consumed and n.op not in ignored]
    if not found:
        raise ConversionError("the graph has no result; name its outputs with --outputs NAME:0")
    return found


def _check_names(graph_def: Any, tensors: Sequence[str], path: Path) -> None:
    known = {node.name for node in graph_def.node}
    for tensor in tensors:
        name = tensor.split(":")[0]
        if name not in known:
            import difflib

            close = difflib.get_close_matches(name, known, 3, 0.4)
            others = [n.name for n in graph_def.node if n.op not in ("Const", "Identity", "NoOp")][:12]
            hint = f"did you mean {', '.join(close)}?" if close else f"it begins with {', '.join(others)}"
            raise ConversionError(f"{path}: there is no operation {name!r} in the graph; {hint}")


def _argument_names(signature: Any, inputs: Sequence[str]) -> list[str]:
    """The names of a signature's arguments, in the order of its input tensors."""
    _, arguments = signature.structured_input_signature
    by_tensor = {f"{signature.name}_{name}": name for name in arguments}
    names = []
    for tensor in inputs:
        plain = tensor.removesuffix(":0")
        names.append(by_tensor.get(plain, plain if plain in arguments else plain.split("_", 2)[-1]))
    return names


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
