"""A conversion in a process of its own, see `onnxaccel.compare.sources`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxaccel.errors import AccelError, ModelError


def run(setup: Mapping[str, Any]) -> tuple[None, dict[str, Any]]:
    """Export a reference model where one is named, convert the files, and describe the graph.

    The entry of a measuring process, see `onnxaccel.runtime.measure.worker`.

    Raises:
        AccelError: It cannot be exported or converted for inference.
    """
    from onnxaccel.converters import convert
    from onnxaccel.converters.detect import detect
    from onnxaccel.graph.builder import dims_of
    from onnxaccel.graph.model import Model

    folder, options = Path(setup["folder"]), dict(setup["options"])
    files = _exported(setup, folder) if "reference" in setup else list(setup["files"])
    # Caffe's weights and prototxt are one model; of PyTorch's exports the program is
    graph = files[:2] if setup["framework"] == "caffe" else files[:1]
    inference, trained = folder / "inference.onnx", folder / "trainable.onnx"
    obstacle = None
    if setup["framework"] == "onnx":
        format_name, model = "onnx", Model.load(Path(files[0]))
        model.check()
    else:
        format_name = detect([Path(file) for file in graph]).format
        model = convert(*graph, **options)
    _prepare(model, setup)
    model.save(inference)
    if setup["train"]:
        obstacle = _trainable(setup, graph, options, model, trained)
    first, *dims = [dim if isinstance(dim, int) else -1 for dim in dims_of(model.inputs[0]) or [-1]]
    planar = model.metadata.preprocessing.layout != "NHWC"
    if len(dims) == 3 and not planar:
        dims = [dims[2], *dims[:2]]
    last = model.outputs[0].producer()
    return None, {
        "format": format_name,
        "files": files,
        "onnx": str(inference),
        "trainable": str(trained) if trained.is_file() else None,
        "not_trainable": obstacle,
        "inputs": model.input_names(),
        "dtypes": [value.dtype.numpy().name for value in model.inputs if value.dtype is not None],
        "outputs": model.output_names(),
        "input_shape": dims,
        "planar": planar,
        "batch": first if first > 0 else None,
        "parameters": _weights(model),
        "probabilities": last is not None and last.op_type == "Softmax",
        "writers": _writers(files[0], model) if setup["framework"] == "caffe" else [],
    }


def _exported(setup: Mapping[str, Any], folder: Path) -> list[str]:
    from onnxaccel import models

    exported = models.export(
        setup["reference"],
        setup["framework"],
        folder,
        seed=setup["seed"],
        input_shape=tuple(setup["shape"]),
        classes=setup["classes"],
    )
    return exported.files


def _prepare(model: Any, setup: Mapping[str, Any]) -> None:
    for name, value in setup["preprocessing"].items():
        setattr(model.metadata.preprocessing, name, value)


def _trainable(
    setup: Mapping[str, Any], files: list[str], options: dict[str, Any], model: Any, target: Path
) -> str | None:
    """Write the trainable form; gives what stands in its way, or None."""
    from onnxaccel.converters import convert

    try:
        if setup["framework"] != "onnx":
            model = convert(*files, trainable=True, **options)
        elif model.metadata.trainable == []:
            raise ModelError("it was converted without --trainable, or is an optimised variant")
        _prepare(model, setup)
        model.save(target)
    except AccelError as error:
        return str(error)
    return None


def _writers(prototxt: str, model: Any) -> list[str]:
    """The layer of a Caffe network that writes each output last: OpenCV calls results by their layers."""
    from onnxaccel.converters.caffe.net import read_net

    last = {top: layer.name for layer in read_net(Path(prototxt)) for top in layer.tops}
    return [last.get(name, name) for name in model.output_names()]


def _weights(model: Any) -> int:
    """Number of floating-point weights."""
    from onnxaccel.graph.builder import dims_of

    held = model.graph.initializers.values()
    sizes = [dims_of(value) for value in held if value.dtype is not None and value.dtype.is_floating_point()]
    return sum(math.prod(d for d in dims if isinstance(d, int)) for dims in sizes if dims is not None)
