"""Data sets that scikit-learn ships: digits (8x8 images), iris, wine, breast_cancer, diabetes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxaccel.data.dataset import Arrays, Dataset
from onnxaccel.data.spec import reader
from onnxaccel.errors import DataError, MissingDependency

_SHIPPED = ("breast_cancer", "diabetes", "digits", "iris", "wine")


@reader("sklearn")
def sklearn(path: Path, part: str | None) -> Dataset:
    """``sklearn:NAME``; nothing is downloaded."""
    name = str(path)
    if name not in _SHIPPED:
        raise DataError(f"sklearn:{name}: no such data set; choose one of {', '.join(_SHIPPED)}")
    if part is not None:
        raise DataError(f"sklearn:{name}: has no parts; pick a range, such as sklearn:{name}#0:100")
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingDependency("scikit-learn", "demo", f"read sklearn:{name}") from None
    bunch = getattr(datasets, f"load_{name}")()
    classes = [str(n) for n in bunch.target_names] if "target_names" in bunch else None
    if name == "digits":  # grey levels 0 to 16; as bytes they are scaled like every other image
        images = (bunch.images * (255 / 16)).round().astype(np.uint8)
        return Arrays("sklearn:digits", images[..., None], bunch.target, classes)
    return Arrays(f"sklearn:{name}", bunch.data.astype(np.float32), bunch.target, classes)
