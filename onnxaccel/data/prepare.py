"""From raw samples to a model's input: mean, scale, layout, type; every misfit is said in one line."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxaccel.data.dataset import Array
from onnxaccel.errors import DataError
from onnxaccel.graph.builder import Dim, dims_of
from onnxaccel.graph.model import Model, Preprocessing, name_of, unpacked


@dataclass(frozen=True)
class Preparation:
    """How raw data becomes one input of a model.

    Attributes:
        name: The input's name.
        dims: The input's dimensions, the batch first.
        dtype: The input's element type.
        settings: Mean, scale, layout and channel order.
    """

    name: str
    dims: list[Dim]
    dtype: np.dtype[np.generic]
    settings: Preprocessing

    @classmethod
    def all_of(cls, model: Model, other: str | None = None) -> list[Preparation]:
        """The preparations of a model's inputs besides that called ``other``.

        Raises:
            DataError: An input's rank is not known.
        """
        found = []
        for value in model.inputs:
            if value.name == other:
                continue
            dims = dims_of(value)
            if dims is None or not dims or value.dtype is None:
                raise DataError(f"the shape of input {value.name!r} is not known; convert with --shape")
            found.append(cls(name_of(value), dims, value.dtype.numpy(), model.metadata.preprocessing))
        return found

    @classmethod
    def of(cls, model: Model) -> Preparation:
        """The preparation of a model's only input.

        Raises:
            DataError: The model has several inputs, or its input's rank is not known.
        """
        found = cls.all_of(model)
        if len(found) != 1:
            names = ", ".join(model.input_names())
            raise DataError(f"the model has {len(found)} inputs ({names}), which one image cannot feed")
        return found[0]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that encoded images are brought to, where they are known."""
        if self.settings.resize is not None:
            return self.settings.resize[0], self.settings.resize[1]
        mean = self._mean_image
        if mean is not None:
            return mean.shape[0], mean.shape[1]
        if len(self.dims) != 4:
            return None
        if self.settings.crop is not None:  # the size before it is the data's own
            return None
        height, width = self.dims[2:] if self._channels_first() else self.dims[1:3]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def __call__(self, raw: Array, source: str, rng: np.random.Generator | None = None) -> Array:
        """Prepare a batch.

        Args:
            raw: Samples stacked along axis 0; images as [N, H, W, C], or in the input's own layout already.
            source: Where they come from, for messages.
            rng: In training, where crops and mirrored images are drawn from; None: the crop is the centre.

        Returns:
            An array of the input's shape and type: ``(raw - mean) * scale``, cropped, in the input's layout.

        Raises:
            DataError: The samples do not fit the input.
        """
        scale = self.settings.scale
        if scale is None:
            scale = 1 / 255 if raw.dtype == np.uint8 else 1.0
        planar = self.is_planar(raw)
        image = raw.ndim == 4 and not planar
        if image:
            raw = self._with_channels(raw, source)
        x = raw
        if np.issubdtype(self.dtype, np.floating):
            x = raw.astype(self.dtype)
            mean = self._mean(x.shape[1:], planar)
            if mean is not None:
                x -= mean
            if scale != 1.0:
                x *= self.dtype.type(scale)
        if image or planar:
            x = self._cut(x, planar, source, rng)
        if image and len(self.dims) == 4 and self._channels_first():
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        return self._shaped(x.astype(self.dtype, copy=False), source)

    def _channels_first(self) -> bool:
        if self.settings.layout is not None:
            return self.settings.layout == "NCHW"
        return not (self.dims[3] in (1, 3) and self.dims[1] not in (1, 3))

    def is_planar(self, raw: Array) -> bool:
        """Whether 4-D samples are [N, C, H, W] already, as arrays made for the model are."""
        if raw.ndim != 4 or len(self.dims) != 4 or not self._channels_first():
            return False
        return bool(raw.shape[1] == self.dims[1] != raw.shape[3])

    def _mean(self, shape: tuple[int, ...], planar: bool) -> Array | None:
        """What is subtracted from samples of that shape."""
        whole = self._mean_image
        if whole is not None:
            if planar:
                whole = whole.transpose(2, 0, 1)
            if whole.shape != shape:
                raise DataError(f"the mean image has shape {list(whole.shape)}, the data {list(shape)}")
            return whole
        if self.settings.mean is None:
            return None
        mean = np.asarray(self.settings.mean, self.dtype)
        channels = shape[0 if planar else -1]
        if mean.size not in (1, channels):
            raise DataError(
                f"the mean has {mean.size} values, the data {channels} channels; give one, or one per channel"
            )
        return mean.reshape(-1, 1, 1) if planar else mean

    @cached_property
    def _mean_image(self) -> Array | None:
        """The mean image as [H, W, C] in the input's order of channels; --mean takes its place.

        Raises:
            DataError: The model was converted without its mean file.
        """
        image = self.settings.mean_image
        if image is None or self.settings.mean is not None:
            return None
        if isinstance(image, str):
            raise DataError(
                f"the mean file {image} was not there when the model was converted; convert it again beside "
                "the file, or give the mean with --mean"
            )
        return unpacked(image).astype(self.dtype).transpose(1, 2, 0)

    def _cut(self, x: Array, planar: bool, source: str, rng: np.random.Generator | None) -> Array:
        """The crops of a batch, in training at random places and half of them turned left to right."""
        crop = self.settings.crop
        if crop is None and not (self.settings.mirror and rng is not None):
            return x
        down, across = (2, 3) if planar else (1, 2)
        height, width = x.shape[down], x.shape[across]
        side = (crop or height, crop or width)
        spare = np.array([height - side[0], width - side[1]])
        if spare.min() < 0:
            raise DataError(f"{source}: images are {width}x{height}, smaller than the model's crop of {crop}")
        if rng is None:
            (top, left), (high, wide) = spare // 2, side
            return (
                x[:, :, top : top + high, left : left + wide]
                if planar
                else x[:, top : top + high, left : left + wide]
            )
        corners = rng.integers(0, spare + 1, (len(x), 2))
        turned = rng.random(len(x)) < (0.5 if self.settings.mirror else 0.0)
        cut = []
        for sample, (top, left), turn in zip(x, corners, turned, strict=True):
            rows, columns = slice(top, top + side[0]), slice(left, left + side[1])
            piece = sample[:, rows, columns] if planar else sample[rows, columns]
            cut.append(np.flip(piece, across - 1) if turn else piece)
        return np.stack(cut)

    def _with_channels(self, raw: Array, source: str) -> Array:
        if len(self.dims) != 4:
            return raw
        wanted, have = self.dims[1 if self._channels_first() else 3], raw.shape[3]
        if wanted == 3 and have == 1:
            raw = np.repeat(raw, 3, axis=3)
        elif isinstance(wanted, int) and wanted != have:
            raise DataError(f"{source}: images have {have} channels, input {self.name!r} takes {wanted}")
        return raw[..., ::-1] if self.settings.channels == "BGR" and raw.shape[3] == 3 else raw

    def _shaped(self, x: Array, source: str) -> Array:
        wanted = self.dims[1:]
        if len(x.shape) - 1 == len(wanted) and all(
            not isinstance(d, int) or d == n for d, n in zip(wanted, x.shape[1:], strict=True)
        ):
            return x
        fixed = [d for d in wanted if isinstance(d, int)]
        size = int(np.prod(x.shape[1:]))
        spatial = x.ndim == 4 and len(wanted) == 4
        if not spatial and len(fixed) == len(wanted) and int(np.prod(fixed)) == size:
            return x.reshape(len(x), *fixed)
        raise DataError(
            f"{source}: a sample has shape {list(x.shape[1:])}, input {self.name!r} takes {wanted}; "
            "use data of that size, or a model converted for this one (--shape)"
        )
