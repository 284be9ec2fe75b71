"""What a Caffe user needs besides `onnxaccel.convert`: trained weights back in a .caffemodel, the solver."""

from __future__ import annotations

import os
from pathlib import Path

from onnxaccel.converters.caffe.solver import read_solver
from onnxaccel.converters.caffe.writing import caffemodel_of
from onnxaccel.errors import ModelError, OutputError
from onnxaccel.files import atomic_folder
from onnxaccel.graph.model import Model

__all__ = ["read_solver", "save_caffemodel"]


def save_caffemodel(
    trained: str | os.PathLike[str] | Model,
    prototxt: str | os.PathLike[str],
    path: str | os.PathLike[str],
) -> Path:
    """Write the weights that onnxaccel trained as a .caffemodel, for Caffe to load.

        save_caffemodel("trained.onnx", "deploy.prototxt", "trained.caffemodel")

    Running statistics are written as Caffe keeps them, so that its training can go on. Layers are matched by
    name: any prototxt of the network will do, with data layers or without.

    Args:
        trained: A model converted from Caffe, or the path of its file.
        prototxt: The network's prototxt.
        path: Where to.

    Returns:
        ``path``.

    Raises:
        ModelError: The file is no readable model, or was not converted from this network.
        ConversionError: The prototxt cannot be read.
        OutputError: The path cannot be written.
    """
    model = trained if isinstance(trained, Model) else Model.load(trained)
    if model.metadata.framework != "caffe":
        raise ModelError("not a model that was converted from Caffe, so no .caffemodel can be made of it")
    data = caffemodel_of(model, Path(prototxt))
    target = Path(path)
    try:
        with atomic_folder(target.parent) as folder:
            (folder / target.name).write_bytes(data)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    return target
