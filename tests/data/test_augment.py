"""Image augmentation: the operations against plain ones, their chances, and that they can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from onnxaccel.data import Augmentation, batches, open_dataset
from onnxaccel.errors import DataError
from tests.data.test_data import identity


@pytest.fixture
def photos(shared: Path) -> Any:
    """The first 200 images of CIFAR-10, uint8 [200, 32, 32, 3]."""
    return open_dataset(f"{shared / 'data/cifar10/train'}#0:200").take(np.arange(200))[0]


def augmented(photos: Any, *, seed: int = 0, epoch: int = 0, **settings: Any) -> Any:
    return Augmentation(**settings)(photos, np.arange(len(photos)), seed, epoch, "photos")


def test_flips_mirror_half_of_the_images(photos: Any) -> None:
    turned = []
    for epoch in range(10):
        for before, after in zip(photos, augmented(photos, flip=True, epoch=epoch), strict=True):
            mirror = np.array_equal(after, before[:, ::-1])
            assert mirror or np.array_equal(after, before)
            turned.append(mirror)
    assert np.mean(turned) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(len(turned)))


def test_crops_are_taken_at_every_place_of_the_padded_image(photos: Any) -> None:
    pad, counts = 2, np.zeros((5, 5), np.int64)
    for epoch in range(10):
        padded = np.pad(photos, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        for before, after in zip(padded, augmented(photos, crop=pad, epoch=epoch), strict=True):
            places = [
                (top, left)
                for top in range(5)
                for left in range(5)
                if np.array_equal(before[top : top + 32, left : left + 32], after)
            ]
            counts[places[0]] += 1
    expected = counts.sum() / 25
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 24 + 5 * np.sqrt(2 * 24)


def test_colours_equal_pillow(photos: Any) -> None:
    """Each operation alone, with the factor read off the result, against Pillow's own."""
    for name, enhance in (
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ):
        changed = augmented(photos, **{name: 0.4})
        factors = []
        for before, after in zip(photos[:40], changed, strict=False):
            image = Image.fromarray(before)
            trials = np.linspace(0.6, 1.4, 161)
            errors = [
                np.abs(np.asarray(enhance(image).enhance(f)).astype(int) - after).mean() for f in trials
            ]
            # Pillow rounds the mean grey and truncates where we round to nearest
            assert min(errors) < 1.0, (name, min(errors))
            factors.append(trials[int(np.argmin(errors))])
        assert min(factors) < 0.7 and max(factors) > 1.3, name


def test_each_sample_is_changed_alike_in_any_batch(photos: Any) -> None:
    settings: dict[str, Any] = {
        "flip": True,
        "crop": 4,
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
    }
    whole = augmented(photos, seed=5, epoch=3, **settings)
    some = np.array([17, 3, 180])
    np.testing.assert_array_equal(Augmentation(**settings)(photos[some], some, 5, 3, "photos"), whole[some])
    assert whole.dtype == np.uint8 and whole.shape == photos.shape
    for other in ({"seed": 6, "epoch": 3}, {"seed": 5, "epoch": 4}):
        assert not np.array_equal(augmented(photos, **other, **settings), whole)


def test_training_sees_changed_images_and_evaluation_does_not(shared: Path) -> None:
    spec, model = f"{shared / 'data/cifar10/train'}#0:100", identity("N", 3, 32, 32)
    settings: dict[str, Any] = {"augmentation": Augmentation(flip=True, crop=4), "seed": 1, "epoch": 2}
    through = [feed["x"] for feed, _ in batches(spec, model, 16, **settings)]
    with batches(spec, model, 16, **settings).starting_at(3) as rest:
        resumed = [feed["x"] for feed, _ in rest]
    for a, b in zip(through[3:], resumed, strict=True):
        np.testing.assert_array_equal(a, b)
    plain = next(iter(batches(spec, model, 16, seed=1, epoch=2)))[0]["x"]
    assert plain.shape == through[0].shape and not np.array_equal(plain, through[0])
    unshuffled = next(iter(batches(spec, model, 16)))[0]["x"]
    same = next(iter(batches(spec, model, 16, augmentation=Augmentation(flip=True))))[0]["x"]
    np.testing.assert_array_equal(unshuffled, same)


def test_arrays_in_the_models_own_layout_are_augmented_as_images(photos: Any) -> None:
    model, y = identity("N", 3, 32, 32), np.zeros(200, np.int64)
    settings: dict[str, Any] = {"augmentation": Augmentation(flip=True, crop=4), "seed": 1}
    planar = np.ascontiguousarray(photos.transpose(0, 3, 1, 2))
    (a, _), *_ = batches((photos, y), model, 64, **settings)
    (b, _), *_ = batches((planar, y), model, 64, **settings)
    np.testing.assert_array_equal(a["x"], b["x"])


def test_what_is_no_image_is_refused() -> None:
    data = np.zeros((10, 4), np.float32), np.zeros(10, np.int64)
    with pytest.raises(DataError, match=r"samples of shape \[4\] are no images"):
        list(batches(data, identity("N", 4), 4, seed=0, augmentation=Augmentation(flip=True)))
    with pytest.raises(DataError, match="brightness must be from 0 to 1"):
        Augmentation(brightness=2.0)
