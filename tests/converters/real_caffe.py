"""A real Caffe in a process of its own, for tests that compare training with it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaccel.converters.caffe.reference import caffe_home

_SCRIPT = Path(__file__).resolve().parents[2] / "scripts/caffe_train.py"

needs_caffe = pytest.mark.skipif(caffe_home() is None, reason="no real Caffe here: make caffe builds one")

_TIMEOUT = 1200
"""Seconds that one training may take."""

Results = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Job:
    """A training, see scripts/caffe_train.py."""

    solver: Path
    weights: Path | None = None
    iterations: int = 0
    test_batches: int = 0


def caffe_train(*jobs: Job) -> list[Results]:
    """What scripts/caffe_train.py saves for each job, each in a process of its own."""
    return [_run(job) for job in jobs]


def _run(job: Job) -> Results:
    home = caffe_home()
    assert home is not None
    with tempfile.TemporaryDirectory() as folder:
        arguments = [job.solver, job.weights or "-", job.iterations, job.test_batches, f"{folder}/r.npz"]
        environment = {"PYTHONPATH": str(home / "python"), "GLOG_minloglevel": "2"}
        done = subprocess.run(
            [str(part) for part in (home / "venv/bin/python", _SCRIPT, *arguments)],
            env={**os.environ, **environment, "OPENBLAS_NUM_THREADS": "1"},  # its fastest setting
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        with np.load(f"{folder}/r.npz") as archive:
            return dict(archive)
