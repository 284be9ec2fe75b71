"""What each side's process is given: the model, how it trains, where the batches lie."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxaccel.compare.training import caffe_net
from onnxaccel.compare.training.batches import Shared, class_axis
from onnxaccel.compare.training.plan import Plan
from onnxaccel.converters.caffe.reference import caffe_home
from onnxaccel.errors import ConversionError, MissingDependency, ModelError
from onnxaccel.graph.model import Model
from onnxaccel.runtime.measure import ENVIRONMENT, Job

if TYPE_CHECKING:
    from onnxaccel.compare.sources import Opened

_HERE = Path(__file__).parent
_MODULES = "onnxaccel.compare.training"


@dataclass(frozen=True)
class Common:
    """What is the same for all sides of a source.

    Attributes:
        plan: How all sides train.
        shared: The batches.
        threads: Threads of each side.
        folder: Where files for the sides can be written.
    """

    plan: Plan
    shared: Shared
    threads: int
    folder: Path

    def setup(self, side: str, model: Opened, mode: str) -> dict[str, Any]:
        """What every side is given, see `onnxaccel.compare.training.curve`."""
        shared = self.shared
        return {
            "side": side,
            "mode": mode,
            "done": str(self.folder / f"{Path(side).name}.{mode}.done"),
            "x": str(shared.x),
            "y": str(shared.y),
            "held_out": [str(path) for path in shared.held_out] if shared.held_out else None,
            "labels": self.plan.labels,
            "dropout": self.plan.dropout,
            "loss": self.plan.loss,
            "optimizer": self.plan.optimizer,
            "settings": self.plan.settings,
            "threads": self.threads,
            "seed": model.asked.seed,
            "format": model.format,
            "files": list(model.files),
            "reference": model.reference,
            "shape": list(model.input_shape),
            "classes": model.classes,
            "factory": model.asked.factory,
            "trust_pickle": model.asked.trust_pickle,
        }

    def job(self, setup: dict[str, Any], environment: Mapping[str, str], python: str | None = None) -> Job:
        """A side's process; native frameworks keep to the CPU."""
        count = str(self.threads)
        variables = {f"{library}_NUM_THREADS": count for library in ("OMP", "OPENBLAS", "MKL")}
        if not setup["side"].endswith("in_onnx"):
            variables["CUDA_VISIBLE_DEVICES"] = ""
        return Job(
            f"{_HERE / 'curve.py'}:start",
            setup,
            python=python or sys.executable,
            environment={**variables, **environment},
        )


def onnx(model: Opened, provider: str, common: Common) -> Job:
    """Train the converted graph.

    Raises:
        ModelError: There is no trainable form.
    """
    if model.trainable is None:
        raise ModelError(model.not_trainable or "the source has no trainable form")
    setup = common.setup(f"{_MODULES}.in_onnx", model, provider)
    setup |= {
        "model": str(model.trainable),
        "loss_settings": class_axis(Model.load(model.trainable), common.plan),
        "solver": _solver(model, common) if model.framework == "caffe" else None,
    }
    return common.job(setup, ENVIRONMENT)


def native(model: Opened, mode: str, common: Common) -> Job:
    """Train in the source's own framework.

    Raises:
        MissingDependency: The framework is not here.
        ConversionError: It cannot train the source, or not by this plan.
    """
    if model.asked.inputs or model.asked.outputs:
        raise ConversionError("it trains whole, and --inputs or --outputs cut the converted model")
    return _NATIVE[model.framework](model, mode, common)


def _pytorch(model: Opened, mode: str, common: Common) -> Job:
    cache = common.folder / "inductor"  # of this run alone: compiling is part of the first step
    environment = {
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    }
    return _in_python("torch", "torch", f"{_MODULES}.in_pytorch", model, mode, common, environment)


def _tensorflow(model: Opened, mode: str, common: Common) -> Job:
    side = "in_savedmodel" if model.format == "saved-model" else "in_tensorflow"
    return _in_python("tensorflow", "tensorflow", f"{_MODULES}.{side}", model, mode, common, {})


def _in_python(
    package: str,
    extra: str,
    side: str,
    model: Opened,
    mode: str,
    common: Common,
    environment: Mapping[str, str],
) -> Job:
    python = model.asked.pythons.get(model.framework)
    if python is None and importlib.util.find_spec(package) is None:
        raise MissingDependency(package, extra, f"train in {package}")
    return common.job(common.setup(side, model, mode), {**ENVIRONMENT, **environment}, python)


def _caffe(model: Opened, mode: str, common: Common) -> Job:
    python, environment = model.asked.pythons.get("caffe"), {}
    if python is None:
        home = caffe_home()
        if home is None:
            raise ConversionError("no real Caffe here: make caffe builds one, --python caffe=PATH names one")
        python, environment = str(home / "venv/bin/python"), {"PYTHONPATH": str(home / "python")}
    if len(model.files) < 2:
        raise ConversionError("Caffe starts from weights; give the .caffemodel beside the prototxt")
    folder = common.folder / "caffe"
    folder.mkdir(exist_ok=True)
    written = caffe_net.write(
        Path(model.files[0]), folder, common.shared.shapes, common.plan, _solver(model, common)
    )
    setup = common.setup(str(_HERE / "in_caffe.py"), model, mode) | written
    setup["weights"] = model.files[1]
    environment |= {"GLOG_minloglevel": "2"}
    return common.job(setup, environment, python)


def _solver(model: Opened, common: Common) -> dict[str, Any]:
    return caffe_net.solver_settings(common.plan, model.asked.seed)


_NATIVE: dict[str, Callable[[Opened, str, Common], Job]] = {
    "pytorch": _pytorch,
    "tensorflow": _tensorflow,
    "caffe": _caffe,
}
