"""A second implementation to compare with: a real Caffe where there is one, else OpenCV's reader."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxaccel.converters.contract import Arrays
from onnxaccel.errors import ConversionError

_WORKER = Path(__file__).with_name("pycaffe_worker.py")
_TIMEOUT = 600
"""Seconds that one forward pass may take."""


@dataclass(frozen=True)
class RealCaffe:
    """A real Caffe, in a process of its own: it aborts on a net that it does not like.

    Attributes:
        home: Folder with python/caffe and venv/, as scripts/build_caffe.sh makes it.
        prototxt: The network.
        weights: The caffemodel.
        outputs: Names of the blobs wanted.
    """

    home: Path
    prototxt: Path
    weights: Path
    outputs: tuple[str, ...]
    name: str = "Caffe"

    def run(self, feed: Arrays) -> Arrays:
        """The blobs after one forward pass in the TEST phase.

        Raises:
            ConversionError: Caffe fails on the network; the message has its last words.
        """
        with tempfile.TemporaryDirectory() as folder:
            inputs, results = Path(folder) / "in.npz", Path(folder) / "out.npz"
            np.savez(inputs, **feed)  # type: ignore[arg-type]  # numpy's stub takes no mapping of arrays
            command = [self.home / "venv/bin/python", _WORKER, self.prototxt, self.weights, inputs, results]
            environment = {**os.environ, "PYTHONPATH": str(self.home / "python"), "GLOG_minloglevel": "2"}
            done = subprocess.run(
                [str(part) for part in [*command, *self.outputs]],
                env=environment,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
            if done.returncode:
                last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
                raise ConversionError(f"{self.prototxt}: Caffe itself fails on this network ({last[:200]})")
            with np.load(results) as archive:
                return dict(archive)


@dataclass(frozen=True)
class OpenCV:
    """OpenCV's own implementation of Caffe's layers.

    Attributes:
        prototxt: The network.
        weights: The caffemodel.
        layers: For each blob wanted the layer that writes it last; OpenCV names results by layer.
    """

    prototxt: Path
    weights: Path
    layers: dict[str, str]
    name: str = "OpenCV's Caffe reader"

    def run(self, feed: Arrays) -> Arrays:
        """The blobs after one forward pass.

        Raises:
            ConversionError: OpenCV does not read the network.
        """
        import cv2

        try:
            net = cv2.dnn.readNetFromCaffe(str(self.prototxt), str(self.weights))
            for name, array in feed.items():
                net.setInput(array, name)
            results = net.forward(list(self.layers.values()))
        except cv2.error as error:
            line = str(error).strip().splitlines()[-1]
            raise ConversionError(
                f"{self.prototxt}: OpenCV does not read this network ({line[:200]})"
            ) from None
        return dict(zip(self.layers, results, strict=True))


def find_reference(prototxt: Path, weights: Path, layers: dict[str, str]) -> RealCaffe | OpenCV | None:
    """The best reference on this machine.

    Args:
        prototxt: The network.
        weights: The caffemodel.
        layers: For each output blob the layer that writes it last.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "onnxaccel/caffe"
    home = Path(os.environ.get("ONNXACCEL_CAFFE", cache))
    if (home / "ready").is_file():  # written last by scripts/build_caffe.sh
        return RealCaffe(home, prototxt, weights, tuple(layers))
    try:
        import cv2
    except ImportError:
        return None
    return OpenCV(prototxt, weights, layers) if hasattr(cv2.dnn, "readNetFromCaffe") else None
