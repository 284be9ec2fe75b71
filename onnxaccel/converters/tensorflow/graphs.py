"""Frozen GraphDefs, TF1 checkpoints, SavedModels and live functions: what is in them, by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnxaccel.bounds import check_tree, read, within
from onnxaccel.converters.contract import Conversion, Options
from onnxaccel.converters.detect import is_text
from onnxaccel.converters.tensorflow.bridge import FRONT_ENDS, import_tensorflow, quiet
from onnxaccel.converters.tensorflow.functions import Frozen, convert_frozen, first_line, freeze
from onnxaccel.converters.tensorflow.harm import refuse_harm, without_saving
from onnxaccel.converters.tensorflow.parameters import find_parameters
from onnxaccel.errors import ConversionError, UnknownFormat
from onnxaccel.files import scratch_folder

_LOSSES = ("SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits")
_NO_RESULTS = frozenset(
    """Const NoOp Placeholder Assert VarIsInitializedOp Assign AssignVariableOp MergeSummary ScalarSummary
    HistogramSummary SaveV2 RestoreV2 VariableV2""".split()
)
_TRAINING = ("save/", "gradients/", "report_uninitialized", "init", "Adam", "Momentum", "GradientDescent")
"""How names of what only training needs begin, in TF1 graphs."""


def frozen_graph(path: Path, options: Options) -> Conversion:
    """A GraphDef whose weights are constants, binary or text."""
    return graph(read_graph_def(path), path, options, "frozen-graph")


def graph(
    graph_def: Any, path: Path, options: Options, source_format: str, variables: Sequence[str] = ()
) -> Conversion:
    """A GraphDef without variables.

    Args:
        graph_def: The graph.
        path: Where it comes from, for messages.
        options: What the user asked for.
        source_format: The format's name, for the metadata.
        variables: Names of constants that were trainable variables, where that is known.
    """
    tf = import_tensorflow()
    _defaults_to_constants(graph_def, options)
    outputs = [_tensor(name) for name in options.outputs] or _leaves(graph_def)
    inputs = [_tensor(name) for name in options.inputs] or _placeholders(graph_def, outputs)
    _check_names(graph_def, [*inputs, *outputs], path)
    refuse_harm(graph_def, path, outputs, inputs)
    function = _imported(tf, graph_def).prune(inputs, outputs)

    def run(arrays: list[Any]) -> list[Any]:
        types = [tensor.dtype for tensor in function.inputs[: len(inputs)]]
        return _flat(function(*[tf.constant(a, t) for a, t in zip(arrays, types, strict=True)]))

    frozen = Frozen(graph_def, inputs, outputs, run)
    if options.trainable:
        every, trained = find_parameters(graph_def, options.parameters)
        if variables and not options.parameters:
            every, trained = list(dict.fromkeys([*every, *variables])), list(variables)
        frozen.parameters = {name: name.removesuffix("/read") for name in every}
        frozen.trainable = [frozen.parameters[name] for name in trained]
    return convert_frozen(frozen, options, source_format)


def _imported(tf: Any, graph_def: Any) -> Any:
    def load() -> None:
        tf.import_graph_def(graph_def, name="")

    with quiet():
        try:
            return tf.compat.v1.wrap_function(load, [])
        except Exception as error:  # TensorFlow raises whatever its importer raises
            raise ConversionError(f"TensorFlow cannot import the graph ({first_line(error)})") from None


def checkpoint(path: Path, options: Options) -> Conversion:
    """A TF1 checkpoint: the graph of its ``.meta`` with the values of its variables.

    Args:
        path: The ``.meta`` file, another file of the checkpoint, or the folder that has them.
        options: What the user asked for.
    """
    tf = import_tensorflow()
    prefix = checkpoint_prefix(path)
    if prefix is None:
        raise ConversionError(f"{path}: a checkpoint's .meta needs its .index and .data files beside it")
    v1 = tf.compat.v1
    with quiet(), tf.Graph().as_default() as built, v1.Session(graph=built) as session:
        try:
            meta = _meta_graph(Path(f"{prefix}.meta"))
            without_saving(meta.graph_def)
            refuse_harm(meta.graph_def, path, [meta.saver_def.restore_op_name], restoring=True)
            saver = v1.train.import_meta_graph(meta, clear_devices=True)
            saver.restore(session, str(prefix))
        except ConversionError:
            raise
        except Exception as error:  # TensorFlow raises whatever its parsers raise
            raise ConversionError(f"{path}: not a readable checkpoint ({first_line(error)})") from None
        graph_def = built.as_graph_def()
        for node in graph_def.node:
            node.attr.pop("_output_shapes", None)
        outputs = [name.split(":")[0] for name in options.outputs] or [
            name.split(":")[0] for name in _leaves(graph_def)
        ]
        _check_names(graph_def, outputs, path)
        trained = [variable.op.name for variable in v1.trainable_variables()]
        graph_def = v1.graph_util.convert_variables_to_constants(session, graph_def, outputs)
    names = {node.name for node in graph_def.node}
    return graph(graph_def, path, options, "checkpoint", [name for name in trained if name in names])


def checkpoint_prefix(path: Path) -> Path | None:
    """What the names of a TF1 checkpoint's files begin with, or None where there is none with a graph."""
    if path.is_dir():
        found = sorted(path.glob("*.meta"), key=lambda file: file.stat().st_mtime)
        path = found[-1] if found else path
    for prefix in (path, path.with_name(path.name.split(".data-")[0]), path.with_suffix("")):
        if Path(f"{prefix}.meta").is_file() and Path(f"{prefix}.index").is_file():
            return prefix
    return None


def saved_model(path: Path, options: Options) -> Conversion:
    """A SavedModel folder: its serving signature, or the only one it has."""
    tf = import_tensorflow()
    check_tree(path, ConversionError)
    with quiet():
        try:
            with only_tensors(path) as folder:
                loaded = tf.saved_model.load(str(folder))
        except ConversionError:
            raise
        except Exception as error:  # TensorFlow raises whatever its parsers raise
            raise ConversionError(f"{path}: not a readable SavedModel ({first_line(error)})") from None
    signatures = dict(loaded.signatures)
    if not signatures:
        raise ConversionError(f"{path}: has no signature to convert; save it with signatures=...")
    chosen = signatures.get("serving_default") or next(iter(signatures.values()))
    arguments = list(chosen.structured_input_signature[1])
    held = list(getattr(loaded, "variables", []))
    trained = getattr(loaded, "trainable_variables", None)  # Keras marks frozen layers here alone
    return function(chosen, options, "saved-model", arguments, str(path), held, trained)


def function(
    concrete: Any,
    options: Options,
    source_format: str,
    arguments: Sequence[str] = (),
    where: str = "the function",
    held: Sequence[Any] = (),
    trained: Sequence[Any] | None = None,
) -> Conversion:
    """A concrete function, with its variables.

    Args:
        concrete: The function.
        options: What the user asked for.
        source_format: The format's name, for the metadata.
        arguments: Names of its arguments, by which it is called.
        where: What it is, for messages.
        held: Variables that it may read beside its own.
        trained: The variables that training may change; by default those that say so.
    """
    tf = import_tensorflow()
    with quiet():
        frozen, variables = freeze(concrete, held)
    graph_def = frozen.graph.as_graph_def(add_shapes=True)
    _refuse_strings(frozen.inputs)
    inputs = [_tensor(name) for name in options.inputs] or [t.name for t in frozen.inputs]
    outputs = [_tensor(name) for name in options.outputs] or [t.name for t in frozen.outputs]
    _check_names(graph_def, [*inputs, *outputs], Path(where))
    names: dict[str, str] = {}
    if not options.inputs:
        names |= dict(zip(inputs, _argument_names(concrete, inputs, arguments), strict=True))
    results = concrete.structured_outputs
    if not options.outputs and isinstance(results, dict) and len(results) == len(outputs):
        names |= dict(zip(outputs, sorted(results), strict=True))
    with quiet():
        pruned = frozen.prune(inputs, outputs) if options.inputs or options.outputs else frozen
    types = [tensor.dtype for tensor in pruned.inputs[: len(inputs)]]

    def run(arrays: list[Any]) -> list[Any]:
        return _flat(pruned(*[tf.constant(a, t) for a, t in zip(arrays, types, strict=True)]))

    found = Frozen(graph_def, inputs, outputs, run, names)
    if options.trainable:
        own = dict(zip(variables, unique([_plain(v.name) for v in variables.values()]), strict=True))
        found.parameters = own
        handles = None if trained is None else {id(v.handle) for v in trained}
        found.trainable = [
            own[node]
            for node, v in variables.items()
            if (v.trainable if handles is None else id(v.handle) in handles)
        ]
        if options.parameters or not own:
            every, trained = find_parameters(graph_def, options.parameters)
            found.parameters = {name: own.get(name, name) for name in every}
            found.trainable = [found.parameters[name] for name in trained]
    return convert_frozen(found, options, source_format)


@contextmanager
def only_tensors(path: Path) -> Iterator[Path]:
    """The SavedModel with nothing in it but computation.

    It has none of its optimizer's slots, which only the Keras that wrote them restores, and saves nothing.
    """
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    proto = SavedModel()
    binary = (path / "saved_model.pb").is_file()
    _parse(path / ("saved_model.pb" if binary else "saved_model.pbtxt"), proto, ConversionError)
    for meta in proto.meta_graphs:
        for asset in meta.asset_file_def:
            if not within(path / "assets" / asset.filename, path):
                raise ConversionError(
                    f"{path}: refused, its asset {asset.filename!r} lies outside its folder"
                )
        without_saving(meta.graph_def)
        refuse_harm(meta.graph_def, path, restoring=True)
        for node in meta.object_graph_def.nodes:
            node.ClearField("slot_variables")
    with scratch_folder() as folder:
        for entry in path.iterdir():
            if entry.name not in ("saved_model.pb", "saved_model.pbtxt", "fingerprint.pb"):
                os.symlink(entry.resolve(), folder / entry.name)
        (folder / "saved_model.pb").write_bytes(proto.SerializeToString())
        yield folder


def read_graph_def(path: Path) -> Any:
    """A GraphDef from a file, binary or text.

    Raises:
        UnknownFormat: It is damaged, or empty.
    """
    tf = import_tensorflow()
    graph_def = tf.compat.v1.GraphDef()
    _parse(path, graph_def, UnknownFormat)
    if not graph_def.node:
        raise UnknownFormat(f"{path}: a TensorFlow graph without nodes")
    held = [node for node in graph_def.node if node.op in ("VariableV2", "Variable", "VarHandleOp")]
    if held:
        raise ConversionError(
            f"{path}: {len(held)} variables have no values in the graph ({held[0].name}, ...); give the "
            "checkpoint's .meta file with its .index and .data files beside it, or a frozen graph"
        )
    return graph_def


def _meta_graph(path: Path) -> Any:
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

    meta = MetaGraphDef()
    _parse(path, meta, ConversionError)
    return meta


def _parse(path: Path, message: Any, error: type[ConversionError]) -> None:
    """Read a message of TensorFlow's, binary or text.

    Raises:
        ConversionError: As ``error``: it is damaged or too large.
    """
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    data = read(path, error)
    try:
        if is_text(data[:4096]):
            text_format.Parse(data.decode(), message)
        else:
            message.ParseFromString(data)
    except (DecodeError, text_format.ParseError, ValueError, RecursionError) as reason:
        raise error(f"{path}: a damaged or truncated TensorFlow graph ({first_line(reason)})") from None


def _defaults_to_constants(graph_def: Any, options: Options) -> None:
    """Placeholders with a default (a keep rate, a training flag) take it, unless they are asked for."""
    asked = {name.split(":")[0] for name in options.inputs}
    for node in graph_def.node:
        if node.op == "PlaceholderWithDefault" and node.name not in asked:
            dtype = node.attr["dtype"].type
            node.op = "Identity"
            node.ClearField("attr")
            node.attr["T"].type = dtype


def _placeholders(graph_def: Any, outputs: Sequence[str]) -> list[str]:
    """The placeholders that the outputs depend on."""
    needed = _ancestors(graph_def, outputs)
    front = next((n for n in graph_def.node if n.op in FRONT_ENDS and n.name in needed), None)
    if front is not None:
        last = _last_front_end(graph_def, needed)
        raise ConversionError(
            f"operator {last.op} (node {last.name!r}) decodes files and has no ONNX form; "
            f"cut the graph behind it with --inputs {last.name}:0"
        )
    found = [f"{n.name}:0" for n in graph_def.node if n.op == "Placeholder" and n.name in needed]
    if not found:
        raise ConversionError("the graph has no placeholder to feed; name its inputs with --inputs NAME:0")
    return found


def _last_front_end(graph_def: Any, needed: set[str]) -> Any:
    """The front end's last operator: the one that no other of them reads."""
    fronts = [n for n in graph_def.node if n.op in FRONT_ENDS and n.name in needed]
    read = {name.split(":")[0] for n in fronts for name in n.input}
    return next(n for n in reversed(fronts) if n.name not in read)


def _ancestors(graph_def: Any, tensors: Sequence[str]) -> set[str]:
    nodes = {node.name: node for node in graph_def.node}
    pending, seen = [name.split(":")[0] for name in tensors], set()
    while pending:
        name = pending.pop()
        if name not in seen and name in nodes:
            seen.add(name)
            pending += [x.split(":")[0].lstrip("^") for x in nodes[name].input]
    return seen


def _leaves(graph_def: Any) -> list[str]:
    """What nobody reads; where that is a loss, the logits that it is of."""
    own = [n for n in graph_def.node if not n.name.startswith(_TRAINING)]
    losses = [n for n in own if n.op in _LOSSES]
    if losses:
        return list(dict.fromkeys(_tensor(_behind_moves(graph_def, n.input[0])) for n in losses))
    consumed = {name.split(":")[0].lstrip("^") for node in own for name in node.input}
    found = [n for n in own if n.name not in consumed and n.op not in _NO_RESULTS]
    found = [n for n in found if not n.op.startswith(("Apply", "ResourceApply", "VarHandle"))]
    fed = {n.name for n in own if n.op == "Placeholder"}
    reached = [n for n in found if fed & _ancestors(graph_def, [n.name])]
    found = reached or found
    if not found:
        raise ConversionError("the graph has no result; name its outputs with --outputs NAME:0")
    return [f"{n.name}:0" for n in found]


def _behind_moves(graph_def: Any, tensor: str) -> str:
    nodes = {node.name: node for node in graph_def.node}
    while (node := nodes.get(tensor.split(":")[0])) is not None and node.op in ("Reshape", "Identity"):
        tensor = node.input[0]
    return tensor


def _check_names(graph_def: Any, tensors: Sequence[str], path: Path) -> None:
    known = {node.name for node in graph_def.node}
    for tensor in tensors:
        name = tensor.split(":")[0]
        if name not in known:
            close = difflib.get_close_matches(name, known, 3, 0.4)
            others = [n.name for n in graph_def.node if n.op not in ("Const", "Identity", "NoOp")][:12]
            hint = f"did you mean {', '.join(close)}?" if close else f"it begins with {', '.join(others)}"
            raise ConversionError(f"{path}: there is no operation {name!r} in the graph; {hint}")


def _refuse_strings(tensors: Sequence[Any]) -> None:
    for tensor in tensors:
        if tensor.dtype.name == "string":
            raise ConversionError(
                f"input {tensor.name!r} takes strings (text, or encoded examples), which have no ONNX form; "
                "cut the graph behind what decodes them with --inputs NAME:0"
            )


def _argument_names(concrete: Any, inputs: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The names of a function's arguments, in the order of its input tensors."""
    by_tensor = {f"{concrete.name}_{name}": name for name in arguments}
    names = []
    for tensor in inputs:
        plain = tensor.removesuffix(":0")
        names.append(by_tensor.get(plain, plain if plain in arguments or not arguments else _tail(plain)))
    return names


def _tail(name: str) -> str:
    return name.split("_", 2)[-1]


def unique(names: Sequence[str]) -> list[str]:
    """Names made distinct by a number where two are equal."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        result.append(f"{name}_{count}" if count else name)
    return result


def _flat(results: Any) -> list[Any]:
    import tensorflow as tf

    return [r.numpy() if hasattr(r, "numpy") else r for r in tf.nest.flatten(results)]


def _plain(name: str) -> str:
    return name.split(":")[0]


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"
