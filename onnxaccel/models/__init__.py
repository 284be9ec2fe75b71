"""The reference models, defined in TensorFlow, PyTorch and Caffe with the same initial weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxaccel.converters.tensorflow.bridge import import_tensorflow
from onnxaccel.errors import ConversionError, MissingDependency, OutputError
from onnxaccel.files import atomic_folder
from onnxaccel.models import (  # importing a model registers it
    caffe,
    cifar_cnn,
    lenet,
    lstm_classifier,
    mlp,
    mobilenet_v2,
    resnet18,
    transformer_encoder,
    unet,
)
from onnxaccel.models.reference import Inputs, Reference, Shape, Targets, initial_weights, reference
from onnxaccel.models.tensorflow import set_weights

FRAMEWORKS = ("tensorflow", "pytorch", "caffe")

__all__ = [
    "FRAMEWORKS",
    "Exported",
    "Inputs",
    "build",
    "cifar_cnn",
    "describe",
    "export",
    "frameworks",
    "initial_weights",
    "inputs",
    "lenet",
    "lstm_classifier",
    "mlp",
    "mobilenet_v2",
    "names",
    "resnet18",
    "targets",
    "transformer_encoder",
    "unet",
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


def frameworks(name: str) -> tuple[str, ...]:
    """The frameworks that have a reference model, of `FRAMEWORKS`."""
    return FRAMEWORKS if _get(name).caffe is not None else FRAMEWORKS[:2]


def inputs(name: str) -> Inputs:
    """What a reference model reads: the kind, the default shape and the type of a sample, the vocabulary."""
    return _get(name).inputs


def targets(name: str) -> Targets:
    """What a reference model is trained on: "class", one label per sample, or "pixels", one per pixel.

    The scores of "pixels" are [N, classes, H, W]; Keras's are [N, H, W, classes], so that its converted model
    trains with a loss over ``axis=-1``.
    """
    return _get(name).targets


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
        ConversionError: There is no such model, none that lives in that framework's Python, or it cannot read
            such a shape.
        MissingDependency: The framework is not installed.
    """
    model, shape = _checked(name, framework, input_shape, classes)
    if framework == "caffe":
        raise ConversionError(f"{name} has no live form in caffe; export it, or choose tensorflow or pytorch")
    weights = initial_weights(model, seed, shape, classes)
    try:
        if framework == "pytorch":
            import torch

            module = model.pytorch(shape, classes)
            module.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
            return module
        import_tensorflow()  # quietly
        network = model.tensorflow(shape, classes)
        set_weights(network, weights, model.flattened(shape))
        return network
    except ImportError as error:
        extra = {"pytorch": "torch"}.get(framework, framework)
        raise MissingDependency(error.name or framework, extra, f"build {name} in {framework}") from None


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
        ConversionError: There is no such model, the framework lacks it, or it cannot read such a shape.
        OutputError: The folder cannot be written.
    """
    model, shape = _checked(name, framework, input_shape, classes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as scratch:
            if framework == "tensorflow":
                written = [scratch / f"{name}.keras"]
                build(name, framework, seed, shape, classes).save(written[0])
            elif framework == "caffe":
                weights = initial_weights(model, seed, shape, classes)
                written = caffe.write(scratch, name, model, weights, shape, classes)
            else:
                written = _export_pytorch(name, scratch, build(name, framework, seed, shape, classes), shape)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from None
    files = [str(folder / file.name) for file in written]
    sources = " ".join(files[:2] if framework == "caffe" else files[:1])
    return Exported(files, f"onnxaccel convert {sources} --trainable")


def _export_pytorch(name: str, folder: Path, module: Any, shape: Shape) -> list[Path]:
    import torch

    module.eval()
    program, weights = folder / f"{name}.pt2", folder / f"{name}.pth"
    batch = torch.export.Dim("batch")
    sample = torch.zeros(2, *shape, dtype=getattr(torch, inputs(name).dtype))
    with warnings.catch_warnings():  # of the flat weights that an LSTM keeps beside its own
        warnings.filterwarnings("ignore", "The tensor attributes .* were assigned during export")
        exported = torch.export.export(module, (sample,), dynamic_shapes=({0: batch},))
    torch.export.save(exported, program)
    torch.save(module.state_dict(), weights)
    return [program, weights]


def _checked(name: str, framework: str, input_shape: Shape | None, classes: int) -> tuple[Reference, Shape]:
    """The model, and the shape of its samples, once all fit together."""
    model = _get(name)
    if framework not in FRAMEWORKS:
        raise ConversionError(f"unknown framework {framework!r}; choose one of {', '.join(FRAMEWORKS)}")
    if framework not in frameworks(name):
        raise ConversionError(f"{name} is not defined in {framework}; choose {' or '.join(frameworks(name))}")
    shape = input_shape or model.inputs.shape
    model.inputs.check(name, shape)
    if classes < 2:
        raise ConversionError(f"{name}: a classifier has at least 2 classes, not {classes}")
    return model, shape


def _get(name: str) -> Reference:
    found = reference.get(name)
    if found is None:
        raise ConversionError(f"unknown reference model {name!r}; choose one of {', '.join(names())}")
    return found
