"""Images in class folders, decoded when they are taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxaccel.bounds import entries
from onnxaccel.data.dataset import Array, Dataset, Size
from onnxaccel.data.spec import PARTS, reader
from onnxaccel.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file is called: of Pillow's other formats, EPS runs Ghostscript."""


@dataclass
class ImageFolder:
    """Image files and their labels.

    Attributes:
        source: The folder.
        files: The images.
        labels: Their classes, int64 [N].
        classes: Names of the classes.
    """

    source: str
    files: list[Path]
    labels: npt.NDArray[np.int64]
    classes: list[str] | None

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: npt.NDArray[np.int64], size: Size | None = None) -> tuple[Array, Array]:
        """See `Dataset.take`; uint8, RGB where any image of the batch has colour.

        Raises:
            DataError: An image is unreadable, or images differ in size and there is no size to bring them to.
        """
        images = [read_image(self.files[i], size) for i in indices]
        for index, image in zip(indices, images, strict=True):
            if image.shape[:2] != images[0].shape[:2]:
                raise DataError(
                    f"{self.files[index]}: is {_pixels(image)}, {self.files[indices[0]].name} is "
                    f"{_pixels(images[0])}, and the model's input has no fixed size to resize them to; "
                    "convert it with --shape NAME=1,3,HEIGHT,WIDTH"
                )
        channels = max(image.shape[2] for image in images)
        return np.stack([np.repeat(i, channels // i.shape[2], axis=2) for i in images]), self.labels[indices]


def read_image(path: Path, size: Size | None = None) -> npt.NDArray[np.uint8]:
    """An image as uint8 [H, W, 1] where it is grey, else RGB [H, W, 3].

    Args:
        path: The file.
        size: (H, W) to resize to, bilinearly; None keeps the image's own.

    Raises:
        DataError: The file holds no image that can be decoded.
    """
    return decode_image(path, str(path), size)


def decode_image(file: Path | BinaryIO, source: str, size: Size | None) -> npt.NDArray[np.uint8]:
    """`read_image` for an open file, which messages call ``source``."""
    try:
        with Image.open(file, formats=_FORMATS) as opened:
            image: Image.Image = opened
            if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's convert would clip to 255
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            image = image.convert("L" if image.mode in ("1", "L") else "RGB")
            if size is not None and image.size != size[::-1]:
                image = image.resize(size[::-1], Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        raise DataError(f"{source}: not a readable image ({error}); remove or replace it") from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


@reader("folder")
def folder(path: Path, part: str | None) -> Dataset:
    """Class folders: the sorted names of sub-folders are the classes; train/, val/ and test/ are parts."""
    if part is not None:
        if not (path / part).is_dir():
            raise DataError(f"{path}: has no part {part!r} (no folder {part}/)")
        entries(path, DataError)
    root, path = path, path / (part or "")
    folders = [entry for entry in entries(path, DataError, root) if entry.is_dir()]
    classes = [entry.name for entry in folders if entry.name[0] != "."]
    if (part is None and "train" in classes) or set(classes) <= set(PARTS):
        raise DataError(f"{path}: has parts; write {' or '.join(f'{path}#{name}' for name in classes)}")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [
            file
            for file in entries(path / name, DataError, root)
            if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."
        ]
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"{path}: no images in its class folders")
    return ImageFolder(str(path), files, np.array(labels, np.int64), classes)


def _pixels(image: npt.NDArray[np.uint8]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
