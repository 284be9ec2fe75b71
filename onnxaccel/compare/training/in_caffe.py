"""Caffe's side of a training, in Caffe's own Python; imports nothing of ours.

The solver's networks have Input layers where their data layers were (see
`onnxaccel.compare.training.caffe_net`), so that they take the batches of all other sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Side:
    """See `onnxaccel.compare.training.curve`."""

    axis = 1

    def __init__(self, setup: dict[str, Any], x: Array, y: Array) -> None:
        import caffe

        caffe.set_mode_cpu()
        self._names = setup["net"]
        self.notes = ["dropout"] if setup["drops"] and setup["dropout"] else []
        self._solver = caffe.get_solver(setup["solver"])
        self._solver.net.copy_from(setup["weights"])
        self._tested = self._solver.test_nets[0]

    def ready(self, x: Array, y: Array) -> tuple[Array, Array]:
        """The batch as it is; labels are floats in Caffe."""
        return np.ascontiguousarray(x, np.float32), y.astype(np.float32)

    def step(self, batch: tuple[Array, Array]) -> float:
        """One iteration."""
        net = self._solver.net
        for name, array in zip((self._names["data"], self._names["label"]), batch):  # noqa: B905
            net.blobs[name].data[...] = array.reshape(net.blobs[name].data.shape)
        self._solver.step(1)
        return float(net.blobs[self._names["loss"]].data.sum())

    def timed(self, batches: list[Any]) -> Any:
        """Iterations on these batches."""
        count = 0

        def one() -> float:
            nonlocal count
            count += 1
            return self.step(batches[count % len(batches)])

        return one

    def scores(self, x: Array) -> Array:
        """The scores in the TEST phase."""
        net = self._tested
        net.share_with(self._solver.net)
        data = net.blobs[self._names["data"]]
        data.reshape(*x.shape)
        net.reshape()
        data.data[...] = x
        net.forward()
        return np.array(net.blobs[self._names["scores"]].data)
