"""OpenCV's own reader of Caffe networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxaccel.compare.native.common import Array, steps


def candidate(setup: Mapping[str, Any]) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """See `onnxaccel.compare.native.common`; "writers" are the layers that write the outputs last."""
    import cv2

    cv2.setNumThreads(setup["threads"])
    prototxt, *weights = setup["files"][:2]
    net = cv2.dnn.readNetFromCaffe(prototxt, *weights)

    def run(feed: Sequence[Array]) -> list[Array]:
        for name, array in zip(setup["names"], feed):  # noqa: B905
            net.setInput(array, name)
        return list(net.forward(setup["writers"]))

    return steps(setup, run), {"versions": {"opencv": cv2.__version__}}
