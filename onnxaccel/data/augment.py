"""Random changes to training images, each a function of seed, epoch and sample alone.

So a resumed training sees the images that it would have seen, whatever the batches before it were.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from onnxaccel.data.dataset import Array
from onnxaccel.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """What to change, as torchvision's RandomHorizontalFlip, RandomCrop and ColorJitter do.

    Attributes:
        flip: Mirror half of the images left to right.
        crop: Pad images by so many pixels of zero on each side, and cut them back at a random place.
        brightness: Multiply pixels by a random factor from 1 - brightness to 1 + brightness.
        contrast: Scale the distance to the image's mean grey by such a factor.
        saturation: Scale the distance to each pixel's own grey by such a factor (images of three channels).
    """

    flip: bool = False
    crop: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (isinstance(value, float) and value > 1):
                raise DataError(
                    f"augmentation: {field.name} must be from 0 to 1, crop from 0 on; not {value}"
                )

    def __call__(
        self, images: Array, indices: npt.NDArray[np.int64], seed: int, epoch: int, source: str
    ) -> Array:
        """Change a batch.

        Args:
            images: [N, H, W, C] images; uint8, or floats of any range.
            indices: The samples' numbers in the data set, [N].
            seed: The training's seed.
            epoch: The number of the epoch.
            source: Where the images come from, for messages.

        Returns:
            Images of the same shape and type; uint8 stays within 0 to 255.

        Raises:
            DataError: The samples are no images.
        """
        if images.ndim != 4:
            raise DataError(
                f"{source}: samples of shape {list(images.shape[1:])} are no images [H, W, C] to augment"
            )
        draws = _uniform(seed, epoch, indices, 6)
        if self.flip or self.crop:
            images = self._moved(images, draws[0] < 0.5, draws[1:3])
        if self.brightness or self.contrast or self.saturation:
            images = self._coloured(images, draws[3:])
        return images

    def _moved(self, images: Array, turned: npt.NDArray[np.bool_], places: Array) -> Array:
        """Crops and mirror images; slices of rows copy several times faster than one gather of all pixels."""
        _, height, width, _ = images.shape
        pad = self.crop
        padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else images
        corners = (places * (2 * pad + 1)).astype(np.int64).T
        moved = np.empty_like(images, order="C")
        for number, (top, left) in enumerate(corners):
            piece = padded[number, top : top + height, left : left + width]
            moved[number] = piece[:, ::-1] if self.flip and turned[number] else piece
        return moved

    def _coloured(self, images: Array, draws: Array) -> Array:
        kind = images.dtype
        x = images.astype(np.float32)
        brightness, contrast, saturation = (
            (1 + strength * (2 * draw - 1)).astype(np.float32).reshape(-1, 1, 1, 1)
            for strength, draw in zip((self.brightness, self.contrast, self.saturation), draws, strict=True)
        )
        if self.brightness:
            x *= brightness
        if self.contrast:
            mean = _grey(x).mean(axis=(1, 2), keepdims=True)
            x = (x - mean) * contrast + mean
        if self.saturation and x.shape[3] == 3:
            grey = _grey(x)
            x = (x - grey) * saturation + grey
        if kind == np.uint8:
            np.clip(np.rint(x, out=x), 0, 255, out=x)
        return x.astype(kind)


def _grey(x: Array) -> Array:
    """The luma of ITU-R 601 of RGB images [N, H, W, 3], as [N, H, W, 1]; other images as they are."""
    return x @ np.array([[0.299], [0.587], [0.114]], x.dtype) if x.shape[3] == 3 else x


def _uniform(seed: int, epoch: int, indices: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """``count`` numbers from 0 to 1 for each sample, [count, N].

    Each is the finaliser of SplitMix64 (Steele, Lea and Flood 2014) over a counter of its own.
    """
    key = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    golden = np.uint64(0x9E3779B97F4A7C15)
    numbers = indices.astype(np.uint64) * np.uint64(count) + np.arange(count, dtype=np.uint64)[:, None]
    z = key + (numbers + np.uint64(1)) * golden
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    uniform: npt.NDArray[np.float64] = (z >> np.uint64(11)) * 2.0**-53
    return uniform
