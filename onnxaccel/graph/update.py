"""From gradients to new parameters: what a training step does after the backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import TrainingError
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.model import name_of, tensor_of
from onnxaccel.graph.optimizers import Group, Optimizer
from onnxaccel.graph.optimizers.base import ROLES, average
from onnxaccel.graph.recipe import Recipe
from onnxaccel.graph.training_form import Carried

STEP = "onnxaccel.step"
SCALE = "onnxaccel.scale"
GOOD_STEPS = "onnxaccel.good_steps"
INITIAL_SCALE, GROWTH_INTERVAL = 2.0**16, 2000
FIRST = "onnxaccel.first"
WEIGHT = "onnxaccel.weight"
GRADIENT = "/gradient"
"""What follows a parameter's name in its sum of gradients'."""
AVERAGE = "/ema"
"""What follows a parameter's name in its average's."""


def update(
    op: Builder,
    optimizer: Optimizer,
    gradients: Mapping[ir.Value, ir.Value],
    rate: ir.Value,
    roles: Mapping[str, str | None],
    recipe: Recipe,
    scale: ir.Value | None = None,
) -> list[Carried]:
    """Write the update of all parameters.

    Args:
        op: The builder.
        optimizer: The optimizer; its groups pick parameters by name and role.
        gradients: The gradient of each parameter.
        rate: The learning rate, a float scalar.
        roles: The role of each parameter (see `onnxaccel.graph.parameters.role_of`), by name.
        recipe: How gradients are clipped, and whether averages of the parameters are kept.
        scale: What the loss was multiplied by; None: it was not.

    Returns:
        What the step must carry on: the number of the step where the optimizer counts them, each parameter,
        its state, and its average; the scale.
    """
    finite = None
    if scale is not None:
        inverse = op.Reciprocal(scale)
        gradients = {p: op.Mul(g, inverse) for p, g in gradients.items()}
        finite = _finite(op, gradients.values())
    gradients = _clipped(op, gradients, recipe)

    def kept(new: ir.Value, old: ir.Value) -> ir.Value:
        return new if finite is None else op.Where(finite, new, old)

    settings = {p: optimizer.for_parameter(name_of(p), roles.get(name_of(p))) for p in gradients}
    carried: list[Carried] = []
    number = None
    if any(own.counts_steps for own, _ in settings.values()):
        counter = ir.val(STEP, ir.DataType.FLOAT, ir.Shape([]))
        number = op.Add(counter, 1.0)
        carried.append(Carried(counter, kept(number, counter), np.zeros((), np.float32)))
    rates = {1.0: rate}
    for parameter, gradient in gradients.items():
        own, factor = settings[parameter]
        if factor not in rates:
            rates[factor] = op.Mul(rate, factor)
        slots = [ir.val(f"{parameter.name}/{slot}", parameter.dtype, parameter.shape) for slot in own.slots]
        new, new_slots = own.update(op, parameter, gradient, slots, rates[factor], number)
        new, start = kept(new, parameter), tensor_of(parameter)
        carried.append(Carried(parameter, new, start))
        carried += [
            Carried(old, kept(new, old), np.full_like(start, own.start(slot)))
            for slot, old, new in zip(own.slots, slots, new_slots, strict=True)
        ]
        if recipe.ema is not None:
            old = ir.val(f"{parameter.name}{AVERAGE}", parameter.dtype, parameter.shape)
            carried.append(Carried(old, kept(average(op, old, new, recipe.ema), old), start))
    if scale is not None and finite is not None:
        carried += _rescaled(op, scale, finite)
    return carried


def _finite(op: Builder, gradients: Iterable[ir.Value]) -> ir.Value:
    """Whether all elements of all gradients are finite: 0 times any other is NaN."""
    return op.Not(op.IsNaN(op.Sum(*(op.ReduceSum(op.Mul(g, 0.0), keepdims=0) for g in gradients))))


def _rescaled(op: Builder, scale: ir.Value, finite: ir.Value) -> list[Carried]:
    """The scale of the next step, by torch.amp.GradScaler's rule with its defaults."""
    count = ir.val(GOOD_STEPS, ir.DataType.FLOAT, ir.Shape([]))
    counted = op.Where(finite, op.Add(count, 1.0), 0.0)
    full = op.GreaterOrEqual(counted, float(GROWTH_INTERVAL))
    grown = op.Where(full, op.Mul(scale, 2.0), scale)
    return [
        Carried(scale, op.Where(finite, grown, op.Mul(scale, 0.5)), np.full((), INITIAL_SCALE, np.float32)),
        Carried(count, op.Where(full, 0.0, counted), np.zeros((), np.float32)),
    ]


def accumulated(
    op: Builder, gradients: Mapping[ir.Value, ir.Value], weight: ir.Value, first: ir.Value
) -> list[Carried]:
    """Add a batch's gradients to a running sum, which begins anew where ``first`` is true.

    Args:
        op: The builder.
        gradients: The gradient of each parameter's mean loss over the batch.
        weight: What the batch counts, by which its gradients are multiplied.
        first: A bool scalar.

    Returns:
        The sums of gradients and weights, to be carried on.
    """
    terms = {f"{p.name}{GRADIENT}": (p, op.Mul(g, weight)) for p, g in gradients.items()}
    carried = []
    for name, (like, term) in (terms | {WEIGHT: (weight, weight)}).items():
        shape = ir.Shape([]) if name == WEIGHT else like.shape
        old = ir.val(name, like.dtype, shape)
        start = np.zeros([int(d) for d in shape or () if isinstance(d, int)], np.float32)
        carried.append(Carried(old, op.Where(first, term, op.Add(old, term)), start))
    return carried


def _clipped(op: Builder, gradients: Mapping[ir.Value, ir.Value], recipe: Recipe) -> dict[ir.Value, ir.Value]:
    """The gradients, none larger than the recipe says."""
    if recipe.clip_value is not None:
        low, high = -recipe.clip_value, recipe.clip_value
        return {p: op.Clip(g, low, high) for p, g in gradients.items()}
    if recipe.clip_norm is None:
        return dict(gradients)
    squares = [op.ReduceSumSquare(g, keepdims=0) for g in gradients.values()]
    norm = op.Sqrt(op.Sum(*squares))
    factor = op.Min(op.Div(recipe.clip_norm, op.Add(norm, 1e-6)), 1.0)
    return {p: op.Mul(g, factor) for p, g in gradients.items()}


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
