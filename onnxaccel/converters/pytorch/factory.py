"""From a state dict and a factory to a module with its weights."""

from __future__ import annotations

import ast
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnxaccel.converters.pytorch.archive import first_line
from onnxaccel.errors import ConversionError, MissingDependency, MissingWeights

if TYPE_CHECKING:
    import torch


def build(factory: str) -> torch.nn.Module:
    """Call a factory given as "module:callable"; the working directory is searched too, as by ``python -m``.

    "transformers:FOLDER" builds the architecture that the folder's config.json names, and "timm:NAME" or
    "timm:NAME,num_classes=10" timm's model of that name; nothing is downloaded, and no code from the folder
    is run.

    Raises:
        ConversionError: It is not found, fails, or returns no module.
        MissingDependency: transformers or timm is not installed.
    """
    import torch

    module_name, _, name = factory.partition(":")
    if not module_name or not name:
        raise ConversionError(f"--factory {factory}: give it as module:callable, for instance nets:resnet20")
    if module_name == "transformers" and (Path(name).is_dir() or not name.isidentifier()):
        return _transformers(Path(name))
    if module_name == "timm":
        return _timm(name)
    try:
        with _working_directory_on_path():
            made = getattr(importlib.import_module(module_name), name)()
    except Exception as error:  # the user's own code
        raise ConversionError(f"--factory {factory}: {type(error).__name__}: {first_line(error)}") from None
    if not isinstance(made, torch.nn.Module):
        raise ConversionError(f"--factory {factory}: returned a {type(made).__name__}, not a torch.nn.Module")
    return made


def _transformers(folder: Path) -> torch.nn.Module:
    try:
        import transformers
    except ImportError:
        raise MissingDependency(
            "transformers", "transformers", "build the architecture of a config.json"
        ) from None
    if not (folder / "config.json").is_file():
        raise ConversionError(f"--factory transformers:{folder}: there is no config.json in that folder")
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        names = config.architectures or ["AutoModel"]
        if names == ["AutoModel"]:
            return transformers.AutoModel.from_config(config)  # type: ignore[no-any-return, no-untyped-call]
        made: torch.nn.Module = getattr(transformers, names[0])(config)
    except Exception as error:  # an OSError, ValueError or TypeError of transformers' own
        raise ConversionError(f"--factory transformers:{folder}: {first_line(error)}") from None
    return made


def _timm(name: str) -> torch.nn.Module:
    name, *settings = name.split(",")
    try:
        import timm
    except ImportError as error:
        if error.name != "timm":
            raise ConversionError(f"--factory timm:{name}: timm does not import ({error})") from None
        raise MissingDependency("timm", "timm", "build timm's models") from None
    except Exception as error:  # torchvision, built for another torch
        raise ConversionError(
            f"--factory timm:{name}: timm does not import ({first_line(error)}); install the "
            f"torchvision that belongs to this torch"
        ) from None
    try:
        values = {key: ast.literal_eval(value) for key, value in (s.split("=", 1) for s in settings)}
        made: torch.nn.Module = timm.create_model(name, pretrained=False, **values)
    except Exception as error:  # timm's own; a setting that is no Python literal
        raise ConversionError(f"--factory timm:{name}: {first_line(error)}") from None
    return made


def load_weights(module: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Put the tensors of a state dict into a module; every name and every shape must agree.

    Raises:
        MissingWeights: A name or a shape does not agree.
    """
    own = module.state_dict()
    tensors = _without_prefix(tensors, set(own))
    given = {
        own[name].data_ptr() for name in tensors if name in own
    }  # also under a tied parameter's other name
    missing = [
        name
        for name, tensor in own.items()
        if name not in tensors and not name.endswith("num_batches_tracked") and tensor.data_ptr() not in given
    ]
    unknown = [name for name in tensors if name not in own]
    if missing:
        shape = list(own[missing[0]].shape)
        surplus = f"; the file has {_some(unknown)} instead" if unknown else ""
        raise MissingWeights(f"{path}: no weights for {_some(missing)}, shape {shape}{surplus}")
    if unknown:
        shape = list(tensors[unknown[0]].shape)
        raise MissingWeights(
            f"{path}: the module has no parameter {_some(unknown)}, shape {shape} in the file"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise MissingWeights(
                f"{path}: {name!r} has shape {list(tensor.shape)} in the file, "
                f"{list(own[name].shape)} in the module that the factory builds"
            )
    module.load_state_dict(tensors, strict=False)


def _without_prefix(tensors: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
    """Names without what DataParallel ("module."), Lightning ("model.") or a wrapper puts before.

    It is the prefix under which most names are the module's own. What stands beside it (a loss's weights, a
    second copy of the model) belongs to the training, not to the module.
    """
    counts: dict[str, int] = {"": 0}
    for name in tensors:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in own:
                prefix = "".join(f"{part}." for part in parts[:cut])
                counts[prefix] = counts.get(prefix, 0) + 1
    prefix = max(counts, key=lambda p: (counts[p], -len(p)))
    if not prefix:
        return tensors
    return {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}


def _some(names: list[str]) -> str:
    return repr(names[0]) + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


@contextlib.contextmanager
def _working_directory_on_path() -> Iterator[None]:
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)
