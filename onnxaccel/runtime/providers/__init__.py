"""Execution providers by name: which are usable here, with which options, and what is missing for the others.

A provider counts as usable when a session of one node runs on it. What keeps one from working is named with
the line that installs it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnxruntime as ort

from onnxaccel.errors import ProviderError
from onnxaccel.runtime.providers import libraries, plugin
from onnxaccel.runtime.providers.options import KNOWN, WRITES_FILES, cache_folder, defaults, distribute
from onnxaccel.runtime.providers.probe import probe

NAMES = ("auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino")
"""What ``--ep`` takes."""

_AUTO = ("cuda", "cpu")
"""What "auto" tries, the best first. Providers that compile a model for minutes are used when asked for."""

_ORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_FALLBACK = {"tensorrt": ("tensorrt", "cuda", "cpu"), "cpu": ("cpu",)}
_BUILDS = {
    "cuda": "pip uninstall -y onnxruntime && pip install 'onnxaccel[gpu]'",
    "tensorrt": "pip uninstall -y onnxruntime && pip install 'onnxaccel[gpu]'",
    "openvino": "pip uninstall -y onnxruntime && pip install onnxruntime-openvino",
}
"""For each provider the line that installs an onnxruntime with it."""


@dataclass(frozen=True)
class Provider:
    """An execution provider, ready to run sessions.

    Attributes:
        name: One of NAMES, "auto" left out.
        options: onnxruntime's own options for it and for those it falls back to, by provider.
        strict: A node that does not run on it is an error.
    """

    name: str
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    strict: bool = False

    @property
    def device(self) -> str:
        """onnxruntime's device type of buffers: "cpu" or "cuda"."""
        return "cuda" if self.name in ("cuda", "tensorrt") else "cpu"

    @property
    def device_id(self) -> int:
        """The number of the device."""
        return int(self.options.get(self.name, {}).get("device_id", 0))

    @property
    def trains(self) -> bool:
        """Whether training steps run on it; OpenVINO computed other gradients than the CPU when compared."""
        return self.name not in ("openvino", "tensorrt-rtx")

    @property
    def captures(self) -> bool:
        """Whether steps whose buffers stay in place are captured as CUDA graphs."""
        return self.name == "cuda" and self.options.get("cuda", {}).get("enable_cuda_graph", "1") == "1"

    def capturing(self, on: bool) -> Provider:
        """The provider with CUDA graphs on or off; off for whoever brings new buffers to each run."""
        if self.device == "cpu":
            return self
        graphs = {"cuda": {"enable_cuda_graph": str(int(on))}, "tensorrt": {"trt_cuda_graph_enable": "0"}}
        options = {name: own | graphs.get(name, {}) for name, own in self.options.items()}
        return replace(self, options=options)

    @property
    def ort_name(self) -> str:
        """onnxruntime's own name for it."""
        return _ORT_NAMES[self.name]

    def without_files(self) -> Provider:
        """The provider for a model that must not reach the disk: no engines kept, no dumps."""
        options = {
            provider: {
                name: kept
                for name, value in given.items()
                if (kept := WRITES_FILES.get(name, value)) is not None
            }
            for provider, given in self.options.items()
        }
        return replace(self, options=options)

    def attach(self, options: ort.SessionOptions) -> list[tuple[str, dict[str, str]]] | None:
        """Put the provider into the options of a session.

        Returns:
            The list for ``InferenceSession(providers=...)``, or None where the options carry all.
        """
        if _built_in(self.name):
            return [(_ORT_NAMES[name], self.options.get(name, {})) for name in _chain(self.name)]
        options.add_provider_for_devices(plugin.devices(self.name)[:1], self.options.get(self.name, {}))
        return None


def resolve(ep: str | Provider, options: Mapping[str, str] | None = None, strict: bool = False) -> Provider:
    """The provider called ``ep``; "auto" is the best usable one.

    Args:
        ep: One of NAMES, or a provider, which is given back as it is.
        options: onnxruntime's options for it, see `onnxaccel.runtime.providers.options`.
        strict: Make it an error when a node does not run on it.

    Raises:
        ProviderError: It is unknown or not usable, or does not take an option; the message names what is
            missing and what installs it.
    """
    if isinstance(ep, Provider):
        return ep
    if ep not in NAMES:
        raise ProviderError(f"unknown execution provider {ep!r}; choose one of {', '.join(NAMES)}")
    name = next(n for n in _AUTO if missing(n) is None) if ep == "auto" else ep
    given = distribute(_chain(name), options or {})  # before the probe: a typing error is one on any machine
    problem = missing(name)
    if problem is not None:
        raise ProviderError(f"execution provider {name!r} is not usable here: {problem}")
    versions = f"ort{ort.__version__}-trt{libraries.tensorrt_version()}" if "tensorrt" in name else ""
    merged = {n: defaults(n, versions) | given[n] for n in _chain(name)}
    if "LOCAL_RANK" in os.environ:  # of several processes on one machine each takes a device of its own
        for own in (n for n in merged if "device_id" in KNOWN[n]):
            merged[own].setdefault("device_id", os.environ["LOCAL_RANK"])
    if "tensorrt" in name:
        cache_folder(name, versions).mkdir(parents=True, exist_ok=True)
    return Provider(name, merged, strict)


def usable() -> list[str]:
    """Names of the providers that work here."""
    return [name for name in NAMES[1:] if missing(name) is None]


@functools.cache
def missing(name: str) -> str | None:
    """What keeps provider ``name`` from working here and the line that installs it; None if nothing."""
    if name == "cpu":
        return None
    if _built_in(name):
        if name in ("cuda", "tensorrt"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                ort.preload_dlls()
            problem = libraries.missing_libraries(name)
            if problem is not None:
                return problem
    elif not plugin.exists(name):
        return f"onnxruntime {ort.__version__} is installed without it; {_BUILDS[name]}"
    try:
        return probe(Provider(name))
    except ProviderError as error:
        build = _BUILDS.get(name)
        return f"{error}" + (f", or an onnxruntime that has it built in: {build}" if build else "")


def _chain(name: str) -> tuple[str, ...]:
    """The provider, then those it falls back to."""
    return _FALLBACK.get(name, (name, "cpu"))


def _built_in(name: str) -> bool:
    return _ORT_NAMES[name] in ort.get_available_providers()


__all__ = ["NAMES", "Provider", "missing", "resolve", "usable"]
