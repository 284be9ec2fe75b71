"""Which candidates a source has for inference, and what keeps one from running at all.

A candidate that needs a package that is not there, or a program that is not built, is a row with the line
that installs it.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnxaccel.compare.native.common import JUDGE
from onnxaccel.compare.results import Candidate
from onnxaccel.compare.sources import Opened
from onnxaccel.converters.caffe.reference import caffe_home
from onnxaccel.graph.model import SessionSettings
from onnxaccel.runtime.measure import ENVIRONMENT, Job, Limits

_NATIVE = "onnxaccel.compare.native"
_CONFINE = Path(__file__).parents[1] / "converters" / "pytorch" / "confine.py"

_KERAS = (("TensorFlow Keras", "keras"), ("TensorFlow function", "function"), ("TensorFlow XLA", "xla"))
_MODULE = (("PyTorch eager", "eager"), ("PyTorch compile", "compile"))
_WAYS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "keras": _KERAS,
    "keras-h5": _KERAS,
    "saved-model": (("TensorFlow function", "function"), ("TensorFlow XLA", "xla")),
    "frozen-graph": (("TensorFlow graph", "function"), ("TensorFlow XLA", "xla")),
    "checkpoint": (("TensorFlow session", "session"),),
    "tflite": (("TensorFlow Lite", "lite"),),
    "state-dict": _MODULE,
    "safetensors": _MODULE,
    "exported-program": _MODULE,
    "torchscript": (("PyTorch TorchScript", "torchscript"),),
    "onnx": (),
}
"""By format: the names of the candidates in the source's own framework, and how each runs; the first is what
the source is compared with."""

_PACKAGES = {
    "tensorflow": ("tensorflow", "tensorflow"),
    "pytorch": ("torch", "torch"),
    "opencv": ("cv2", "caffe"),
}
"""By framework: its package, and the extra that installs it."""

_NO_CAFFE = (
    "no real Caffe is built here; make caffe (scripts/build_caffe.sh) builds one, or --python caffe=PATH "
    "names the Python that has one"
)


@dataclass(frozen=True)
class Plan:
    """What all candidates of a source are given.

    Attributes:
        threads: Threads of each.
        sizes: Batch sizes, in ascending order.
        judged: Batch size that they are judged at.
        devices: "cpu", and "cuda" where native frameworks run on a GPU as well.
        pythons: The Python of a framework that lives in another environment, by the framework's name.
        limits: What each may take.
        folder: Where inputs and results lie.
    """

    threads: int
    sizes: Sequence[int]
    judged: int
    devices: Sequence[str]
    pythons: Mapping[str, str]
    limits: Limits
    folder: Path


@dataclass
class Way:
    """A candidate before it has run.

    Attributes:
        candidate: Its row.
        model: The opened model that it runs.
        size: Bytes of its files.
        job: How to run it, or None.
        obstacle: Why there is no job.
    """

    candidate: Candidate
    model: Opened
    size: int
    job: Job | None
    obstacle: str | None = None

    @property
    def results(self) -> Path:
        """Where its outputs are after the judgement."""
        assert self.job is not None
        return Path(self.job.setup["results"])


def native(model: Opened, plan: Plan) -> list[Way]:
    """The candidates in the source's own framework."""
    if model.framework == "caffe":
        return [_caffe(model, plan), _opencv(model, plan)]
    cut = [*model.asked.inputs, *model.asked.outputs] and model.format not in ("frozen-graph", "checkpoint")
    ways = []
    for device in plan.devices:
        for name, mode in ways_of(model):
            if device != "cpu":
                if mode in ("lite", "session"):
                    continue
                name, mode = f"{name}, {device}", f"{mode} {device}"
            row = Candidate(name, model.framework, mode, command=model.export)
            if cut:
                why = "it runs whole, and --inputs or --outputs cut the converted model"
                ways.append(Way(row, model, model.size, None, why))
                continue
            setup = {"mode": mode.split()[0], "device": device, **_of_pytorch(model, plan)}
            ways.append(_way(row, model, plan, _file(model), setup))
    return ways


def converted(model: Opened, plan: Plan, providers: Iterable[str]) -> list[Way]:
    """The converted model on each provider."""
    ways = []
    for provider in providers:
        row = Candidate(f"onnxaccel {provider}", "onnxaccel", provider, command=model.convert)
        settings = asdict(SessionSettings(provider))
        setup = {"model": str(model.onnx), "settings": settings}
        ways.append(_way(row, model, plan, "onnxruntime", setup, model.onnx))
    return ways


def optimized(
    model: Opened, plan: Plan, file: Path, settings: SessionSettings, what: str, command: str
) -> Way:
    """The variant that `onnxaccel.runtime.optimize` found the fastest, called ``what``."""
    provider = settings.provider or "cpu"
    precision = next((p for p in ("int8", "fp16", "bf16") if p in what), "fp32")
    row = Candidate(f"onnxaccel {provider}, {what}", "onnxaccel", provider, precision, command)
    setup = {"model": str(file), "settings": asdict(settings)}
    return _way(row, model, plan, "onnxruntime", setup, file)


def matches(name: str, only: Sequence[str]) -> bool:
    """Whether one of the patterns matches a candidate's name; without patterns each is chosen."""
    return not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)


def ways_of(model: Opened) -> tuple[tuple[str, str], ...]:
    """Names and modes of the candidates in TensorFlow or PyTorch."""
    return _MODULE if model.reference and model.framework == "pytorch" else _WAYS[model.format]


def _file(model: Opened) -> str:
    """The file of `onnxaccel.compare.native` that runs a model of TensorFlow or PyTorch."""
    if model.framework == "pytorch" and (model.reference or model.format in ("state-dict", "safetensors")):
        return "modules"
    return model.framework


def _of_pytorch(model: Opened, plan: Plan) -> dict[str, Any]:
    if model.framework != "pytorch":
        return {}
    return {
        "reference": model.reference,
        "shape": model.input_shape,
        "classes": model.classes,
        "seed": model.asked.seed,
        "factory": model.asked.factory,
        "trust_pickle": model.asked.trust_pickle,
        "confine": str(_CONFINE),
        "memory": plan.limits.memory,
    }


def _caffe(model: Opened, plan: Plan) -> Way:
    row, home = Candidate("Caffe", "caffe", "caffe", command=model.export), caffe_home()
    if "caffe" in plan.pythons:
        return _way(row, model, plan, "caffe", {}, python=plan.pythons["caffe"])
    if home is None:
        return Way(row, model, model.size, None, _NO_CAFFE)
    path = os.pathsep.join([str(home / "python"), ENVIRONMENT["PYTHONPATH"]])
    environment = {"PYTHONPATH": path, "GLOG_minloglevel": "2"}
    return _way(row, model, plan, "caffe", {}, python=str(home / "venv/bin/python"), environment=environment)


def _opencv(model: Opened, plan: Plan) -> Way:
    return _way(
        Candidate("OpenCV", "opencv", "opencv", command=model.export),
        model,
        plan,
        "opencv",
        {"writers": model.writers},
    )


def _way(
    row: Candidate,
    model: Opened,
    plan: Plan,
    file: str,
    setup: Mapping[str, Any],
    onnx: Path | None = None,
    python: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Way:
    size = model.size if onnx is None else onnx.stat().st_size
    python = python or plan.pythons.get(row.framework)
    package, extra = _PACKAGES.get(row.framework, (None, None))
    if python is None and package is not None and importlib.util.find_spec(package) is None:
        return Way(row, model, size, None, f"{package} is not installed; pip install 'onnxaccel[{extra}]'")
    name = "".join(c if c.isalnum() else "-" for c in row.name)
    results = plan.folder / f"{name}.{JUDGE}" / "outputs.npz"
    results.parent.mkdir()
    shared = {
        "format": model.format,
        "files": model.files,
        "names": model.inputs,
        "outputs": model.outputs,
        "inputs": [str(inputs_of(model, plan, index)) for index in range(len(model.inputs))],
        "sizes": list(plan.sizes),
        "judged": plan.judged,
        "results": str(results),
        "threads": plan.threads,
    }
    count = str(plan.threads)
    variables = {
        "TORCHINDUCTOR_CACHE_DIR": str(results.parent),  # the first run compiles, as a user's does
        **{f"{library}_NUM_THREADS": count for library in ("OMP", "OPENBLAS", "MKL")},
        **(
            {}
            if setup.get("device", "cpu") != "cpu" or row.framework == "onnxaccel"
            else {"CUDA_VISIBLE_DEVICES": ""}
        ),
        **(environment or ENVIRONMENT),
    }
    job = Job(f"{_NATIVE}.{file}:candidate", {**shared, **setup}, python or sys.executable, variables)
    return Way(row, model, size, job)


def inputs_of(model: Opened, plan: Plan, index: int) -> Path:
    """The file with the samples of an input, as the model takes them."""
    return plan.folder / f"{model.framework}.{index}.npy"
