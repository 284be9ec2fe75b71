"""Execution providers by name: which are usable here, and what is missing for those that are not.

CUDA and TensorRT follow onnxruntime-gpu 1.27 to 1.31: CUDA 13, cuDNN 9, TensorRT 10.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import onnxruntime as ort

from onnxaccel.errors import ProviderError

NAMES = ("auto", "cpu", "cuda", "tensorrt")
"""What ``--ep`` takes."""

_ORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_FALLBACK = {"cpu": ("cpu",), "cuda": ("cuda", "cpu"), "tensorrt": ("tensorrt", "cuda", "cpu")}

_CUDA_LIBRARIES = {
    "libcudart.so.13": "pip install nvidia-cuda-runtime",
    "libcublasLt.so.13": "pip install nvidia-cublas",
    "libcufft.so.12": "pip install nvidia-cufft",
    "libcudnn.so.9": "pip install nvidia-cudnn-cu13",
}
_TENSORRT_LIBRARIES = {
    "libnvinfer.so.10": "pip install 'tensorrt-cu13<11' --extra-index-url https://pypi.nvidia.com",
    "libnvonnxparser.so.10": "pip install 'tensorrt-cu13<11' --extra-index-url https://pypi.nvidia.com",
}


@dataclass(frozen=True)
class Provider:
    """A usable execution provider.

    Attributes:
        name: "cpu", "cuda" or "tensorrt".
        options: onnxruntime's own options for it.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """onnxruntime's device type of buffers: "cpu" or "cuda"."""
        return "cpu" if self.name == "cpu" else "cuda"

    def ort_providers(self) -> list[tuple[str, dict[str, Any]]]:
        """The list for InferenceSession: this provider first, then those it falls back to."""
        return [(_ORT_NAMES[n], self.options if n == self.name else {}) for n in _FALLBACK[self.name]]


def resolve(name: str) -> Provider:
    """The provider called ``name``; "auto" is the best usable one.

    Raises:
        ProviderError: It is unknown or not usable; the message names what is missing and what installs it.
    """
    if name not in NAMES:
        raise ProviderError(f"unknown execution provider {name!r}; choose one of {', '.join(NAMES)}")
    if name == "auto":
        return Provider(next((n for n in ("cuda", "cpu") if missing(n) is None), "cpu"))
    problem = missing(name)
    if problem is not None:
        raise ProviderError(f"execution provider {name!r} is not usable here: {problem}")
    return Provider(name)


def missing(name: str) -> str | None:
    """What keeps provider ``name`` from working here and the line that installs it; None if nothing."""
    if name == "cpu":
        return None
    if _ORT_NAMES[name] not in ort.get_available_providers():
        return (
            f"onnxruntime {ort.__version__} is installed without it; "
            "pip uninstall -y onnxruntime && pip install 'onnxaccel[gpu]'"
        )
    ort.preload_dlls()
    libraries = {"libcuda.so.1": "install NVIDIA's driver"} | _CUDA_LIBRARIES
    if name == "tensorrt":
        libraries |= _TENSORRT_LIBRARIES
    for library, remedy in libraries.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            return f"{library} is missing; {remedy}"
    return None
