"""What a PyTorch user needs besides `onnxaccel.convert`: trained weights back in the module."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from onnxaccel.errors import MissingWeights, ModelError
from onnxaccel.graph.model import Model

if TYPE_CHECKING:
    import torch

M = TypeVar("M", bound="torch.nn.Module")


def load_trained(module: M, trained: str | os.PathLike[str] | Model) -> M:
    """Put the weights that onnxaccel trained back into the module that they came from.

        model = oa.convert(module, example, trainable=True)
        trainer = oa.Trainer(model)
        ...
        load_trained(module, trainer.export("trained.onnx"))

    Parameters and running statistics are copied in place, in the module's own type and on its own device;
    what the graph does not use stays as it is.

    Args:
        module: The module that was converted, or another of the same class and sizes.
        trained: A model converted with ``trainable=True``, or the path of its file.

    Returns:
        ``module``.

    Raises:
        ModelError: The file is no readable model, or its parameters do not have PyTorch's names.
        MissingWeights: The module lacks a parameter of the graph, or has it in another shape; nothing is
            changed.
    """
    import torch

    model = trained if isinstance(trained, Model) else Model.load(trained)
    if model.metadata.framework != "pytorch" or model.metadata.trainable is None:
        raise ModelError("not a trainable form of a PyTorch module; convert it with trainable=True")
    own = module.state_dict(keep_vars=True)
    for name in model.metadata.trainable:
        if name not in own:
            raise MissingWeights(
                f"{type(module).__name__} has no parameter {name!r}, which the model trained"
            )
    weights = {name: array for name, array in model.weights().items() if name in own}
    for name, array in weights.items():
        if array.shape != tuple(own[name].shape):
            raise MissingWeights(
                f"{name!r} has shape {list(array.shape)} in the trained model, {list(own[name].shape)} in "
                f"{type(module).__name__}"
            )
    with torch.no_grad():
        for name, array in weights.items():
            own[name].copy_(torch.tensor(array))
    return module
