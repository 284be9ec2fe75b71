"""A second implementation to compare with: a real Caffe where there is one, else OpenCV's reader."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxaccel.converters.contract import Arrays
from onnxaccel.errors import ConversionError
from onnxaccel.files import scratch_folder

_WORKER = Path(__file__).with_name("pycaffe_worker.py")
_TIMEOUT = 600
"""Seconds that the forward passes of one process may take."""


@dataclass(frozen=True)
class Forward:
    """One forward pass in the TEST phase.

    Attributes:
        prototxt: The network.
        weights: The caffemodel; None for a network without weights.
        feed: The inputs.
        blobs: Names of the blobs wanted.
    """

    prototxt: Path
    weights: Path | None
    feed: Arrays
    blobs: tuple[str, ...]


@dataclass(frozen=True)
class RealCaffe:
    """A real Caffe, in a process of its own: it aborts on a net that it does not like.

    Attributes:
        home: Folder with python/caffe and venv/, as scripts/build_caffe.sh makes it.
    """

    home: Path
    name: str = "Caffe"

    def run(self, passes: Sequence[Forward]) -> list[Arrays | str]:
        """The blobs of each forward pass, or Caffe's last words where it fails on the network.

        One process runs them all; one that dies is started again behind the network that killed it.
        """
        results: list[Arrays | str] = []
        with scratch_folder() as folder:
            jobs = [self._job(folder, index, one) for index, one in enumerate(passes)]
            while len(results) < len(jobs):
                todo = jobs[len(results) :]
                words = self._process(folder, todo)
                for job in todo:
                    if not Path(job["results"]).is_file():
                        results.append(words)
                        break
                    with np.load(job["results"]) as archive:
                        results.append(dict(archive))
        return results

    @staticmethod
    def _job(folder: Path, index: int, one: Forward) -> dict[str, Any]:
        inputs = folder / f"{index}.in.npz"
        np.savez(inputs, **one.feed)  # type: ignore[arg-type]  # numpy's stub takes no mapping of arrays
        return {
            "prototxt": str(one.prototxt),
            "weights": str(one.weights) if one.weights else None,
            "inputs": str(inputs),
            "results": str(folder / f"{index}.out.npz"),
            "blobs": list(one.blobs),
        }

    def _process(self, folder: Path, jobs: Sequence[dict[str, Any]]) -> str:
        """Run the jobs; what the process said last."""
        listing = folder / "jobs.json"
        listing.write_text(json.dumps(jobs))
        done = subprocess.run(
            [str(self.home / "venv/bin/python"), str(_WORKER), str(listing)],
            env={**os.environ, "PYTHONPATH": str(self.home / "python"), "GLOG_minloglevel": "2"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith("F")]  # glog's level
        return (fatal or lines or [f"exit status {done.returncode}"])[-1][:300]


@dataclass(frozen=True)
class OpenCV:
    """OpenCV's own implementation of Caffe's layers.

    Attributes:
        layers: For each blob wanted the layer that writes it last; OpenCV names results by layer.
    """

    layers: dict[str, str]
    name: str = "OpenCV's Caffe reader"

    def run(self, one: Forward) -> Arrays | str:
        """The blobs after one forward pass, or why OpenCV does not read the network."""
        import cv2

        try:
            net = cv2.dnn.readNetFromCaffe(str(one.prototxt), str(one.weights) if one.weights else "")
            for name, array in one.feed.items():
                net.setInput(array, name)
            results = net.forward([self.layers[blob] for blob in one.blobs])
        except cv2.error as error:
            return str(error).strip().splitlines()[-1][:300]
        return dict(zip(one.blobs, results, strict=True))


@dataclass
class Reference:
    """The first implementation that runs the network.

    Attributes:
        candidates: Their names and how they run a forward pass, the best first.
    """

    prototxt: Path
    weights: Path | None
    blobs: tuple[str, ...]
    candidates: list[tuple[str, Callable[[Forward], Arrays | str]]]

    @property
    def name(self) -> str:
        """The name of the best one that has not failed."""
        return self.candidates[0][0]

    def run(self, feed: Arrays) -> Arrays:
        """The blobs after one forward pass.

        Raises:
            ConversionError: No implementation runs the network; the message has the last one's words.
        """
        while True:
            name, run = self.candidates[0]
            result = run(Forward(self.prototxt, self.weights, feed, self.blobs))
            if isinstance(result, dict):
                return result
            if len(self.candidates) == 1:
                raise ConversionError(
                    f"{self.prototxt}: {name} itself fails on this network ({result}): nothing to "
                    "compare with; --no-verify converts without"
                )
            self.candidates.pop(0)


def caffe_home() -> Path | None:
    """Where scripts/build_caffe.sh has built a real Caffe; None: nowhere."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "onnxaccel/caffe"
    home = Path(os.environ.get("ONNXACCEL_CAFFE", cache))
    return home if (home / "ready").is_file() else None  # the build writes it last


def find_reference(prototxt: Path, weights: Path | None, layers: dict[str, str]) -> Reference | None:
    """The references on this machine, the best first.

    Args:
        prototxt: The network.
        weights: The caffemodel, if there is one.
        layers: For each output blob the layer that writes it last.
    """
    candidates: list[tuple[str, Callable[[Forward], Arrays | str]]] = []
    home = caffe_home()
    if home is not None:
        caffe = RealCaffe(home)
        candidates.append((caffe.name, lambda one: caffe.run([one])[0]))
    try:
        import cv2
    except ImportError:
        pass
    else:
        if hasattr(cv2.dnn, "readNetFromCaffe"):
            opencv = OpenCV(layers)
            candidates.append((opencv.name, opencv.run))
    return Reference(prototxt, weights, tuple(layers), candidates) if candidates else None
