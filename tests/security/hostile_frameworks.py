"""Files made to harm, in the formats of PyTorch and TensorFlow; see `hostile`."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.security.hostile import Arguments, Bomb, Make, converted, hostile
from tests.security.judge import Judge

_FACTORY = ("--factory", "hostile_nets:net", "--shape", "input=2,4")


def rezipped(path: Path, change: Callable[[str, bytes], bytes | None], **added: bytes) -> None:
    """Change members of a zip archive in place; None leaves one out."""
    with zipfile.ZipFile(path) as old:
        members = [(name, change(name, old.read(name))) for name in old.namelist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in [*members, *((name, content) for name, content in added.items())]:
            if content is not None:
                new.writestr(name, content)


# -- PyTorch ---------------------------------------------------------------


def _pickled(name: str, write: Callable[[Path, Bomb], None]) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        write(folder / name, Bomb(judge.canary))
        return converted(judge, folder / name, *_FACTORY)

    return make


def _save(**options: Any) -> Callable[[Path, Bomb], None]:
    def write(path: Path, bomb: Bomb) -> None:
        import torch

        torch.save({"weight": torch.ones(2), "x": bomb}, path, **options)

    return write


hostile("state dict (.pth)", "a pickle that runs code", "torch")(_pickled("state.pth", _save()))
hostile("state dict, legacy", "a pickle that runs code", "torch")(
    _pickled("legacy.pth", _save(_use_new_zipfile_serialization=False))
)
hostile("state dict, legacy", "a bare pickle that runs code", "torch")(
    _pickled("legacy.pth", lambda path, bomb: path.write_bytes(pickle.dumps(bomb, 2)) and None)
)
hostile("state dict, legacy", "a pickle nested 100,000 deep", "torch")(
    _pickled("legacy.pth", lambda path, bomb: path.write_bytes(b"\x80\x02" + b"(" * 100_000 + b".") and None)
)


def _archive(change: Callable[[str, bytes], bytes | None], **added: bytes) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        rezipped(folder / "state.pth", change, **added)
        return converted(judge, folder / "state.pth", *_FACTORY)

    return make


hostile("state dict (.pth)", "members outside the archive", "torch")(
    _archive(lambda name, content: content, **{"../../canary": b"x"})
)
hostile("state dict (.pth)", "weights cut off", "torch")(
    _archive(lambda name, content: content[:3] if "/data/" in name else content)
)


@hostile("state dict (.pth)", "a zip bomb", "torch")
def _(folder: Path, judge: Judge) -> Arguments:
    with zipfile.ZipFile(folder / "state.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("state/data.pkl", bytes(100 * 2**20))
    return converted(judge, folder / "state.pth", *_FACTORY)


def _header(change: Callable[[dict[str, Any]], None]) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        path = folder / "state.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        change(header)
        new = json.dumps(header).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])
        return converted(judge, path, *_FACTORY)

    return make


def _entry(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["0.weight"].update(values)


for _what, _change in {
    "a tensor of 2^60": _entry(shape=[2**60], data_offsets=[0, 2**62]),
    "a tensor of negative size": _entry(shape=[-3, 4]),
    "tensors that overlap": _entry(data_offsets=[0, 48]),
    "a tensor that ends before it begins": _entry(data_offsets=[48, 0]),
    "a type that is none": _entry(dtype="EVIL"),
}.items():
    hostile("safetensors", _what, "torch")(_header(_change))


@hostile("safetensors", "a header of 2^63 bytes", "torch")
def _(folder: Path, judge: Judge) -> Arguments:
    path = folder / "state.safetensors"
    path.write_bytes((2**63 - 1).to_bytes(8, "little") + path.read_bytes()[8:])
    return converted(judge, path, *_FACTORY)


@hostile("TorchScript", "code that writes a file", "torch")
def _(folder: Path, judge: Judge) -> Arguments:
    import torch

    class Writes(torch.nn.Module):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.ops.aten.save(x, self.path)
            return x * 2

    torch.jit.script(Writes(str(judge.canary))).save(folder / "script.pt")
    return converted(judge, folder / "script.pt", "--shape", "x=1,3")


def _program(change: Callable[[str, bytes, Judge], bytes], **added: bytes) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        rezipped(folder / "program.pt2", lambda name, content: change(name, content, judge), **added)
        return converted(judge, folder / "program.pt2")

    return make


def _bombed(tail: str) -> Callable[[str, bytes, Judge], bytes]:
    def change(name: str, content: bytes, judge: Judge) -> bytes:
        import torch

        buffer = io.BytesIO()
        torch.save(((Bomb(judge.canary),), {}), buffer)
        return buffer.getvalue() if name.endswith(tail) else content

    return change


def _targets(name: str, content: bytes, judge: Judge) -> bytes:
    if not name.endswith("models/model.json"):
        return content
    return content.replace(b"torch.ops.aten.linear.default", b"torch.os.mkdir")


for _what, _edit in {
    "example inputs that run code": _bombed("sample_inputs/model.pt"),
    "weights that run code": _bombed("weights/weight_0"),
    "an operator of Python's": _targets,
    "JSON nested 200,000 deep": lambda n, c, j: b"[" * 200_000 if n.endswith("models/model.json") else c,
}.items():
    hostile("exported program (.pt2)", _what, "torch")(_program(_edit))
hostile("exported program (.pt2)", "compiled code", "torch")(
    _program(lambda name, content, judge: content, **{"program/data/aotinductor/model.so": b"\x7fELF"})
)


# -- TensorFlow ---------------------------------------------------------------


def _writes(path: Path) -> Any:
    import tensorflow as tf

    return tf.io.write_file(str(path), "hostile")


def _graph(add: Callable[[Judge, Any], Any], text: bool = False) -> Make:
    """A frozen graph y = x + what ``add`` gives, a scalar."""

    def make(folder: Path, judge: Judge) -> Arguments:
        import tensorflow as tf

        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
            tf.add(x, add(judge, x), name="y")
        path = folder / ("frozen.pbtxt" if text else "frozen.pb")
        definition = graph.as_graph_def()
        path.write_text(str(definition)) if text else path.write_bytes(definition.SerializeToString())
        return converted(judge, path)

    return make


def _after(judge: Judge, x: Any) -> Any:
    import tensorflow as tf

    with tf.control_dependencies([_writes(judge.canary)]):
        return tf.constant(1.0) * 1.0


def _reads(judge: Judge, x: Any) -> Any:
    import tensorflow as tf

    return tf.cast(tf.strings.length(tf.io.read_file(str(judge.victim))), tf.float32)


def _python(judge: Judge, x: Any) -> Any:
    import tensorflow as tf

    return tf.compat.v1.py_func(lambda: os.mkdir(judge.canary) or 1.0, [], tf.float32)


def _prints(judge: Judge, x: Any) -> Any:
    import tensorflow as tf

    with tf.control_dependencies([tf.print("hostile", output_stream=f"file://{judge.canary}")]):
        return tf.constant(1.0) * 1.0


def _in_function(judge: Judge, x: Any) -> Any:
    import tensorflow as tf

    @tf.function
    def inner() -> Any:
        with tf.control_dependencies([_writes(judge.canary)]):
            return tf.constant(1.0) * 1.0

    return inner()


for _what, _add in {
    "an operator that writes a file": _after,
    "an operator that reads a file": _reads,
    "an operator that runs Python": _python,
    "a print into a file": _prints,
    "a function that writes a file": _in_function,
}.items():
    hostile("frozen graph", _what, "tensorflow")(_graph(_add))
hostile("frozen graph, text", "an operator that writes a file", "tensorflow")(_graph(_after, text=True))


def _definition(change: Callable[[Any], None]) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        import tensorflow as tf

        graph = tf.compat.v1.GraphDef.FromString((folder / "frozen.pb").read_bytes())
        change(graph)
        (folder / "frozen.pb").write_bytes(graph.SerializeToString())
        return converted(judge, folder / "frozen.pb")

    return make


def _splat(graph: Any) -> None:
    tensor = next(n for n in graph.node if n.op == "Const").attr["value"].tensor
    tensor.ClearField("tensor_content")
    tensor.tensor_shape.dim[0].size, tensor.tensor_shape.dim[1].size = 2**21, 2**21
    tensor.float_val[:] = [1.0]


def _circle(graph: Any) -> None:
    next(n for n in graph.node if n.op == "MatMul").input[0] = "y"


def _nowhere(graph: Any) -> None:
    next(n for n in graph.node if n.op == "MatMul").input[0] = "nowhere"


for _what, _alter in {
    "a constant of 16 TB in one number": _splat,
    "nodes in a circle": _circle,
    "a node from nowhere": _nowhere,
}.items():
    hostile("frozen graph", _what, "tensorflow")(_definition(_alter))


@hostile("frozen graph, text", "messages nested 100,000 deep", "tensorflow")
def _(folder: Path, judge: Judge) -> Arguments:
    deep = 'node { name: "x" attr { key: "a" value { ' + "func { attr { key: 'a' value { " * 50_000
    (folder / "frozen.pbtxt").write_text(deep)
    return converted(judge, folder / "frozen.pbtxt")


@hostile("SavedModel (TF1)", "an initializer that writes a file", "tensorflow")
def _(folder: Path, judge: Judge) -> Arguments:
    import tensorflow as tf

    v1 = tf.compat.v1
    shutil.rmtree(folder / "saved")
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        v = v1.get_variable("v", [4])
        session.run(v1.global_variables_initializer())
        write = _writes(judge.canary)
        v1.saved_model.simple_save(session, str(folder / "saved"), {"x": x}, {"y": x * v}, write)
    return converted(judge, folder / "saved")


@hostile("SavedModel (TF1)", "an initializer that saves a checkpoint", "tensorflow")
def _(folder: Path, judge: Judge) -> Arguments:
    import tensorflow as tf

    v1 = tf.compat.v1
    shutil.rmtree(folder / "saved")
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        v = v1.get_variable("v", [4])
        session.run(v1.global_variables_initializer())
        save = tf.raw_ops.SaveV2(
            prefix=str(judge.canary), tensor_names=["t"], shape_and_slices=[""], tensors=[tf.constant(1.0)]
        )
        v1.saved_model.simple_save(session, str(folder / "saved"), {"x": x}, {"y": x * v}, save)
    return [*converted(judge, folder / "saved"), "--json"]


@hostile("SavedModel (TF2)", "a signature that writes a file", "tensorflow")
def _(folder: Path, judge: Judge) -> Arguments:
    import tensorflow as tf

    module = tf.Module()
    module.v = tf.Variable([1.0, 2.0, 3.0, 4.0])

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
    def forward(x: Any) -> Any:
        with tf.control_dependencies([_writes(judge.canary)]):
            return x * module.v

    module.f = forward
    tf.saved_model.save(module, str(folder / "saved2"), signatures=module.f)
    judge.canary.unlink(missing_ok=True)
    return converted(judge, folder / "saved2")


def _saved(link: str) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        moved = judge.folder / "moved"
        shutil.rmtree(moved, ignore_errors=True)
        target = folder / "saved2" / link
        if moved.is_file():
            moved.unlink()
        shutil.move(target, moved)
        os.symlink(moved, target)
        return converted(judge, folder / "saved2")

    return make


hostile("SavedModel (TF2)", "variables that are a link out of the folder", "tensorflow")(_saved("variables"))
hostile("SavedModel (TF2)", "an index that is a link out of the folder", "tensorflow")(
    _saved("variables/variables.index")
)


@hostile("SavedModel (TF2)", "an asset outside the folder", "tensorflow")
def _(folder: Path, judge: Judge) -> Arguments:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = folder / "saved2/saved_model.pb"
    model = SavedModel.FromString(path.read_bytes())
    model.meta_graphs[0].asset_file_def.add(filename="../../../victim")
    path.write_bytes(model.SerializeToString())
    return converted(judge, folder / "saved2")


@hostile("TF1 checkpoint", "restoring that writes a file", "tensorflow")
def _(folder: Path, judge: Judge) -> Arguments:
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session() as session:
        tf.nn.relu(v1.placeholder(tf.float32, [None, 4], "x") * v1.get_variable("v", [4]), name="y")
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver()
        with tf.control_dependencies([_writes(judge.canary)]):
            tf.no_op(name="hostile")
        saver.saver_def.restore_op_name = "hostile"
        saver.save(session, str(folder / "ckpt/model.ckpt"))
        del graph
    return converted(judge, folder / "ckpt")


def _keras(change: Callable[[dict[str, Any], Judge], None]) -> Make:
    """A Keras archive with another description of its second layer."""

    def make(folder: Path, judge: Judge) -> Arguments:
        def edited(name: str, content: bytes) -> bytes:
            if name != "config.json":
                return content
            config = json.loads(content)
            change(config["config"]["layers"][1], judge)
            return json.dumps(config).encode()

        rezipped(folder / "network.keras", edited)
        return converted(judge, folder / "network.keras")

    return make


def _layer(**values: Any) -> Callable[[dict[str, Any], Judge], None]:
    return lambda layer, judge: layer.update(values)


def _mkdir(layer: dict[str, Any], judge: Judge) -> None:
    layer.update(module="os", class_name="mkdir", config={"path": str(judge.canary)}, registered_name="mkdir")


def _get_file(layer: dict[str, Any], judge: Judge) -> None:
    config = {"fname": str(judge.canary), "origin": f"file://{judge.victim}"}
    layer.update(module="keras.utils", class_name="get_file", config=config, registered_name="get_file")


def _unsafe(layer: dict[str, Any], judge: Judge) -> None:
    layer.update(
        module="keras.config", class_name="enable_unsafe_deserialization", config={}, registered_name=None
    )


def _activation(layer: dict[str, Any], judge: Judge) -> None:
    layer["config"]["activation"] = {
        "module": "builtins",
        "class_name": "function",
        "config": "os.mkdir",
        "registered_name": "function",
    }


def _units(layer: dict[str, Any], judge: Judge) -> None:
    layer["config"]["units"] = 10**15


def _vocabulary(layer: dict[str, Any], judge: Judge) -> None:
    config = {"name": "v", "vocabulary": str(judge.victim)}
    layer.update(module="keras.layers", class_name="StringLookup", config=config, registered_name=None)


def _saved_layer(layer: dict[str, Any], judge: Judge) -> None:
    config = {"filepath": str(judge.folder / "in/saved2")}
    layer.update(module="keras.layers", class_name="TFSMLayer", config=config, registered_name=None)


for _what, _describe in {
    "a layer that is os.mkdir": _mkdir,
    "a layer that copies a file": _get_file,
    "a layer that switches safety off": _unsafe,
    "an activation that is os.mkdir": _activation,
    "10^15 units": _units,
    "a vocabulary among the user's files": _vocabulary,
    "a layer that loads a SavedModel": _saved_layer,
}.items():
    hostile("Keras archive", _what, "tensorflow")(_keras(_describe))


def _lambda(name: str) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        import keras

        target = str(judge.canary)
        code = keras.layers.Lambda(lambda x, t=target: __import__("os").mkdir(t) or x, output_shape=(4,))
        network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
        network.add(keras.layers.Lambda(lambda x: x))
        network.layers[-1].function = code.function
        network.save(folder / name)
        if judge.canary.is_dir():
            judge.canary.rmdir()
        return converted(judge, folder / name)

    return make


hostile("Keras archive", "a Lambda layer", "tensorflow")(_lambda("network.keras"))
hostile("Keras HDF5", "a Lambda layer", "tensorflow")(_lambda("network.h5"))


@hostile("Keras archive", "members outside the archive", "tensorflow")
def _(folder: Path, judge: Judge) -> Arguments:
    rezipped(folder / "network.keras", lambda name, content: content, **{"../canary": b"x"})
    return converted(judge, folder / "network.keras")


@hostile("Keras archive", "weights that lie in a file of the user's", "tensorflow")
def _(folder: Path, judge: Judge) -> Arguments:
    import h5py

    def edited(name: str, content: bytes) -> bytes:
        if name != "model.weights.h5":
            return content
        inner = judge.folder / "inner.h5"
        inner.write_bytes(content)
        with h5py.File(inner, "a") as file:
            del file["layers/dense/vars/0"]
            file["layers/dense/vars"].create_dataset("0", (4, 3), "f4", external=[(str(judge.victim), 0, 48)])
        return inner.read_bytes()

    rezipped(folder / "network.keras", edited)
    return converted(judge, folder / "network.keras")


@hostile("Keras archive", "JSON nested 200,000 deep", "tensorflow")
def _(folder: Path, judge: Judge) -> Arguments:
    rezipped(folder / "network.keras", lambda n, c: b"[" * 200_000 if n == "config.json" else c)
    return converted(judge, folder / "network.keras")


def _lite(change: Callable[[Any], None]) -> Make:
    def make(folder: Path, judge: Judge) -> Arguments:
        import flatbuffers
        from tensorflow.lite.python.schema_py_generated import ModelT

        path = folder / "network.tflite"
        model = ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        for operator in model.subgraphs[0].operators:
            operator.inputs, operator.outputs = list(operator.inputs), list(operator.outputs)
        change(model)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return converted(judge, path)

    return make


def _index(model: Any) -> None:
    model.subgraphs[0].operators[0].inputs[0] = 2**30


def _negative_index(model: Any) -> None:
    model.subgraphs[0].operators[0].outputs[0] = -7


def _operator_code(model: Any) -> None:
    model.subgraphs[0].operators[0].opcodeIndex = 2**31 - 1


def _buffer(model: Any) -> None:
    model.subgraphs[0].tensors[0].buffer = 2**31 - 1


def _shape(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        tensor.shape = [2**20, 2**20]
        tensor.shapeSignature = None


def _negative_shape(model: Any) -> None:
    model.subgraphs[0].tensors[1].shape = [-5, -5]


def _custom(model: Any) -> None:
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 32
    model.operatorCodes[0].customCode = b"FlexWriteFile"


def _no_graph(model: Any) -> None:
    model.subgraphs = []


def _lite_circle(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.operators[0].inputs[0] = graph.operators[-1].outputs[0]


for _what, _spoil in {
    "an index outside the tensors": _index,
    "a negative index": _negative_index,
    "an operator that is not there": _operator_code,
    "a buffer that is not there": _buffer,
    "tensors of 4 TB": _shape,
    "a tensor of negative size": _negative_shape,
    "an operator that writes a file": _custom,
    "no graph": _no_graph,
    "operators in a circle": _lite_circle,
}.items():
    hostile("TensorFlow Lite", _what, "tensorflow")(_lite(_spoil))
