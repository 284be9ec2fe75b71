"""Caffe's databases, lists and transformations, against the libraries that write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from onnxaccel.data import as_dataset, batches, open_dataset
from onnxaccel.errors import DataError
from onnxaccel.graph.model import Preprocessing, packed
from tests.data.databases import datum, encoded, write_leveldb, write_lmdb
from tests.data.test_data import all_of, identity

WRITERS = {"lmdb": write_lmdb, "leveldb": write_leveldb}


def images(count: int, *shape: int) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "shape", [(1, 5, 4), (3, 28, 28), (3, 70, 90)], ids=["one page", "a tree", "overflow pages"]
)
def test_databases_give_what_was_written_in_the_order_of_the_keys(
    kind: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    x = images(300, *shape)
    spec = str(WRITERS[kind](tmp_path / "db", [datum(image, i % 7 - 1) for i, image in enumerate(x)]))
    data = open_dataset(spec)
    assert len(data) == 300 and len(open_dataset(f"{spec}#20:50")) == 30
    order = np.random.default_rng(0).permutation(300)
    raw, labels = data.take(order)
    rgb = x.transpose(0, 2, 3, 1)[..., ::-1] if shape[0] == 3 else x.transpose(0, 2, 3, 1)
    assert raw.dtype == np.uint8 and np.array_equal(raw, rgb[order])
    assert labels.dtype == np.int64 and np.array_equal(labels, order % 7 - 1)
    model = identity("N", *shape, preprocessing=Preprocessing(layout="NCHW", channels="BGR", scale=1.0))
    fed, _ = all_of(spec, model)
    assert np.array_equal(fed, x), "a Caffe model gets the bytes as they are"


@pytest.mark.parametrize("kind", WRITERS)
def test_encoded_and_float_datums(kind: str, tmp_path: Path) -> None:
    rgb = images(3, 8, 6, 3)
    data = open_dataset(str(WRITERS[kind](tmp_path / "png", [encoded(image, 2) for image in rgb])))
    raw, labels = data.take(np.array([2, 0]))
    assert np.array_equal(raw, rgb[[2, 0]]) and labels.tolist() == [2, 2]
    floats = np.random.default_rng(0).standard_normal((3, 2, 4, 5)).astype(np.float32)
    data = open_dataset(str(WRITERS[kind](tmp_path / "float", [datum(image, 1) for image in floats])))
    assert np.array_equal(data.take(np.arange(3))[0], floats.transpose(0, 2, 3, 1))


def test_a_folder_of_databases_has_parts(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("test", 2)):
        write_lmdb(tmp_path / f"mnist_{part}_lmdb", [datum(image, 0) for image in images(count, 1, 2, 2)])
    assert [len(open_dataset(f"{tmp_path}#{part}")) for part in ("train", "test")] == [5, 2]
    with pytest.raises(DataError, match="holds mnist_test_lmdb, mnist_train_lmdb; give one of them"):
        open_dataset(str(tmp_path))


def test_lists_of_hdf5_files_and_of_images(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((10, 2, 3, 3)).astype(np.float32)
    for name, rows in (("a.h5", slice(0, 4)), ("b.h5", slice(4, 10))):
        with h5py.File(tmp_path / name, "w") as file:
            file["data"], file["label"] = x[rows], np.arange(10.0, dtype=np.float32)[rows, None]
    (tmp_path / "train.txt").write_text(f"a.h5\n{tmp_path}/b.h5\n")
    order = np.random.default_rng(0).permutation(10)
    raw, labels = open_dataset(f"{tmp_path}/train.txt").take(order)
    assert np.array_equal(raw, x[order]) and np.array_equal(labels.ravel(), order)
    fed, targets = all_of(f"{tmp_path}/train.txt", identity("N", 2, 3, 3))
    assert np.array_equal(fed, x) and targets.shape == (10, 1)

    (tmp_path / "pictures/cats").mkdir(parents=True)
    rgb = images(2, 4, 4, 3)
    for number, image in enumerate(rgb):
        Image.fromarray(image).save(tmp_path / f"pictures/cats/{number}.png")
    (tmp_path / "images.txt").write_text("cats/1.png 7\ncats/0.png 3\n")
    raw, labels = open_dataset(f"{tmp_path}/images.txt#root={tmp_path}/pictures").take(np.arange(2))
    assert np.array_equal(raw, rgb[::-1]) and labels.tolist() == [7, 3]
    (tmp_path / "pictures/images.txt").write_text("cats/0.png 3")
    assert len(open_dataset(f"{tmp_path}/pictures/images.txt")) == 1


def test_transformations_are_caffe_s(tmp_path: Path) -> None:
    """``(x - mean) * scale``, the mean image cropped where the image is; the centre without randomness."""
    x = images(64, 3, 7, 9)
    spec = str(write_lmdb(tmp_path / "db", [datum(image, i) for i, image in enumerate(x)]))
    mean = np.random.default_rng(1).uniform(0, 255, (3, 7, 9)).astype(np.float32)
    whole = (x - mean) * np.float32(0.25)
    settings = Preprocessing(layout="NCHW", channels="BGR", scale=0.25, mean_image=packed(mean), crop=4)
    model = identity("N", 3, 4, 4, preprocessing=settings)
    centre, _ = all_of(spec, model)
    assert np.array_equal(centre, whole[:, :, 1:5, 2:6]), "floor((7 - 4) / 2), floor((9 - 4) / 2)"

    settings.mirror = True
    drawn, labels = all_of(spec, model, seed=3)
    again, _ = all_of(spec, model, seed=3)
    assert np.array_equal(drawn, again), "what is drawn follows from the seed"
    corners: dict[tuple[int, int, bool], int] = {}
    for sample, label in zip(drawn, labels, strict=True):
        found = [
            (top, left, turned)
            for top in range(4)
            for left in range(6)
            for turned in (False, True)
            if np.array_equal(
                sample[:, :, ::-1] if turned else sample,
                whole[label, :, top : top + 4, left : left + 4],
            )
        ]
        assert len(found) == 1
        corners[found[0]] = corners.get(found[0], 0) + 1
    tops, lefts, turned = (
        {corner[axis] for corner in corners} for axis in range(3)
    )  # 64 draws of 4, 6 and 2 values
    assert (tops, lefts, turned) == ({0, 1, 2, 3}, set(range(6)), {False, True})


def _cut_lmdb(tmp_path: Path) -> str:
    file = write_lmdb(tmp_path / "db", [datum(image, 0) for image in images(200, 1, 28, 28)]) / "data.mdb"
    file.write_bytes(file.read_bytes()[:20_000])
    return str(tmp_path / "db")


def _cut_leveldb(tmp_path: Path) -> str:
    write_leveldb(tmp_path / "db", [datum(image, 0) for image in images(20, 1, 28, 28)])
    manifest = next((tmp_path / "db").glob("MANIFEST-*"))
    manifest.write_bytes(manifest.read_bytes()[:7])
    return str(tmp_path / "db")


def _list(line: str) -> Any:
    def make(tmp_path: Path) -> str:
        (tmp_path / "list.txt").write_text(line)
        return f"{tmp_path}/list.txt"

    return make


def _values(*values: bytes) -> Any:
    return lambda tmp_path: str(write_lmdb(tmp_path / "db", list(values)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_cut_lmdb, "damaged or truncated LMDB database"),
        (_cut_leveldb, "not a readable LevelDB database"),
        (_values(b"\xff\xff\xff"), "sample 0 is no Datum"),
        (_values(datum(images(1, 1, 2, 2)[0], 0)[:-6]), "sample 0 (is no Datum|declares)"),
        (_values(b"\x08\x7f\x10\x7f\x18\x7f"), r"sample 0 declares \[127, 127, 127\] and holds 0 values"),
        (_values(encoded(images(1, 4, 4, 3)[0], 0)[:-30]), "sample 0"),
        (_list("nowhere.h5\n"), "line 1: .*nowhere.h5: no such file"),
        (_list("nowhere.jpg 3\n"), "nowhere.jpg: no such file; .*#root=FOLDER says where"),
        (_list("a.jpg 3\nb.jpg cat\n"), "line 1: .*a.jpg: no such file"),
        (_list("a.jpg 99999999999\n"), "line 1 is no image and its label"),
    ],
)
def test_bad_data_is_one_clear_error(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        as_dataset(make(tmp_path)).take(np.array([0]))
    assert "\n" not in str(caught.value)


def test_samples_of_two_sizes_are_named(tmp_path: Path) -> None:
    values = [datum(images(1, 1, 2, size)[0], 0) for size in (2, 3)]
    data = open_dataset(str(write_lmdb(tmp_path / "db", values)))
    with pytest.raises(DataError, match=r"sample 1 has shape \[2, 3, 1\], sample 0 \[2, 2, 1\]"):
        data.take(np.arange(2))


def test_a_mean_file_that_was_missing_and_a_crop_that_is_too_large_are_said(tmp_path: Path) -> None:
    spec = str(write_lmdb(tmp_path / "db", [datum(images(1, 1, 4, 4)[0], 0)]))
    for settings, message in (
        (Preprocessing(mean_image="imagenet_mean.binaryproto"), "imagenet_mean.binaryproto was not there"),
        (Preprocessing(crop=5), "4x4, smaller than the model's crop of 5"),
    ):
        with pytest.raises(DataError, match=message):
            list(batches(spec, identity("N", 1, "h", "w", preprocessing=settings), 1))


_FUZZ = """
import sys
import numpy as np
from onnxaccel.data import open_dataset
from onnxaccel.errors import DataError

path = sys.argv[1] + "/data.mdb"
whole = open(path, "rb").read()
rng = np.random.default_rng(0)
refused = 0
for _ in range(400):
    data = bytearray(whole)
    pages = rng.integers(0, len(data) // 4096, 3) * 4096
    for page in pages:  # headers, entries and sizes are at a page's start and in its nodes
        for place in page + rng.integers(0, rng.choice([64, 4096]), 4):
            data[place] = rng.integers(0, 256)
    open(path, "wb").write(data)
    try:
        dataset = open_dataset(sys.argv[1])
        dataset.take(np.arange(len(dataset)))
    except DataError as error:
        assert "\\n" not in str(error)
        refused += 1
print(refused)
"""


def test_a_damaged_database_never_ends_the_process(tmp_path: Path) -> None:
    x = [datum(image, 0) for image in [*images(60, 1, 28, 28), *images(3, 3, 60, 60)]]
    write_lmdb(tmp_path / "db", x)
    done = subprocess.run(
        [sys.executable, "-c", _FUZZ, str(tmp_path / "db")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-400:]
    assert int(done.stdout) > 50
