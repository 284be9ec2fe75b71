"""Running a model on single inputs, for a look at what it gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxaccel.data import samples
from onnxaccel.graph.model import Model
from onnxaccel.runtime.providers import Provider
from onnxaccel.runtime.session import Session, provider_for


@dataclass(frozen=True)
class Prediction:
    """One output for one sample.

    Attributes:
        sample: The sample's number.
        output: The output's name.
        shape: The output's shape, without the batch.
        values: Its values, flattened.
        top: For a vector of class scores up to five (class, score), the highest first.
    """

    sample: int
    output: str
    shape: list[int]
    values: list[float]
    top: list[tuple[int, float]]

    def summary(self) -> str:
        """The best classes, or the first values."""
        if self.top:
            return ", ".join(f"class {c}: {score:.4g}" for c, score in self.top)
        tail = ", ..." if len(self.values) > 8 else ""
        return f"{self.shape}: " + ", ".join(f"{v:.4g}" for v in self.values[:8]) + tail


def predict(model: Model, source: str, ep: str | Provider = "auto") -> list[Prediction]:
    """Run a model on an image, an array file or a data SPEC.

    Args:
        model: The model in inference form.
        source: Path of an image, of a .npy or .npz file, or a data SPEC.
        ep: The execution provider; "auto": the one that `optimize` found best, else the best usable one.

    Raises:
        DataError: The input is unreadable or does not fit the model.
    """
    results = Session(model, provider_for(model, ep)).run(samples(source, model))
    predictions = []
    for name, batch in results.items():
        for index, values in enumerate(batch if batch.ndim else batch[None]):
            flat = np.asarray(values, np.float64).ravel()
            scores = values.ndim == 1 and values.size > 1
            best = np.argsort(-flat, kind="stable")[:5] if scores else np.empty(0, np.int64)
            top = [(int(c), float(flat[c])) for c in best]
            predictions.append(Prediction(index, name, list(values.shape), flat.tolist(), top))
    return predictions
