"""What this machine offers: processors, execution providers, frameworks, and what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

import onnxruntime as ort

from onnxaccel.runtime.measure import cores
from onnxaccel.runtime.providers import NAMES, missing
from onnxaccel.version import __version__

_PACKAGES = {
    "numpy": "",
    "onnx": "",
    "onnx-ir": "",
    "tensorflow": "tensorflow",
    "tensorflow-cpu": "tensorflow",
    "keras": "tensorflow",
    "tf2onnx": "tensorflow",
    "torch": "torch",
    "onnxscript": "torch",
    "opencv-python-headless": "caffe",
    "scikit-learn": "demo",
    "cryptography": "protect",
    "model-signing": "protect",
}
"""Distributions to report, with the extra that installs them."""


_BUILDS = (
    "onnxruntime",
    "onnxruntime-training",
    "onnxruntime-training-cpu",
    "onnxruntime-openvino",
    "onnxruntime-gpu",
)
"""Distributions that all own the module `onnxruntime`."""


@dataclass(frozen=True)
class Package:
    """A package: its version, or None and the line that installs it."""

    name: str
    version: str | None
    install: str | None


@dataclass(frozen=True)
class ProviderState:
    """An execution provider: usable, or what is missing and the line that installs it."""

    name: str
    usable: bool
    missing: str | None


@dataclass(frozen=True)
class Environment:
    """What `doctor` reports.

    Attributes:
        onnxaccel: Version of onnxaccel.
        python: Version of Python.
        system: Operating system and processor architecture.
        cores: Processors that this process may use.
        onnxruntime: Version of onnxruntime.
        providers: The execution providers.
        packages: The frameworks and the packages that conversion needs.
        problems: What is wrong with the installation as a whole.
    """

    onnxaccel: str
    python: str
    system: str
    cores: int
    onnxruntime: str
    providers: list[ProviderState]
    packages: list[Package]
    problems: list[str]


def examine() -> Environment:
    """Look at this machine; nothing is imported but onnxruntime."""
    providers = []
    for name in NAMES[1:]:
        problem = missing(name)
        providers.append(ProviderState(name, problem is None, problem))
    packages = [_package(name, extra) for name, extra in _PACKAGES.items()]
    if any(p.name == "tensorflow" and p.version for p in packages):
        packages = [p for p in packages if p.name != "tensorflow-cpu"]
    elif any(p.name == "tensorflow-cpu" and p.version for p in packages):
        packages = [p for p in packages if p.name != "tensorflow"]
    problems = []
    builds = [name for name in _BUILDS if _version(name)]
    if len(builds) > 1:
        keep = "onnxaccel[gpu]" if "onnxruntime-gpu" in builds else builds[-1]
        problems.append(
            f"{' and '.join(builds)} are installed together and overwrite each other's files; "
            f"pip uninstall -y {' '.join(builds)} && pip install '{keep}'"
        )
    return Environment(
        onnxaccel=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=cores(),
        onnxruntime=ort.__version__,
        providers=providers,
        packages=packages,
        problems=problems,
    )


def _package(name: str, extra: str) -> Package:
    version = _version(name)
    return Package(name, version, None if version or not extra else f"pip install 'onnxaccel[{extra}]'")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
