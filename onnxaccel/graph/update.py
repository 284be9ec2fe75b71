"""From gradients to new parameters: what a training step does after the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import TrainingError
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.model import name_of, tensor_of
from onnxaccel.graph.optimizers import Group, Optimizer
from onnxaccel.graph.optimizers.base import ROLES
from onnxaccel.graph.training_form import Carried

STEP = "onnxaccel.step"


def update(
    op: Builder,
    optimizer: Optimizer,
    gradients: Mapping[ir.Value, ir.Value],
    rate: ir.Value,
    roles: Mapping[str, str | None],
) -> list[Carried]:
    """Write the update of all parameters.

    Args:
        op: The builder.
        optimizer: The optimizer; its groups pick parameters by name and role.
        gradients: The gradient of each parameter.
        rate: The learning rate, a float scalar.
        roles: The role of each parameter (see `onnxaccel.graph.parameters.role_of`), by name.

    Returns:
        What the step must carry on: the number of the step where the optimizer counts them, each parameter,
        and its state.
    """
    settings = {p: optimizer.for_parameter(name_of(p), roles.get(name_of(p))) for p in gradients}
    carried: list[Carried] = []
    number = None
    if any(own.counts_steps for own, _ in settings.values()):
        counter = ir.val(STEP, ir.DataType.FLOAT, ir.Shape([]))
        number = op.Add(counter, 1.0)
        carried.append(Carried(counter, number, np.zeros((), np.float32)))
    rates = {1.0: rate}
    for parameter, gradient in gradients.items():
        own, factor = settings[parameter]
        if factor not in rates:
            rates[factor] = op.Mul(rate, factor)
        slots = [ir.val(f"{parameter.name}/{slot}", parameter.dtype, parameter.shape) for slot in own.slots]
        new, new_slots = own.update(op, parameter, gradient, slots, rates[factor], number)
        start = tensor_of(parameter)
        carried.append(Carried(parameter, new, start))
        carried += [
            Carried(old, new, np.full_like(start, own.start(slot)))
            for slot, old, new in zip(own.slots, slots, new_slots, strict=True)
        ]
    return carried


def check_groups(groups: Iterable[Group], names: Iterable[str], parameters: Sequence[str]) -> None:
    """Refuse a group whose pattern matches none of ``names``, which is a slip of the pen.

    Raises:
        TrainingError: There is one; it tells of the ``parameters`` that there are.
    """
    names = list(names)
    for group in groups:
        if group.pattern not in ROLES and not any(group.picks(name, None) for name in names):
            there = ", ".join(parameters[:8]) + (", ..." if len(parameters) > 8 else "")
            raise TrainingError(f"group {group.pattern!r} matches no parameter; there are {there}")
