"""Reading PyTorch's files without running what is in them.

Every format but safetensors and TorchScript's source holds pickles, and a pickle is a program. Weights are
read with torch's weights-only unpickler, which builds tensors and containers and nothing else.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxaccel import bounds
from onnxaccel.errors import ConversionError, MissingWeights

if TYPE_CHECKING:
    import torch

_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Keys under which training scripts keep the weights within a checkpoint."""

_EXPANSION = 20
"""Largest ratio of unpacked to packed size; PyTorch stores its archives unpacked."""


def check_archive(path: Path) -> None:
    """`onnxaccel.bounds.check_archive` for PyTorch's archives."""
    bounds.check_archive(path, ConversionError, _EXPANSION)


def read_checkpoint(path: Path, trust_pickle: bool) -> Any:
    """Load what ``torch.save`` wrote: tensors and containers, or anything at all where pickles are trusted.

    Raises:
        ConversionError: The file is damaged, or needs code to be run and ``trust_pickle`` is False.
    """
    import torch

    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path}: refused, loading it would run code from the file ({blocked(error)}); save the "
            f"module's "
            f"state_dict() instead, or pass --trust-pickle if you trust whoever made the file"
        ) from None
    except Exception as error:  # damaged files end in any exception of the unpickler or of the zip reader
        raise ConversionError(
            f"{path}: damaged or truncated ({first_line(error)}); copy the file again"
        ) from None


def read_state(path: Path, format_name: str, trust_pickle: bool) -> Any:
    """The checkpoint at ``path``: a mapping of names to tensors, or a pickled module where that is trusted.

    Raises:
        ConversionError: The file is damaged, or needs code to be run.
        MissingWeights: There are no named tensors in it.
    """
    if format_name == "safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:
            raise ConversionError(f"{path}: a damaged safetensors file ({first_line(error)})") from None
    loaded = read_checkpoint(path, trust_pickle)
    return _module_in(loaded) or tensors_in(loaded, path)


def tensors_in(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a checkpoint: at its top, under one of the usual keys, or nested."""
    import torch

    for candidate in [loaded, *(_get(loaded, key) for key in _NESTED)]:
        if isinstance(candidate, Mapping):
            tensors = {k: v for k, v in candidate.items() if isinstance(v, torch.Tensor)}
            if tensors and len(tensors) * 2 > len(candidate):
                return tensors
    nested = {
        k: v
        for k, v in (loaded.items() if isinstance(loaded, Mapping) else ())
        if isinstance(v, Mapping) and v and all(isinstance(t, torch.Tensor) for t in v.values())
    }
    if nested:  # one state dict per part of the module
        parts = {f"{part}.{name}": tensor for part, state in nested.items() for name, tensor in state.items()}
        return parts if len(nested) > 1 else dict(*nested.values())
    keys = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
    raise MissingWeights(f"{path}: no state dict in it (it holds {keys[:200]}); save module.state_dict()")


def _module_in(loaded: Any) -> torch.nn.Module | None:
    """A pickled module, at the top or under one of the usual keys; only a trusted pickle can hold one."""
    import torch

    candidates = [loaded, *(_get(loaded, key) for key in _NESTED)]
    return next((c for c in candidates if isinstance(c, torch.nn.Module)), None)


def _get(loaded: Any, key: str) -> Any:
    return loaded.get(key) if isinstance(loaded, Mapping) else None


def blocked(error: Exception) -> str:
    """What torch's unpickler stumbled over, without its advice."""
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it calls {match[1]}" if match else first_line(error)


def first_line(error: BaseException) -> str:
    """The telling line of a message: the first, or TorchScript's last; the error's type if it is empty."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "TorchScript interpreter" in lines[0] else 0]
