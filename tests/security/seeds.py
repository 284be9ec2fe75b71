"""Small, real models and data sets of every format that is read: what hostile files are made from."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.data.databases import datum, encoded, write_leveldb, write_lmdb

RNG = np.random.default_rng(0)


def write_seeds(folder: Path, frameworks: bool = True) -> Path:
    """One valid file or folder per format; ``frameworks``: those that TensorFlow and PyTorch write, too."""
    folder.mkdir(parents=True, exist_ok=True)
    _onnx(folder)
    _data(folder)
    _databases(folder)
    _caffe(folder)
    if frameworks:
        _torch(folder)
        _tensorflow(folder)
    return folder


def classifier(*shape: Any, head: str = "w") -> onnx.ModelProto:
    """A model with ten classes: the mean over a sample, times a row of weights."""
    axes = list(range(1, len(shape) + 1))
    weights = np.arange(10, dtype=np.float32).reshape(1, 10) / 10
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
            helper.make_node("Unsqueeze", ["m", "one"], ["u"]),
            helper.make_node("MatMul", ["u", head], ["y"]),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [
            numpy_helper.from_array(np.array(axes, np.int64), "axes"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(weights, head),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _onnx(folder: Path) -> None:
    onnx.save(classifier("c", "h", "w"), folder / "images.onnx")
    onnx.save(classifier("f"), folder / "rows.onnx")
    (folder / "external").mkdir(exist_ok=True)
    onnx.save(
        classifier("f"),
        folder / "external/model.onnx",
        save_as_external_data=True,
        location="model.data",
        size_threshold=0,
    )


def _data(folder: Path) -> None:
    from PIL import Image

    x, y = RNG.integers(0, 255, (12, 5, 5), np.uint8), RNG.integers(0, 3, 12).astype(np.uint8)
    for name, zipped in (("idx", False), ("idx-gz", True)):
        (folder / name).mkdir(exist_ok=True)
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            content = header + array.tobytes()
            file = folder / name / f"t10k-{kind}-ubyte{'.gz' if zipped else ''}"
            file.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    np.savez(folder / "data.npz", x=x, y=y.astype(np.int64))
    np.save(folder / "input.npy", RNG.standard_normal((3, 4)).astype(np.float32))
    (folder / "table.csv").write_text("a,b,label\n" + "".join(f"{i},{i / 7},{i % 3}\n" for i in range(9)))
    import h5py
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"a": RNG.standard_normal(9), "b": RNG.standard_normal(9), "label": np.arange(9) % 3}
    parquet.write_table(pa.table(columns), folder / "table.parquet")
    with h5py.File(folder / "data.h5", "w") as file:
        file.create_dataset("x", data=x, chunks=(4, 5, 5), compression="gzip")
        file.create_dataset("y", data=y.astype(np.int64))
    for index, (kind, suffix) in enumerate(
        (k, s) for k in ("cat", "dog") for s in ("png", "jpg", "bmp", "tif")
    ):
        (folder / "photos" / kind).mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 255, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/{kind}/{index}.{suffix}")
    (folder / "list.txt").write_text("photos/cat/0.png 0\nphotos/dog/4.png 1\n")
    (folder / "files.txt").write_text("data.h5\n")
    (folder / "cifar").mkdir(exist_ok=True)
    rows = RNG.integers(0, 255, (4, 3073), np.uint8)
    rows[:, 0] %= 10
    (folder / "cifar/test_batch.bin").write_bytes(rows.tobytes())
    (folder / "cifar/batches.meta.txt").write_text("\n".join("abcdefghij"))


def _databases(folder: Path) -> None:
    images = [RNG.integers(0, 255, (3, 4, 4), np.uint8) for _ in range(6)]
    values = [datum(image, index % 3) for index, image in enumerate(images[:3])]
    values += [encoded(image.transpose(1, 2, 0), index % 3) for index, image in enumerate(images[3:])]
    write_lmdb(folder / "lmdb", values)
    write_leveldb(folder / "leveldb", values)


NET = """name: "seed"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""

OLD_NET = """name: "old"
input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
layers { bottom: "data" top: "pad" layer { name: "pad" type: "padding" pad: 1 } }
layers { bottom: "pad" top: "conv" layer { name: "conv" type: "conv" num_output: 4 kernelsize: 3 } }
layers { bottom: "conv" top: "conv" layer { name: "relu" type: "relu" } }
layers { bottom: "conv" top: "fc" layer { name: "fc" type: "innerproduct" num_output: 5 } }
"""

SOLVER = 'net: "net.prototxt"\nbase_lr: 0.01\nmax_iter: 3\nlr_policy: "fixed"\nmomentum: 0.9\n'


def _caffe(folder: Path) -> None:
    import h5py

    from onnxaccel.converters.caffe.schema import message

    (folder / "net.prototxt").write_text(NET)
    (folder / "old.prototxt").write_text(OLD_NET)
    (folder / "solver.prototxt").write_text(SOLVER)
    weights = {"conv": [(4, 3, 3, 3), (4,)], "fc": [(5, 36), (5,)]}
    net = message("NetParameter")(name="seed")
    with h5py.File(folder / "net.caffemodel.h5", "w") as file:
        for name, shapes in weights.items():
            layer = net.layer.add(name=name)
            for index, shape in enumerate(shapes):
                array = RNG.standard_normal(shape).astype(np.float32)
                blob = layer.blobs.add(data=array.ravel())
                blob.shape.dim.extend(shape)
                file.create_dataset(f"data/{name}/{index}", data=array)
    (folder / "net.caffemodel").write_bytes(net.SerializeToString())
    mean = message("BlobProto")(data=np.full(192, 0.5), num=1, channels=3, height=8, width=8)
    (folder / "mean.binaryproto").write_bytes(mean.SerializeToString())


def _torch(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (folder / "hostile_nets.py").write_text(
        "import torch\n\n\ndef net():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))\n"
    )
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
    torch.save(module.state_dict(), folder / "state.pth")
    torch.save(module.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(module.state_dict(), folder / "state.safetensors")
    torch.jit.script(module).save(folder / "script.pt")
    batch = torch.export.Dim("batch")
    exported = torch.export.export(module, (torch.randn(2, 4),), dynamic_shapes={"input": {0: batch}})
    torch.export.save(exported, folder / "program.pt2")


def _tensorflow(folder: Path) -> None:
    from onnxaccel.converters.tensorflow.bridge import import_tensorflow, quiet

    tf = import_tensorflow()
    with quiet():
        _write_tensorflow(folder, tf)


def _write_tensorflow(folder: Path, tf: Any) -> None:
    import keras

    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(2)])
    network.save(folder / "network.keras")
    network.save(folder / "network.h5")
    lite = tf.lite.TFLiteConverter.from_keras_model(network).convert()
    (folder / "network.tflite").write_bytes(lite)
    v1 = tf.compat.v1
    (folder / "ckpt").mkdir(exist_ok=True)
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        w = v1.get_variable("w", [4, 2], initializer=v1.random_normal_initializer(0, 1, 1))
        y = tf.nn.relu(tf.matmul(x, w), name="y")
        saver = v1.train.Saver()
        with v1.Session(graph=graph) as session:
            session.run(v1.global_variables_initializer())
            saver.save(session, str(folder / "ckpt/model.ckpt"))
            frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["y"])
            v1.saved_model.simple_save(session, str(folder / "saved"), {"x": x}, {"y": y})
    (folder / "frozen.pb").write_bytes(frozen.SerializeToString())
    (folder / "frozen.pbtxt").write_text(str(frozen))
    module = tf.Module()
    module.v = tf.Variable(np.ones((4, 2), np.float32))
    module.f = tf.function(
        lambda x: tf.matmul(x, module.v), input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")]
    )
    tf.saved_model.save(module, str(folder / "saved2"), signatures=module.f)
