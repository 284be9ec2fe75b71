"""Faults, done to the real command line: what may be lost is nothing, and what is said is one line.

benchmarks/faults.py does hundreds of rounds of what stands here in a few.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from onnxaccel import models
from tests.data.databases import datum, write_lmdb
from tests.faults.rounds import (
    VERBS,
    Disk,
    Reference,
    Verb,
    alone,
    fresh,
    full_rounds,
    intact,
    killed_rounds,
    members,
    newest,
    prepare,
    reference,
    run,
    signalled_rounds,
    start,
    tidy,
)

TRAIN = VERBS["train"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("faults") / "inputs")


@pytest.fixture(scope="module")
def trained(inputs: Path) -> Reference:
    return reference(TRAIN, inputs, inputs.parent / "trained")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        disk = Disk(tmp_path / "disk")
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    yield disk
    disk.close()


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed run ends with."""
    assert done.returncode == 1, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in done.stderr, done.stderr
    assert "bug in onnxaccel" not in lines[-1], lines[-1]
    return lines[-1]


# -- killed and told to end -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convert", "encrypt"])
def test_killed_while_it_makes_a_file(name: str, inputs: Path, tmp_path: Path) -> None:
    expected = reference(VERBS[name], inputs, tmp_path / "reference")
    counts = killed_rounds(VERBS[name], inputs, tmp_path / "r", range(1, 3), expected, every=2)
    assert (counts.rounds, counts.after) == (2, 1)


def test_killed_trainings_end_with_the_same_bits(inputs: Path, trained: Reference, tmp_path: Path) -> None:
    counts = killed_rounds(TRAIN, inputs, tmp_path / "r", (1, 6, 7), trained)
    assert (counts.rounds, counts.after) == (3, 3) and counts.resumed


def test_a_killed_optimize_takes_its_processes_with_it(inputs: Path, tmp_path: Path) -> None:
    folder = fresh(inputs, tmp_path / "r")
    process = start(VERBS["optimize"], folder)
    deadline = time.monotonic() + 60
    while len(members(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    alone(process.pid)
    assert not intact(VERBS["optimize"], folder, False, Reference(b"", 0))
    left = [p for p in (folder / "tmp").iterdir() if p.is_dir()]
    assert [p.name[:11] for p in left] == [".onnxaccel-"]
    done = run(replace(VERBS["optimize"], words="optimize m.onnx --only nothing -o out/made.onnx"), folder)
    assert "unknown variant 'nothing'" in error_of(done)
    assert not [p for p in (folder / "tmp").iterdir() if p.is_dir()]  # it cleared up all the same


def test_signals(inputs: Path, trained: Reference, tmp_path: Path) -> None:
    counts = signalled_rounds(TRAIN, inputs, tmp_path / "r", range(3), trained)
    assert counts.after == 3


# -- no room, no right ------------------------------------------------------------------------------


def test_trainings_on_a_full_disk(inputs: Path, trained: Reference, disk: Disk) -> None:
    counts = full_rounds(TRAIN, inputs, disk, (0, 620_000), trained)
    assert (counts.rounds, counts.after) == (2, 2) and counts.resumed


@pytest.mark.parametrize("verb", ["convert", "train", "optimize"])
def test_files_over_the_limit(verb: str, inputs: Path, tmp_path: Path) -> None:
    """As on a full disk, for those who may not mount one."""
    folder = fresh(inputs, tmp_path / "r", old=True)
    process = start(VERBS[verb], folder)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
    _, errors = process.communicate(timeout=300)
    error = error_of(subprocess.CompletedProcess([], process.returncode, "", errors))
    assert re.search("File too large", error), error
    assert not intact(VERBS[verb], folder, True, Reference(b"", 0))


def test_output_that_nobody_can_take() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "onnxaccel", "models", "list", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "No space left on device" in error_of(done)


@pytest.mark.parametrize("option", ["-o out/x.onnx", "--checkpoint out/state", "--logdir out/log"])
def test_folders_that_cannot_be_written(option: str, inputs: Path, disk: Disk) -> None:
    folder = fresh(inputs, disk.folder / "r", old=True)
    words = f"train m.onnx --data d.npz#train --ep cpu -o /dev/shm/never-written.onnx {option}"
    disk.read_only()
    done = run(Verb(words), folder)
    assert re.search(r"out/\S*: .*cannot be written \(Read-only file system\)", error_of(done))
    assert not Path("/dev/shm/never-written.onnx").exists()


# -- data that goes away ----------------------------------------------------------------------------

SIDE, SAMPLES = 12, 640


def samples() -> tuple[np.ndarray, np.ndarray]:
    """Grey images in the order of their classes, as a folder of class folders has them."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (SAMPLES, SIDE, SIDE), np.uint8), np.repeat(np.arange(4), SAMPLES // 4)


def as_idx(folder: Path) -> tuple[str, Path]:
    x, y = samples()
    for name, array in (("images-idx3", x), ("labels-idx1", y.astype(np.uint8))):
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    return ".#train", folder / "train-images-idx3-ubyte"


def as_hdf5(folder: Path) -> tuple[str, Path]:
    x, y = samples()
    with h5py.File(folder / "set.h5", "w") as file:
        file["x"], file["y"] = x, y
    return "set.h5", folder / "set.h5"


def as_lmdb(folder: Path) -> tuple[str, Path]:
    x, y = samples()
    write_lmdb(folder / "lmdb", [datum(image[None], int(label)) for image, label in zip(x, y, strict=True)])
    return "lmdb", folder / "lmdb/data.mdb"


def as_images(folder: Path) -> tuple[str, Path]:
    for number, (image, label) in enumerate(zip(*samples(), strict=True)):
        (folder / f"images/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"images/{label}/{number:04}.png")
    return "images", folder / "images/0/0007.png"


FORMS = {"idx": as_idx, "hdf5": as_hdf5, "lmdb": as_lmdb, "images": as_images}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The perceptron on images: Caffe's InnerProduct takes them as they are."""
    folder = tmp_path_factory.mktemp("images") / "inputs"
    folder.mkdir()
    net, weights = models.export("mlp", "caffe", folder, input_shape=(SIDE * SIDE,), classes=4).files[:2]
    Path(net).write_text(Path(net).read_text().replace(f"dim: {SIDE**2}", f"dim: 1 dim: {SIDE} dim: {SIDE}"))
    done = run(Verb(f"convert {net} {weights} --trainable -o m.onnx"), folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def images_trained(images: Path) -> Reference:
    """The training on images, undisturbed: the same bits in whatever form the images are."""
    spec, _ = as_idx(images)
    return reference(image_training(spec), images, images.parent / "trained")


def image_training(spec: str) -> Verb:
    return Verb(
        f"train m.onnx --data {spec} --epochs 30 --batch-size 16 --ep cpu --threads 1 --checkpoint state "
        "-o out/made.onnx"
    )


def shorten(file: Path) -> Callable[[], None]:
    content = file.read_bytes()
    os.truncate(file, len(content) // 3)
    return lambda: file.write_bytes(content) and None


def remove(file: Path) -> Callable[[], None]:
    aside = file.with_name("aside")
    file.rename(aside)
    return lambda: aside.rename(file) and None


@pytest.mark.parametrize(
    ("form", "harm"),
    [
        ("idx", shorten),
        ("hdf5", shorten),
        pytest.param("lmdb", shorten, marks=pytest.mark.slow),
        ("images", remove),
    ],
)
def test_data_that_goes_away_in_the_middle(
    form: str,
    harm: Callable[[Path], Callable[[], None]],
    images: Path,
    images_trained: Reference,
    tmp_path: Path,
) -> None:
    """One line that names the file, the state saved, and the same bits once the file is back."""
    folder = fresh(images, tmp_path / "r")
    spec, file = FORMS[form](folder)
    verb = image_training(spec)
    process = start(verb, folder)
    deadline = time.monotonic() + 60
    while not list(folder.glob("state/step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    mend = harm(file)
    _, errors = process.communicate(timeout=60)
    error = error_of(subprocess.CompletedProcess([], process.returncode, "", errors))
    assert file.name in error and re.search(r"shorter|cannot be read|not a readable", error), error
    mend()
    assert run(verb, folder, "--resume").returncode == 0
    tidy(verb, folder)
    assert (folder / verb.output).read_bytes() == images_trained.content


# -- others beside ----------------------------------------------------------------------------------


def test_two_trainings_in_one_checkpoint_folder(inputs: Path, trained: Reference, tmp_path: Path) -> None:
    folder = fresh(inputs, tmp_path / "r")
    first = start(replace(TRAIN, words=TRAIN.words.replace("--epochs 30", "--epochs 30000")), folder)
    deadline = time.monotonic() + 60
    while not list(folder.glob("state/step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert f"another training (process {first.pid}) writes its checkpoints here" in error_of(
        run(TRAIN, folder)
    )
    first.kill()
    first.communicate()
    assert run(TRAIN, folder).returncode == 0  # the dead one is no obstacle
    assert (folder / TRAIN.output).read_bytes() == trained.content


def test_workers_end_with_their_launcher_and_ctrl_c_reaches_them_once(
    inputs: Path, trained: Reference, tmp_path: Path
) -> None:
    folder = fresh(inputs, tmp_path / "r")
    verb = replace(TRAIN, words=TRAIN.words.replace("--epochs 30", "--epochs 3000") + " --workers 2")
    for number, how in enumerate((signal.SIGKILL, signal.SIGINT)):
        process = start(verb, folder, *(["--resume"] if number else []))
        before = newest(folder)
        deadline = time.monotonic() + 120
        while newest(folder) <= before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if how == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, how)  # as a terminal does
        _, errors = process.communicate(timeout=60)
        alone(process.pid)
        assert process.returncode == (130 if number else -how), errors
    assert newest(folder) > before and not list(folder.glob("state/.onnxaccel-*"))


def test_memory_that_runs_out(inputs: Path, tmp_path: Path) -> None:
    folder = fresh(inputs, tmp_path / "r", old=True)
    done = run(VERBS["optimize"], folder, "--memory-limit", "64")
    assert "the model does not run as it is: took more than 64 MiB of memory" in error_of(done)
    np.savez_compressed(folder / "d.npz", x=np.ones((400_000, 16), np.float32), y=np.zeros(400_000, np.int64))
    process = start(Verb("train m.onnx --data d.npz --ep cpu --batch-size 400000 -o out/made.onnx"), folder)
    resource.prlimit(process.pid, resource.RLIMIT_DATA, (2**29, 2**29))  # an activation alone has 2**27.6
    _, errors = process.communicate(timeout=120)
    error = error_of(subprocess.CompletedProcess([], process.returncode, "", errors))
    assert re.match(r"error: out of memory.*; use a smaller --batch-size", error), error
    assert not intact(TRAIN, folder, True, Reference(b"", 0))
