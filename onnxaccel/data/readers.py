"""The readers, one function per format."""

from __future__ import annotations

import csv
import gzip
import io
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from onnxaccel.data.dataset import Array, Arrays, Dataset
from onnxaccel.data.spec import PARTS, reader
from onnxaccel.errors import DataError, MissingDependency

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


@dataclass
class ImageFolder:
    """Images in class folders, decoded when they are taken."""

    source: str
    files: list[Path]
    labels: npt.NDArray[np.int64]
    classes: list[str] | None

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: npt.NDArray[np.int64]) -> tuple[Array, Array]:
        """See `Dataset.take`; images of one batch must share a size, colour is RGB, uint8."""
        images = [read_image(self.files[i]) for i in indices]
        sizes = {image.shape for image in images}
        if len(sizes) > 1:  # the first one decides, as the batch must be one array
            height, width = images[0].shape[:2]
            images = [_resized(image, height, width) for image in images]
        return np.stack(images), self.labels[indices]


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image as uint8 [H, W, 1] where it is grey, else RGB [H, W, 3]."""
    try:
        with Image.open(path) as image:
            mode = "L" if image.mode in ("1", "L", "I;16", "I") else "RGB"
            pixels = np.asarray(image.convert(mode))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error}); remove or replace it") from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _resized(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    grey = image.shape[2] == 1
    picture = Image.fromarray(image[..., 0] if grey else image).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(picture)
    return pixels[..., None] if grey else pixels


@reader("folder")
def folder(path: Path, part: str | None) -> Dataset:
    """Class folders of images: sorted names of sub-folders are the classes; train/ and test/ are parts."""
    if part is not None:
        if not (path / part).is_dir():
            raise DataError(f"{path}: has no part {part!r} (no folder {part}/)")
        path = path / part
    elif {entry.name for entry in path.iterdir() if entry.is_dir()} <= set(PARTS):
        raise DataError(f"{path}: has parts; write {path}#train or {path}#test")
    classes = sorted(
        entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(f for f in (path / name).iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"{path}: no images in its class folders")
    return ImageFolder(str(path), files, np.array(labels, np.int64), classes)


@reader("idx")
def idx(path: Path, part: str | None) -> Dataset:
    """MNIST's IDX format (LeCun), gzipped or not: a folder with images and labels, or the images file."""
    base = path if path.is_dir() else path.parent
    prefixes = {"train": "train", "test": "t10k"}
    wanted = [prefixes[part]] if part else list(prefixes.values())
    pairs = []
    for prefix in wanted:
        images = _one_of(base, f"{prefix}-images-idx3-ubyte")
        labels = _one_of(base, f"{prefix}-labels-idx1-ubyte")
        if images is not None and labels is not None and (path.is_dir() or images == path):
            pairs.append((_read_idx(images, 3), _read_idx(labels, 1)))
    if not pairs:
        raise DataError(
            f"{path}: no pair of {' or '.join(wanted)} images and labels (…-images-idx3-ubyte) in it"
        )
    x = np.concatenate([images for images, _ in pairs]) if len(pairs) > 1 else pairs[0][0]
    y = np.concatenate([labels for _, labels in pairs]) if len(pairs) > 1 else pairs[0][1]
    return Arrays(str(path), x[..., None], y, [str(digit) for digit in range(int(y.max(initial=0)) + 1)])


def _one_of(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _read_idx(path: Path, rank: int) -> npt.NDArray[np.uint8]:
    """One IDX file of bytes: magic 0, 0, 8, rank; then the sizes as big-endian uint32; then the data."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        opened = gzip.open(path, "rb") if zipped else path.open("rb")
        with opened as file:
            magic = file.read(4)
            if magic != bytes([0, 0, 8, rank]):
                raise DataError(
                    f"{path}: not an IDX file of {rank} dimensions of bytes (magic {magic.hex()})"
                )
            header = file.read(4 * rank)
            sizes = struct.unpack(f">{rank}I", header) if len(header) == 4 * rank else ()
            count = math.prod(sizes)
            data = file.read(count) if count < 2**33 else b""
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again") from None
    if not sizes or len(data) < count:
        raise DataError(f"{path}: truncated: {len(data)} of {count} bytes; download it again")
    return np.frombuffer(data, np.uint8).reshape(sizes)


@reader("npz")
def npz(path: Path, part: str | None) -> Dataset:
    """A numpy archive with arrays x and y (or x_train, y_train, x_test, y_test)."""
    suffix = f"_{part}" if part else ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = {name.lower(): name for name in archive.files}
            x = _array(archive, names, [f"x{suffix}", f"images{suffix}", f"data{suffix}"], path)
            y = _array(archive, names, [f"y{suffix}", f"labels{suffix}", f"target{suffix}"], path)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: not a readable npz file ({error})") from None
    return Arrays(str(path), x, y)


def _array(archive: np.lib.npyio.NpzFile, names: dict[str, str], wanted: list[str], path: Path) -> Array:
    for name in wanted:
        if name in names:
            array: Array = archive[names[name]]
            if array.ndim == 0:
                raise DataError(f"{path}: array {name!r} is a single value, not one per sample")
            return array
    raise DataError(f"{path}: no array {wanted[0]!r} in it; it holds {', '.join(names.values())}")


@reader("sklearn")
def sklearn(path: Path, part: str | None) -> Dataset:
    """A data set that scikit-learn ships: digits (8x8 images), iris, wine, breast_cancer, diabetes."""
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingDependency("scikit-learn", "demo", f"read sklearn:{path}") from None
    load = getattr(datasets, f"load_{path}", None)
    if load is None or part is not None:
        raise DataError(f"sklearn:{path}: no such data set, or it has no parts; try sklearn:digits#0:1500")
    bunch = load()
    if path.name == "digits":  # 17 grey levels; as bytes they are scaled like every other image
        images = (bunch.images * (255 / 16)).round().astype(np.uint8)
        return Arrays("sklearn:digits", images[..., None], bunch.target, [str(n) for n in bunch.target_names])
    names = [str(n) for n in bunch.target_names] if "target_names" in bunch else None
    return Arrays(f"sklearn:{path}", bunch.data.astype(np.float32), bunch.target, names)


@reader("csv")
def comma_separated(path: Path, part: str | None) -> Dataset:
    """Numbers under a header line; the target is column label, target, class or y, else the last."""
    if part is not None:
        raise DataError(f"{path}: a csv file has no parts; pick a range, such as #0:1000")
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        header, body = rows[0], [row for row in rows[1:] if row]
        table = np.array(body, np.float64)
    except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: not a table of numbers under one header line ({error})") from None
    if table.ndim != 2 or table.shape[1] != len(header) or len(header) < 2:
        raise DataError(f"{path}: needs one target column and at least one more, all rows equally long")
    names = [name.strip().lower() for name in header]
    target = next(
        (names.index(name) for name in ("label", "target", "class", "y") if name in names), len(names) - 1
    )
    y = table[:, target]
    whole = bool(np.all(y == np.round(y)) and y.min(initial=0) >= 0)
    x = np.delete(table, target, axis=1).astype(np.float32)
    return Arrays(str(path), x, y.astype(np.int64) if whole else y.astype(np.float32))


@reader("cifar")
def cifar(path: Path, part: str | None) -> Dataset:
    """CIFAR-10's binary format (Krizhevsky): rows of a label byte and 3 x 32 x 32 pixels, channels first."""
    patterns = {"train": "data_batch_*.bin", "test": "test_batch.bin"}
    files = sorted(f for name in ([part] if part else PARTS) for f in path.glob(patterns[name]))
    if not files:
        raise DataError(f"{path}: has no {part or 'data'} batch files")
    rows = []
    for file in files:
        data = np.fromfile(file, np.uint8)
        if not data.size or data.size % 3073:
            raise DataError(f"{file}: truncated: {data.size} bytes are no whole number of 3073-byte rows")
        rows.append(data.reshape(-1, 3073))
    table = np.concatenate(rows)
    images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Arrays(str(path), images, table[:, 0])
