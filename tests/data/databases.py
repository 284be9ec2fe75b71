"""Databases as Caffe's own tools write them, for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import plyvel
from PIL import Image

from onnxaccel.data.readers.datum import datum_type


def datum(image: Any, label: int) -> bytes:
    """A raw Datum of an image [C, H, W]: bytes, or floats where it holds them."""
    channels, height, width = image.shape
    content = {"data": image.tobytes()} if image.dtype == np.uint8 else {"float_data": image.ravel()}
    message = datum_type()(channels=channels, height=height, width=width, label=label, **content)
    return bytes(message.SerializeToString())


def encoded(image: Any, label: int) -> bytes:
    """A Datum of an RGB image [H, W, 3] as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return bytes(datum_type()(data=file.getvalue(), label=label, encoded=True).SerializeToString())


def write_lmdb(path: Path, values: list[bytes]) -> Path:
    with lmdb.open(str(path), map_size=2**31) as environment, environment.begin(write=True) as transaction:
        for number, value in enumerate(values):
            transaction.put(b"%08d" % number, value)
    return path


def write_leveldb(path: Path, values: list[bytes]) -> Path:
    database = plyvel.DB(str(path), create_if_missing=True)
    for number, value in enumerate(values):
        database.put(b"%08d" % number, value)
    database.close()
    return path
