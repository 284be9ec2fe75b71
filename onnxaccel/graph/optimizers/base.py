"""What every optimizer is: settings, groups of parameters with settings of their own, and one update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import onnx_ir as ir

from onnxaccel.errors import TrainingError
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.optimizers.fused import plus
from onnxaccel.graph.settings import Settings, made
from onnxaccel.registry import Registry

optimizer: Registry[type[Optimizer]] = Registry("optimizer")
"""Optimizers by the name that the command line takes: ``@optimizer("sgd")``."""

Update = tuple[ir.Value, list[ir.Value]]
"""A parameter's new value, and its new state in the order of `Optimizer.slots`."""

ROLES = ("@bias", "@norm")
"""Patterns that pick parameters by what they do (see `onnxaccel.graph.parameters.role_of`), not by name."""


@dataclass(frozen=True)
class Group:
    """Settings for some of the parameters.

    Attributes:
        pattern: Which ones: a shell pattern over their names ("encoder.*", "*.bias"; `glob.escape` makes a
            name with brackets in it match itself), or "@bias" or "@norm" for all of that role.
        settings: What differs for them, by name: any setting of the optimizer, or "lr_mult", a factor of its
            learning rate. ``lr`` stands for the factor ``lr / optimizer.lr``, so that a schedule moves all
            groups alike.
    """

    pattern: str
    settings: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, pattern: str, **settings: Any) -> Group:
        """A group from its settings by keyword: ``Group.of("*.bias", weight_decay=0)``."""
        return cls(pattern, tuple(settings.items()))

    def picks(self, name: str, role: str | None) -> bool:
        """Whether the parameter called ``name``, of role "bias", "norm" or None, is in the group."""
        return self.pattern == f"@{role}" if self.pattern in ROLES else fnmatchcase(name, self.pattern)


NO_DECAY_ON_BIAS_AND_NORM = (Group.of("@bias", weight_decay=0.0), Group.of("@norm", weight_decay=0.0))
"""Groups that keep weight decay to the weights proper."""


@dataclass(frozen=True)
class Optimizer(Settings):
    """Settings of an optimizer.

    Attributes:
        lr: The learning rate.
        groups: Groups of parameters with settings of their own: `Group` objects, or pairs of a pattern and a
            dictionary. All groups that pick a parameter apply, in order, the later ones over the earlier.

    Raises:
        TrainingError: A setting is out of its range, or a group names a setting that the optimizer lacks.
    """

    lr: float = 1e-3
    groups: tuple[Group, ...] = field(default=(), kw_only=True)

    elementwise: ClassVar[bool] = True
    """Whether each element's update depends on that element's parameter, gradient and state alone, so that
    the parameters of one setting may be updated as one flat vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Iterable[Any] = self.groups
        groups = tuple(g if isinstance(g, Group) else Group.of(g[0], **dict(g[1])) for g in given)
        object.__setattr__(self, "groups", groups)
        for name in ("betas", "momentum", "alpha", "rho"):
            value = getattr(self, name, 0.0)
            if not all(b < 1 for b in (value if isinstance(value, tuple) else [value])):
                raise TrainingError(f"{type(self).__name__}: {name} must stay below 1, it is {value!r}")
        for group in groups:
            self._with(group)

    def _checked_range(self) -> set[str]:
        return super()._checked_range() - {"groups"}

    def for_parameter(self, name: str, role: str | None = None) -> tuple[Optimizer, float]:
        """The settings of one parameter.

        Args:
            name: The parameter's name.
            role: "bias", "norm", or None for all others.

        Returns:
            The optimizer without groups, as it updates this parameter, and the factor of the learning rate.
            Parameters of equal settings get equal optimizers.
        """
        own, factor = replace(self, groups=()), 1.0
        for group in self.groups:
            if group.picks(name, role):
                own, own_factor = own._with(group)
                factor = factor if own_factor is None else own_factor
        return own, factor

    def _with(self, group: Group) -> tuple[Optimizer, float | None]:
        """These settings with a group's over them, and the group's factor of the learning rate, if any.

        Raises:
            TrainingError: The group has a setting that the optimizer lacks, or one out of range.
        """
        settings = dict(group.settings)
        where = f"group {group.pattern!r}"
        known = {f.name for f in fields(self)} - {"groups"} | {"lr_mult"}
        foreign = sorted(set(settings) - known)
        if foreign:
            raise TrainingError(
                f"{where}: {type(self).__name__} has no {foreign[0]}; it has {', '.join(sorted(known))}"
            )
        factor, rate = settings.pop("lr_mult", None), settings.pop("lr", None)
        if rate is not None:
            if factor is not None or not self.lr:
                raise TrainingError(f"{where}: give lr_mult alone, the factor of the learning rate")
            factor = _positive(where, "lr", rate) / self.lr
        elif factor is not None:
            factor = _positive(where, "lr_mult", factor)
        try:
            return replace(self, groups=(), **settings), factor
        except TrainingError as error:
            raise TrainingError(f"{where}: {error}") from None

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state tensors per parameter, each shaped like it."""
        return ()

    @property
    def counts_steps(self) -> bool:
        """Whether `update` needs the number of the step."""
        return False

    def start(self, slot: str) -> float:
        """The value that a state tensor is filled with at the start."""
        return 0.0

    def update(
        self,
        op: Builder,
        p: ir.Value,
        g: ir.Value,
        state: Sequence[ir.Value],
        lr: ir.Value,
        t: ir.Value | None,
    ) -> Update:
        """Write the update of one parameter.

        Args:
            op: The builder.
            p: The parameter.
            g: Its gradient.
            state: Its state, in the order of `slots`.
            lr: The learning rate, a scalar.
            t: The number of this step, 1 for the first, a scalar; None unless `counts_steps`.

        Returns:
            The new parameter and the new state.
        """
        raise NotImplementedError


def _positive(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise TrainingError(f"{where}: {name} must be a number that is not negative, it is {value!r}")
    return float(value)


def create(name: str, settings: Mapping[str, Any] | None = None, /, **more: Any) -> Optimizer:
    """The optimizer called ``name``, with its settings.

    Raises:
        TrainingError: There is no such optimizer, it has no such setting, or a setting is out of range.
    """
    return made(optimizer, name, {**(settings or {}), **more})


def bias_correction(op: Builder, beta: float, t: ir.Value | None) -> ir.Value:
    """``1 - beta^t`` as a float32 scalar, computed in float64: in float32, 1 - 0.999 has only five digits."""
    return single(op, op.Sub(1.0, power(op, beta, t)))


def power(op: Builder, base: float, t: ir.Value | None) -> ir.Value:
    """``base^t`` as a float64 scalar."""
    return op.Pow(op.constant(base, ir.DataType.DOUBLE), double(op, t))


def double(op: Builder, t: ir.Value | None) -> ir.Value:
    """The number of the step as a float64 scalar."""
    return op.Cast(t, to=ir.DataType.DOUBLE.value)


def single(op: Builder, x: ir.Value) -> ir.Value:
    """``x`` as float32, the type of the learning rate."""
    return op.Cast(x, to=ir.DataType.FLOAT.value)


def l2(op: Builder, p: ir.Value, g: ir.Value, weight_decay: float) -> ir.Value:
    """The gradient with weight decay as an L2 penalty: ``g + weight_decay p``."""
    return plus(op, p, weight_decay, g) if weight_decay else g


def decoupled(op: Builder, p: ir.Value, lr: ir.Value, weight_decay: float) -> ir.Value:
    """The parameter after decoupled weight decay: ``(1 - lr weight_decay) p``."""
    return op.Mul(p, op.Sub(1.0, op.Mul(lr, weight_decay))) if weight_decay else p


def average(op: Builder, old: ir.Value, new: ir.Value, beta: float) -> ir.Value:
    """An exponential moving average's next value: ``beta old + (1 - beta) new``."""
    return op.Add(op.Mul(old, beta), op.Mul(new, 1.0 - beta))
