"""Execution providers that come as packages of their own, for a stock onnxruntime (1.24 on) to register."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import onnxruntime as ort

from onnxaccel.errors import ProviderError

_MODULES = {
    "tensorrt-rtx": "onnxruntime_ep_nv_tensorrt_rtx",
    "openvino": "onnxruntime_ep_openvino",
}
_PACKAGES = {
    "tensorrt-rtx": "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "openvino": "onnxruntime-ep-openvino",
}
_HARDWARE = {
    "tensorrt-rtx": "an NVIDIA GPU of compute capability 7.5, 8.6, 8.9 or 12.0 and a driver for CUDA 13",
    "openvino": "a processor or graphics card of Intel's",
}


def exists(name: str) -> bool:
    """Whether provider ``name`` comes as a plugin."""
    return name in _MODULES


@functools.cache
def devices(name: str) -> tuple[Any, ...]:
    """The devices on which provider ``name`` runs here; its library is registered at the first call.

    Raises:
        ProviderError: Its package or a library is missing, or no device fits; the message says which.
    """
    if importlib.util.find_spec(_MODULES[name]) is None:
        raise ProviderError(f"its plugin is not installed; pip install {_PACKAGES[name]}")
    if not hasattr(ort, "register_execution_provider_library"):
        raise ProviderError(
            f"onnxruntime {ort.__version__} takes no plugins; pip install 'onnxruntime>=1.24'"
        )
    try:
        module = importlib.import_module(_MODULES[name])
        ort.register_execution_provider_library(f"onnxaccel.{name}", module.get_library_path())
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        detail = str(error).splitlines()[0].split(" with error: ")[-1]
        remedy = "install NVIDIA's driver" if "libcuda.so" in detail else f"needed: {_HARDWARE[name]}"
        raise ProviderError(f"its plugin does not load ({detail}); {remedy}") from None
    found = tuple(d for d in ort.get_ep_devices() if d.ep_name == module.get_ep_name())
    if not found:
        raise ProviderError(f"its plugin finds no device it runs on; needed: {_HARDWARE[name]}")
    return found
