"""The reference models, each defined in TensorFlow, PyTorch and Caffe with the same initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxaccel.converters.tensorflow.bridge import import_tensorflow
from onnxaccel.errors import ConversionError, MissingDependency, OutputError
from onnxaccel.models import caffe, cifar_cnn, mlp  # importing a model registers it
from onnxaccel.models.reference import Reference, Shape, initial_weights, reference, to_keras

FRAMEWORKS = ("tensorflow", "pytorch", "caffe")

__all__ = [
    "FRAMEWORKS",
    "Exported",
    "build",
    "cifar_cnn",
    "describe",
    "export",
    "initial_weights",
    "input_shape",
    "mlp",
    "names",
]


@dataclass(frozen=True)
class Exported:
    """A reference model on disk.

    Attributes:
        files: The files, those to convert first.
        convert: The command that converts it.
    """

    files: list[str]
    convert: str


def names() -> list[str]:
    """Names of the reference models."""
    return list(reference)


def describe(name: str) -> str:
    """One line about a reference model."""
    return _get(name).description


def input_shape(name: str) -> Shape:
    """Default shape of one sample, channels first."""
    return _get(name).input_shape


def build(
    name: str, framework: str, seed: int = 0, input_shape: Shape | None = None, classes: int = 10
) -> Any:
    """A live model with freshly drawn weights, the same ones in every framework.

    Args:
        name: A name of `names`.
        framework: "pytorch" gives a ``torch.nn.Module``, "tensorflow" a Keras model.
        seed: Seed of the weights.
        input_shape: Shape of one sample, channels first; the model's own when None.
        classes: Number of classes.

    Raises:
        ConversionError: There is no such model, or none that lives in that framework's Python.
        MissingDependency: The framework is not installed.
    """
    model, shape = _get(name), input_shape or _get(name).input_shape
    weights = initial_weights(model, seed, shape, classes)
    try:
        if framework == "pytorch":
            import torch

            module = model.pytorch(shape, classes)
            module.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
            return module
        if framework == "tensorflow":
            import_tensorflow()  # quietly
            network = model.tensorflow(shape, classes)
            flattened = model.flattened(shape)
            for layer in network.layers:
                if layer.weights:
                    parts = [f"{layer.name}.weight", f"{layer.name}.bias"]
                    layer.set_weights([to_keras(part, weights[part], flattened) for part in parts])
            return network
    except ImportError as error:
        extra = {"pytorch": "torch"}.get(framework, framework)
        raise MissingDependency(error.name or framework, extra, f"build {name} in {framework}") from None
    raise ConversionError(
        f"{name} has no live form in {framework!r}; choose pytorch or tensorflow, or export it"
    )


def export(
    name: str,
    framework: str,
    folder: Path,
    *,
    seed: int = 0,
    input_shape: Shape | None = None,
    classes: int = 10,
) -> Exported:
    """Write a reference model as users of its framework do.

    TensorFlow: ``NAME.keras``. PyTorch: ``NAME.pt2`` (exported program) and ``NAME.pth`` (state dict).
    Caffe: ``NAME_deploy.prototxt`` and ``NAME.caffemodel``; ``NAME_train_val.prototxt`` and
    ``NAME_solver.prototxt`` train it in Caffe.

    Args:
        name: A name of `names`.
        framework: A name of `FRAMEWORKS`.
        folder: Where to write; it is created.
        seed: Seed of the weights.
        input_shape: Shape of one sample, channels first; the model's own when None.
        classes: Number of classes.

    Raises:
        ConversionError: There is no such model or framework.
        OutputError: The folder cannot be written.
    """
    shape = input_shape or _get(name).input_shape
    if framework not in FRAMEWORKS:
        raise ConversionError(f"unknown framework {framework!r}; choose one of {', '.join(FRAMEWORKS)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if framework == "tensorflow":
            path = folder / f"{name}.keras"
            build(name, framework, seed, shape, classes).save(path)
            return Exported([str(path)], f"onnxaccel convert {path} --trainable")
        if framework == "caffe":
            model = _get(name)
            files = caffe.write(
                folder, name, model, initial_weights(model, seed, shape, classes), shape, classes
            )
            return Exported(list(map(str, files)), f"onnxaccel convert {files[0]} {files[1]} --trainable")
        return _export_pytorch(name, folder, build(name, framework, seed, shape, classes), shape)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from None


def _export_pytorch(name: str, folder: Path, module: Any, shape: Shape) -> Exported:
    import torch

    module.eval()
    program, weights = folder / f"{name}.pt2", folder / f"{name}.pth"
    batch = torch.export.Dim("batch")
    exported = torch.export.export(module, (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, program)
    torch.save(module.state_dict(), weights)
    return Exported([str(program), str(weights)], f"onnxaccel convert {program} --trainable")


def _get(name: str) -> Reference:
    found = reference.get(name)
    if found is None:
        raise ConversionError(f"unknown reference model {name!r}; choose one of {', '.join(names())}")
    return found
