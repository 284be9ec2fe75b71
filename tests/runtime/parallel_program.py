"""What `test_distributed` runs in each process: trainings, and what happens when processes differ or die."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import onnxaccel as oa
from onnxaccel.errors import TrainingError
from onnxaccel.runtime import distributed

BATCHES = (32, 32, 33, 32, 1)
"""Sizes of the whole batches: an odd one, and one that leaves the second process without samples."""


def data(shape: tuple[int, ...]) -> Any:
    """Batches of images and labels, the same ones in each process."""
    rng = np.random.default_rng(0)
    for size in BATCHES:
        yield rng.random((size, *shape), np.float32), rng.integers(0, 10, size)


def train(path: Path, optimizer: Any) -> dict[str, Any]:
    """Losses and the hash of the final weights of a training that shares each batch."""
    trainer = oa.Trainer(path, optimizer=optimizer, ep="cpu", threads=1)
    rank, size = int(os.environ.get("RANK", 0)), distributed.size_of_group()
    losses = [trainer.step(x[rank::size], y[rank::size]) for x, y in data(SHAPES[path.stem])]
    weights = trainer.model().weights()
    return {"losses": losses, "hash": distributed.digest(weights)}


SHAPES = {"mlp": (64,), "cifar_cnn": (3, 32, 32), "norm": (3, 16, 16), "lstm": (12, 8)}


def main(folder: Path) -> None:
    """Train the models in ``folder``; the first process writes what came out."""
    found = {
        "mlp": train(folder / "mlp.onnx", oa.optimizers.AdamW(1e-3)),
        "cifar_cnn": train(folder / "cifar_cnn.onnx", oa.optimizers.SGD(0.01, momentum=0.9)),
        "lstm": train(folder / "lstm.onnx", oa.optimizers.SGD(0.05)),
        "norm": train(folder / "norm.onnx", oa.optimizers.Adam(1e-3)),
    }
    group = distributed.join("cpu")
    if group.size > 1:
        found["hashes"] = {
            name: [group.from_first(entry["hash"]), entry["hash"]] for name, entry in found.items()
        }
        found["sums"] = group.sums(1.0, float(group.rank))
        try:
            group.check_equal(lambda: {"w": np.full(3, float(group.rank))})
        except TrainingError as error:
            found["differ"] = str(error)
        if group.rank == 1:  # gone without a word
            (folder / "second.json").write_text(json.dumps(found))
            os._exit(0)
        try:
            group.sums(1.0)
        except TrainingError as error:
            found["lost"] = str(error)
    (folder / f"first-{distributed.size_of_group()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)
