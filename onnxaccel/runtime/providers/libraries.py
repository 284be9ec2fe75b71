"""Which shared libraries NVIDIA's providers need, at which version, and what installs one that is missing.

The versions follow from the installed onnxruntime: its CUDA provider names the cuBLAS it was linked with
(onnxruntime-gpu up to 1.24: CUDA 12, from 1.27: CUDA 13; cuDNN 9 and TensorRT 10 for both).
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterable
from pathlib import Path

import onnxruntime as ort

_CUFFT = {"12": "11", "13": "12"}
"""Version of cuFFT in each CUDA."""
_PIP = "pip install "


def missing_libraries(provider: str) -> str | None:
    """What "cuda" or "tensorrt" needs and does not load here, with the lines that install it, or None."""
    built_for = cuda_version()
    if built_for is None:
        return None
    missing: list[str] = []
    remedies: dict[str, None] = {}  # in order, each once
    for library, remedy in _needed(provider, built_for).items():
        try:
            ctypes.CDLL(library)
        except OSError as error:
            missing.append(library if "cannot open" in str(error) else f"{library} ({error})")
            remedies[remedy] = None
    if not missing:
        return None
    return f"it needs {', '.join(missing)} (CUDA {built_for}); {'; '.join(_joined(remedies))}"


def cuda_version() -> str | None:
    """The major version of CUDA that the installed onnxruntime was built for, or None if for none."""
    path = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not path.is_file():
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        found = re.search(rb"libcublasLt\.so\.(\d+)", image)
        return found[1].decode() if found else None


def tensorrt_version() -> str:
    """The version of the TensorRT that loads, as "10.14.1", or "none"."""
    try:
        number = int(ctypes.CDLL("libnvinfer.so.10").getInferLibVersion())
    except (OSError, AttributeError):
        return "none"
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _needed(provider: str, cuda: str) -> dict[str, str]:
    """Libraries by name, each with what installs it."""
    suffix = "-cu12" if cuda == "12" else ""  # NVIDIA's packages for CUDA 13 carry no suffix
    libraries = {
        "libcuda.so.1": f"install NVIDIA's driver, one that runs CUDA {cuda}",
        f"libcudart.so.{cuda}": f"{_PIP}nvidia-cuda-runtime{suffix}",
        f"libcublasLt.so.{cuda}": f"{_PIP}nvidia-cublas{suffix}",
        f"libcublas.so.{cuda}": f"{_PIP}nvidia-cublas{suffix}",
        "libcurand.so.10": f"{_PIP}nvidia-curand{suffix}",
        f"libcufft.so.{_CUFFT.get(cuda, '12')}": f"{_PIP}nvidia-cufft{suffix}",
        "libcudnn.so.9": f"{_PIP}nvidia-cudnn-cu{cuda}",
    }
    if provider == "tensorrt":
        tensorrt = f"{_PIP}'tensorrt-cu{cuda}<11' --extra-index-url https://pypi.nvidia.com"
        libraries |= {"libnvinfer.so.10": tensorrt, "libnvonnxparser.so.10": tensorrt}
    return libraries


def _joined(remedies: Iterable[str]) -> list[str]:
    """One pip line instead of several; those with an index of their own stay apart."""
    plain = [r.removeprefix(_PIP) for r in remedies if r.startswith(_PIP) and "--" not in r]
    others = [r for r in remedies if not r.startswith(_PIP) or "--" in r]
    return others[:1] + ([_PIP + " ".join(plain)] if plain else []) + others[1:]
