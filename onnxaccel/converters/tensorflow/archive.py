"""Looking through Keras's files before Keras opens them: what they describe, and where their weights lie."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxaccel.bounds import BAD_ZIP, TEXT, check_archive
from onnxaccel.errors import ConversionError
from onnxaccel.files import scratch_folder
from onnxaccel.hdf5 import check_hdf5

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"

_CODE = frozenset({"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"})
"""Classes whose configuration is a program, or names one."""

_PACKAGES = ("keras", "tf_keras", "tensorflow.keras", "builtins", "numpy")
"""Where classes come from without --custom-objects."""

_REMEDY = "build the model in Python and pass it to onnxaccel.convert"


def check_keras(path: Path, source_format: str, custom: bool = False) -> None:
    """Refuse a Keras file that holds code, names other files, or declares far more than it holds.

    Args:
        path: The file.
        source_format: "keras", an archive, or "keras-h5".
        custom: Whether the user named a module with classes of their own.

    Raises:
        ConversionError: It is damaged or hostile.
    """
    if source_format == "keras-h5":
        check_hdf5(path, ConversionError, whole=True)
        _check_config(path, _h5_config(path), custom)
        return
    check_archive(path, ConversionError)
    with scratch_folder() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo(_CONFIG).file_size > TEXT:
                    raise ConversionError(f"{path}: its {_CONFIG} is too large for a model's description")
                text = archive.read(_CONFIG)
                weights = Path(archive.extract(_WEIGHTS, folder))
        except (*BAD_ZIP, KeyError) as error:
            raise ConversionError(f"{path}: a damaged archive ({error}); copy the file again") from None
        _check_config(path, text, custom)
        if weights.stat().st_size:
            check_hdf5(weights, ConversionError, whole=True)


def _h5_config(path: Path) -> bytes | str:
    """The model's description, an attribute of the file; empty where there is none."""
    import h5py

    with h5py.File(path, "r") as file:
        found = file.attrs.get("model_config", "{}")
    return found if isinstance(found, (str, bytes)) else "{}"


def _check_config(path: Path, text: bytes | str, custom: bool) -> None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: Keras cannot read it, it may be damaged ({error})") from None
    for item in _objects(document):
        name, module = item.get("class_name"), item.get("module")
        if name in _CODE:
            raise ConversionError(
                f"{path}: has a {str(name).strip('_').capitalize() if name == '__lambda__' else name} layer, "
                f"which is code from the file, so it is not loaded; {_REMEDY}"
            )
        if isinstance(module, str) and not custom and not _known(module) and not _registered(item):
            raise ConversionError(
                f"{path}: has an object of module {module!r}, which is no part of Keras; name the module "
                f"that defines it with --custom-objects MODULE, or {_REMEDY}"
            )
        if isinstance(item.get("vocabulary"), str):
            raise ConversionError(
                f"{path}: refused, it names another file for a vocabulary ({item['vocabulary']}); {_REMEDY}"
            )


def _known(module: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in _PACKAGES)


def _registered(item: dict[str, Any]) -> bool:
    """Whether the user's own program has registered an object of that name with Keras."""
    import keras

    name = item.get("registered_name")
    return isinstance(name, str) and keras.saving.get_registered_object(name) is not None


def _objects(document: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON document."""
    pending = [document]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
