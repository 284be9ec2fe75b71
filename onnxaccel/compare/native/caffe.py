"""A real Caffe, in its own Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxaccel.compare.native.common import Array, steps


def candidate(setup: Mapping[str, Any]) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """See `onnxaccel.compare.native.common`; "files" are the prototxt and the caffemodel, if there is one."""
    import caffe

    caffe.set_mode_cpu()
    prototxt, *weights = setup["files"][:2]
    net = caffe.Net(prototxt, *weights, caffe.TEST)

    def run(feed: Sequence[Array]) -> list[Array]:
        blobs = [net.blobs[name] for name in setup["names"]]
        if any(tuple(blob.shape) != array.shape for blob, array in zip(blobs, feed)):  # noqa: B905
            for blob, array in zip(blobs, feed):  # noqa: B905
                blob.reshape(*array.shape)
            net.reshape()
        for blob, array in zip(blobs, feed):  # noqa: B905
            blob.data[...] = array
        net.forward()
        return [net.blobs[name].data.copy() for name in setup["outputs"]]

    return steps(setup, run), {"versions": {"caffe": getattr(caffe, "__version__", "BVLC")}}
