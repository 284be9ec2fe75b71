"""Readers, SPECs, preparation and the loader, on real data."""

from __future__ import annotations

import gzip
import shutil
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import helper
from PIL import Image
from pyarrow import parquet as pq

from onnxaccel.data import as_dataset, batches, label_kind, open_dataset
from onnxaccel.errors import DataError
from onnxaccel.graph.model import Model, Preprocessing


def identity(*dims: int | str, preprocessing: Preprocessing | None = None) -> Model:
    """A model that gives its float input back."""
    info = helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [info("x", kind, dims)], [info("y", kind, dims)]
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    if preprocessing is not None:
        model.metadata.preprocessing = preprocessing
    return model


def all_of(spec: Any, model: Model, **settings: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    parts = list(batches(spec, model, 64, **settings))
    return np.concatenate([f["x"] for f, _ in parts]), np.concatenate([y for _, y in parts])


def test_idx_is_read_whole_and_in_part(shared: Path) -> None:
    data = open_dataset(str(shared / "data/mnist"))
    assert len(data) == 10_000
    x, y = data.take(np.array([0, 9_999]))
    assert x.shape == (2, 28, 28, 1) and x.dtype == np.uint8 and x.max() > 200
    assert y.tolist() == [7, 6]  # MNIST's test part begins with a 7 and ends with a 6
    part = open_dataset(f"{shared}/data/mnist#test#8000:10000")
    assert len(part) == 2_000
    np.testing.assert_array_equal(part.take(np.array([1_999]))[0], x[1:])


def test_idx_fits_flat_and_square_inputs(shared: Path) -> None:
    spec = f"{shared}/data/mnist#0:100"
    flat, _ = all_of(spec, identity("N", 784))
    square, _ = all_of(spec, identity("N", 1, 28, 28))
    np.testing.assert_array_equal(flat, square.reshape(100, 784))
    assert flat.min() == 0 and flat.max() == 1


def test_class_folders_are_decoded_in_either_layout(shared: Path) -> None:
    folder = shared / "data/cifar10/test"
    x, y = all_of(str(folder), identity("N", 3, 32, 32))
    nhwc, _ = all_of(f"{shared}/data/cifar10#test", identity("N", 32, 32, 3))
    np.testing.assert_array_equal(x, nhwc.transpose(0, 3, 1, 2))
    assert np.bincount(y).tolist() == [100] * 10
    first = sorted((folder / "airplane").iterdir())[0]
    np.testing.assert_allclose(
        nhwc[0], np.asarray(Image.open(first).convert("RGB")) / np.float32(255), rtol=1e-6
    )


def test_preprocessing_is_mean_then_scale_in_the_given_channel_order(shared: Path) -> None:
    spec = f"{shared}/data/cifar10#test#0:4"
    raw, _ = open_dataset(spec).take(np.arange(4))
    settings = Preprocessing(mean=[1.0, 2.0, 3.0], scale=0.5, layout="NHWC", channels="BGR")
    x, _ = all_of(spec, identity("N", 32, 32, 3, preprocessing=settings))
    np.testing.assert_allclose(x, (raw[..., ::-1] - np.array([1.0, 2.0, 3.0])) * 0.5)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    data = (np.arange(200, dtype=np.float32)[:, None], np.arange(200))
    model = identity("N", 1)

    def order(**settings: int) -> list[int]:
        return [int(v) for v in all_of(data, model, **settings)[1]]

    assert order(seed=1, epoch=0) == order(seed=1, epoch=0)
    assert order(seed=1, epoch=0) != order(seed=1, epoch=1)
    assert order(seed=1, epoch=0) != order(seed=2, epoch=0)
    assert sorted(order(seed=1, epoch=0)) == list(range(200))
    whole = batches(data, model, 64, seed=1)
    with whole.starting_at(2) as rest:
        assert np.concatenate([y for _, y in rest]).tolist() == order(seed=1, epoch=0)[128:]


def test_the_background_thread_ends_when_the_consumer_leaves(shared: Path) -> None:
    before = threading.active_count()
    with batches(f"{shared}/data/mnist", identity("N", 784), 8).starting_at(0) as rest:
        next(rest)
    assert threading.active_count() == before


def test_npz_csv_and_sklearn(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((20, 3), np.float32), np.arange(20) % 2
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    assert len(open_dataset(f"{tmp_path}/d.npz#train")) == 20
    assert len(open_dataset(f"{tmp_path}/d.npz#test")) == 5
    rows = "\n".join(f"{a},{b},{c},{label}" for (a, b, c), label in zip(x, y, strict=True))
    (tmp_path / "d.csv").write_text(f"a,b,c,label\n{rows}\n")
    values, labels = open_dataset(f"{tmp_path}/d.csv").take(np.arange(20))
    np.testing.assert_allclose(values, x, rtol=1e-6)
    assert labels.tolist() == y.tolist()
    assert len(open_dataset("sklearn:digits")) == 1797
    assert label_kind("sklearn:digits") == "cross_entropy"
    assert label_kind("sklearn:diabetes") == "mse"


def _mixed_folder(folder: Path) -> Path:
    for name, mode, size in (("a", "RGB", (8, 6)), ("b", "L", (16, 12))):
        (folder / name).mkdir()
        Image.new(mode, size, (10, 20, 30) if mode == "RGB" else 40).save(folder / name / "0.png")
    return folder


def test_images_of_several_sizes_are_brought_to_the_model_s(tmp_path: Path) -> None:
    x, y = all_of(str(_mixed_folder(tmp_path)), identity("N", 3, 5, 7))
    assert x.shape == (2, 3, 5, 7) and y.tolist() == [0, 1]
    np.testing.assert_allclose(x[:, :, 0, 0] * 255, [[10, 20, 30], [40, 40, 40]], rtol=1e-6)
    with pytest.raises(DataError, match=r"0.png: is 16x12, 0.png is 8x6.*--shape"):
        all_of(str(tmp_path), identity("N", 3, "H", "W"))


def test_sixteen_bit_images_keep_their_range(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "a/0.png")
    assert open_dataset(str(tmp_path)).take(np.array([0]))[0].tolist() == np.full((1, 4, 4, 1), 0x80).tolist()


def test_unzipped_idx_and_its_dotted_name_read_alike(tmp_path: Path, shared: Path) -> None:
    for name in ("images-idx3", "labels-idx1"):
        content = gzip.decompress((shared / f"data/mnist/t10k-{name}-ubyte.gz").read_bytes())
        (tmp_path / f"t10k-{name.replace('-', '.')}-ubyte").write_bytes(content)
    some = np.array([3, 9_999, 0])
    for one, other in zip(
        open_dataset(str(tmp_path)).take(some), open_dataset(f"{shared}/data/mnist").take(some), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def _tabular(folder: Path) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x, y = rng.random((50, 4), np.float32), rng.integers(0, 3, 50)
    with h5py.File(folder / "d.hdf5", "w") as file:
        file["x"], file["y"] = x, y
    columns = {name: x[:, i] for i, name in enumerate("abcd")} | {"label": y}
    pq.write_table(pa.table(columns), folder / "d.parquet")
    return x, y


@pytest.mark.parametrize("name", ["d.hdf5", "d.parquet"])
def test_hdf5_and_parquet_rows_come_in_the_order_asked_for(name: str, tmp_path: Path) -> None:
    x, y = _tabular(tmp_path)
    path = (tmp_path / name).rename(tmp_path / "without_suffix")  # the content tells the format
    indices = np.array([7, 3, 49, 3, 0])
    found, labels = open_dataset(f"{path}#0:50").take(indices)
    np.testing.assert_array_equal(found, x[indices])
    np.testing.assert_array_equal(labels, y[indices])
    assert labels.dtype == np.int64


def test_cifar_binary_equals_the_arrays_it_was_written_from(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (7, 32, 32, 3), np.uint8), rng.integers(0, 10, 7, np.uint8)
    rows = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(7, -1)], axis=1)
    rows[:4].tofile(tmp_path / "data_batch_1.bin")
    rows[4:].tofile(tmp_path / "data_batch_2.bin")
    rows[:2].tofile(tmp_path / "test_batch.bin")
    order = np.array([6, 0, 4, 3])
    x, y = open_dataset(f"{tmp_path}#train").take(order)
    np.testing.assert_array_equal(x, images[order])
    assert y.tolist() == labels[order].tolist()
    with pytest.raises(DataError, match="has parts"):
        open_dataset(str(tmp_path))


def test_arrays_in_the_model_s_own_layout_are_taken_as_they_are() -> None:
    x = np.random.default_rng(0).random((6, 3, 8, 8), np.float32)
    settings = Preprocessing(mean=[0.1, 0.2, 0.3], scale=2.0)
    plain, _ = all_of((x, np.zeros(6, np.int64)), identity("N", 3, 8, 8))
    np.testing.assert_array_equal(plain, x)
    scaled, _ = all_of((x, np.zeros(6, np.int64)), identity("N", 3, 8, 8, preprocessing=settings))
    mean = np.array([0.1, 0.2, 0.3], np.float32)
    np.testing.assert_allclose(scaled, (x - mean[:, None, None]) * 2, rtol=1e-6)


def _targets(y: Any, loss: str, *dims: int | str) -> Any:
    data = (np.zeros((len(y), *(d for d in dims[1:] if isinstance(d, int))), np.float32), np.asarray(y))
    return np.concatenate([t for _, t in batches(data, identity(*dims), 2, loss=loss)])


def test_targets_become_what_the_loss_takes() -> None:
    for labels in ([0, 1, 2], [[0], [1], [2]], [0.0, 1.0, 2.0]):
        found = _targets(labels, "cross_entropy", "N", 3)
        assert found.tolist() == [0, 1, 2] and found.dtype == np.int64
    values = _targets([4, 5, 6], "mse", "N", 1)  # whole numbers are values too
    assert values.tolist() == [[4.0], [5.0], [6.0]] and values.dtype == np.float32


@pytest.mark.parametrize(
    ("y", "loss", "message"),
    [
        ([0, 1, 2, 9, 1], "cross_entropy", r"sample 3 has label 9, the model has 3 classes, 0 to 2"),
        ([0, -1], "cross_entropy", r"sample 1 has label -1"),
        ([0.5, 1], "cross_entropy", r"float32 and shape \[\] are no class labels"),
        ([[0, 1], [1, 0]], "cross_entropy", r"int64 and shape \[2\] are no class labels"),
        ([1.0, 2.0], "mse", r"a target has shape \[\], the model's output \[3\]"),
        (["cat", "dog"], "cross_entropy", r"the targets are <U3"),
    ],
)
def test_targets_that_do_not_fit_the_loss_are_named(y: Any, loss: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _targets(y, loss, "N", 3)


def test_an_error_in_the_background_reaches_the_consumer(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for index in range(6):
        Image.new("RGB", (4, 4)).save(tmp_path / f"a/{index}.png")
    (tmp_path / "a/5.png").write_bytes((tmp_path / "a/0.png").read_bytes()[:42])
    before, seen = threading.active_count(), 0
    with pytest.raises(DataError, match=r"5\.png: not a readable image"):
        for _ in batches(str(tmp_path), identity("N", 3, 4, 4), 1):
            seen += 1
    assert seen == 5 and threading.active_count() == before


def _truncated(tmp_path: Path, shared: Path) -> str:
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        shutil.copy(shared / "data/mnist" / name, tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:5000])
    return str(tmp_path)


def _bad_magic(tmp_path: Path, shared: Path) -> str:
    shutil.copy(shared / "data/mnist/t10k-labels-idx1-ubyte.gz", tmp_path)
    with gzip.open(tmp_path / "t10k-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"\0\0\x0d\3" + bytes(100))
    return str(tmp_path)


def _broken_image(tmp_path: Path, shared: Path) -> str:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/0.jpg").write_bytes(b"\xff\xd8 no picture")
    return str(tmp_path)


def _pickle(tmp_path: Path, shared: Path) -> str:
    np.savez(tmp_path / "d.npz", x=np.array([{}], object), y=np.zeros(1))
    return f"{tmp_path}/d.npz"


def _corrupt_gzip(tmp_path: Path, shared: Path) -> str:
    _truncated(tmp_path, shared)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000] + bytes(4000))
    return str(tmp_path)


def _text(content: str) -> Any:
    def make(tmp_path: Path, shared: Path) -> str:
        (tmp_path / "d.csv").write_text(content)
        return f"{tmp_path}/d.csv"

    return make


def _cut(name: str) -> Any:
    def make(tmp_path: Path, shared: Path) -> str:
        _tabular(tmp_path)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:300])
        return f"{tmp_path}/{name}"

    return make


def _parts_without_choice(tmp_path: Path, shared: Path) -> str:
    np.savez(tmp_path / "d.npz", x_train=np.zeros((3, 2)), y_train=np.zeros(3))
    return f"{tmp_path}/d.npz"


def _unequal(tmp_path: Path, shared: Path) -> str:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    return f"{tmp_path}/d.npz"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp, shared: str(tmp / "nowhere"), "no such file or folder"),
        (lambda tmp, shared: str(tmp), "neither class folders nor"),
        (lambda tmp, shared: f"{shared}/data/cifar10", "has parts"),
        (lambda tmp, shared: f"{shared}/data/mnist#5", "#5 picks nothing"),
        (lambda tmp, shared: f"{shared}/data/mnist#9:3", "empty"),
        (lambda tmp, shared: f"{shared}/data/mnist#train", "no pair of train images"),
        (_truncated, "t10k-images-idx3-ubyte.gz: (truncated|cannot be read)"),
        (_bad_magic, "magic 00000d03"),
        (_broken_image, "0.jpg: not a readable image"),
        (_pickle, "not a readable npz"),
        (_unequal, "3 samples but 2 targets"),
        (_corrupt_gzip, "t10k-images-idx3-ubyte.gz: (truncated|cannot be read)"),
        (_parts_without_choice, "write .*d.npz#train"),
        (_text("a,label\n1,x\n"), r"not a table of numbers, line 2"),
        (_text("a,label\n1,2\n3\n"), r"line 3 has 1 values, the header 2"),
        (_text("1,2\n3,4\n"), "must name the columns"),
        (_text("a,label\nnan,1\n"), "row 0 has no number in column 'a'"),
        (_text("a,label\n"), "empty"),
        (_cut("d.hdf5"), "not a readable HDF5 file"),
        (_cut("d.parquet"), "not a table of numbers"),
        (lambda tmp, shared: "sklearn:faces", "choose one of breast_cancer"),
    ],
)
def test_bad_data_is_one_clear_error(make: Any, message: str, tmp_path: Path, shared: Path) -> None:
    spec = make(tmp_path, shared)
    with pytest.raises(DataError, match=message) as caught:
        as_dataset(spec).take(np.array([0]))
    assert "\n" not in str(caught.value)


def test_samples_that_do_not_fit_the_model_are_named(shared: Path) -> None:
    with pytest.raises(DataError, match=r"sample has shape \[1, 28, 28\].*takes \[1, 32, 32\]"):
        all_of(f"{shared}/data/mnist#0:10", identity("N", 1, 32, 32))
    with pytest.raises(DataError, match=r"images have 3 channels.*takes 1"):
        all_of(f"{shared}/data/cifar10#test#0:10", identity("N", 1, 32, 32))
