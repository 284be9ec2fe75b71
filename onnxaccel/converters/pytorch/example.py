"""Example inputs for tracing: given, recorded, or found out from the module's first layer."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxaccel.converters.contract import Arrays
from onnxaccel.converters.pytorch.archive import first_line
from onnxaccel.errors import ConversionError
from onnxaccel.graph.feeds import BATCH

if TYPE_CHECKING:
    import torch

USUAL_SIZES = (28, 32, 64, 96, 128, 160, 192, 224, 256, 299, 384, 512)
"""Heights and widths that image networks are trained at."""

FREE_SIZES = (12, 64, 224)
"""Stand in, one after the other, for a dimension given as -1 while tracing."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape by input name; -1 is dynamic."""

DimNames = Mapping[str, Mapping[int, str]]
"""Names of dynamic dimensions by input name and axis."""


@dataclass
class Example:
    """What to call a module with.

    Attributes:
        args: Positional arguments: tensors, or nested containers of them.
        kwargs: Keyword arguments.
        dynamic: Names of the dynamic axes of each tensor ("" for one without), in the order in which the
            tensors appear.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: list[dict[int, str]]

    def tensors(self) -> list[torch.Tensor]:
        """The tensors among the arguments, in order."""
        import torch
        from torch.utils import _pytree as pytree

        return [x for x in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, torch.Tensor)]

    def arrays(self, names: list[str]) -> Arrays:
        """The tensors as arrays, by the names of the graph's inputs."""
        tensors = [t for t in self.tensors()]
        return {n: t.detach().cpu().numpy() for n, t in zip(names, tensors, strict=False) if _has_array(t)}

    def map(
        self,
        function: Callable[[torch.Tensor, int], Any],
        other: Callable[[Any], Any] = lambda leaf: leaf,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with each tensor replaced by ``function(tensor, position)``, all else by ``other``."""
        import torch
        from torch.utils import _pytree as pytree

        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        position = -1
        mapped = []
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                position += 1
                mapped.append(function(leaf, position))
            else:
                mapped.append(other(leaf))
        args, kwargs = pytree.tree_unflatten(mapped, spec)
        return args, kwargs


def _has_array(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.dtype != torch.bfloat16


def given(
    module: torch.nn.Module,
    example: tuple[Any, ...],
    shapes: Shapes,
    names: DimNames | None = None,
) -> Example:
    """The example that the user passed: ``(x, y)``, ``((x, y),)``, and a last dict of keyword arguments.

    Batches of one are doubled, since tracing takes a dimension of size one for a constant. Each axis that
    ``shapes`` gives as -1 is dynamic, and so is axis 0 of every tensor that shares the first tensor's batch
    size, unless ``shapes`` fixes it beside a dynamic axis. The state of a recurrent layer, [layers, N, ...],
    has its batch at axis 1.

    Raises:
        ConversionError: The arguments do not fit the module's ``forward``.
    """
    import torch
    from torch.utils import _pytree as pytree

    if len(example) == 1 and isinstance(example[0], tuple):
        example = example[0]
    parameters = inspect.signature(module.forward).parameters
    kwargs: dict[str, Any] = {}
    if example and isinstance(example[-1], dict) and _are_keywords(example, parameters):
        kwargs, example = example[-1], example[:-1]
    kwargs = _settings(module) | kwargs
    kwargs = {name: kwargs[name] for name in [*parameters, *kwargs] if name in kwargs}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    args, kwargs = pytree.tree_map(lambda leaf: _as_tensor(leaf, device), (tuple(example), kwargs))
    try:
        arguments = bound(module, args, kwargs)
    except TypeError as error:
        raise ConversionError(f"the example does not fit {type(module).__name__}.forward: {error}") from None
    result = Example(args, kwargs, [])
    tensors = result.tensors()
    if not tensors:
        raise ConversionError(
            f"a {type(module).__name__} needs an example input: oa.convert(module, torch.randn(1, 3, "
            f"224, 224))"
        )
    batch = next((t.shape[0] for t in tensors if t.ndim), None)
    if batch == 1:
        result.args, result.kwargs = result.map(lambda t, _: _doubled(t))
    asked = _asked_axes(arguments, shapes, names or {})
    recurrent = any(isinstance(part, torch.nn.RNNBase) for part in module.modules())
    for index, tensor in enumerate(tensors):
        axes, has_batch = asked.get(index, ({}, True))
        if has_batch and tensor.ndim and tensor.shape[0] == batch:
            axes.setdefault(0, BATCH)
        elif has_batch and recurrent and tensor.ndim == 3 and tensor.shape[1] == batch:
            axes.setdefault(1, BATCH)
        result.dynamic.append(axes)
    return result


def bound(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names of forward's parameters; those of ``**kwargs`` by their own.

    Raises:
        TypeError: They do not fit.
    """
    signature = inspect.signature(module.forward)
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def _are_keywords(example: tuple[Any, ...], parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether the last item, a dict, holds keyword arguments, and is not itself an argument."""
    last, kinds = example[-1], {p.kind for p in parameters.values()}
    if set(last) <= set(parameters):
        return True
    if inspect.Parameter.VAR_KEYWORD not in kinds or not all(isinstance(key, str) for key in last):
        return False
    required = [
        n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    return all(name in last for name in required[len(example) - 1 :])


def _doubled(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([tensor, tensor]) if tensor.ndim and tensor.shape[0] == 1 else tensor


def _as_tensor(leaf: Any, device: torch.device) -> Any:
    import numpy as np
    import torch

    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(leaf)
    return leaf.detach().to(device) if isinstance(leaf, torch.Tensor) else leaf


def _asked_axes(
    bound: Mapping[str, Any], shapes: Shapes, names: DimNames
) -> dict[int, tuple[dict[int, str], bool]]:
    """Dynamic axes that were asked for and whether axis 0 may be the batch, by the position of the tensor.

    Only inputs that are plain tensors can be named.
    """
    import torch
    from torch.utils import _pytree as pytree

    axes: dict[int, tuple[dict[int, str], bool]] = {}
    position = 0
    known = set()
    for name, value in bound.items():
        count = sum(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))
        key = name if name in shapes or len(bound) > 1 else ""
        if isinstance(value, torch.Tensor):
            known.add(name)
            if key in shapes:
                if len(shapes[key]) != value.ndim:
                    raise ConversionError(
                        f"--shape {name} has {len(shapes[key])} dimensions, the example has {value.ndim}"
                    )
                axes[position] = _free_axes(shapes[key], names.get(key, {}))
        position += count
    unknown = [name for name in shapes if name and name not in known]
    if unknown:
        raise ConversionError(f"--shape {unknown[0]}: the model has no such input; it has {', '.join(known)}")
    return axes


def _free_axes(shape: tuple[int, ...], names: Mapping[int, str]) -> tuple[dict[int, str], bool]:
    free = {axis: names.get(axis, BATCH if axis == 0 else "") for axis, size in enumerate(shape) if size < 0}
    return free, not free or shape[0] in (1, -1)


def from_shapes(
    module: torch.nn.Module, names: list[str], shapes: Shapes, dim_names: DimNames | None = None
) -> Example:
    """Random tensors of the shapes that the user gave; integers where the module takes no floats.

    Args:
        module: The module to call.
        names: Names of forward's inputs.
        shapes: Shape by input name; one shape under any name where there is one input.
        dim_names: Names of dynamic dimensions, by input name and axis.

    Raises:
        ConversionError: A name is unknown, an input has no shape, or the module does not run on such inputs.
    """
    import torch

    dim_names = dim_names or {}
    if len(shapes) == 1 and len(names) == 1:
        (asked,) = shapes
        shapes, dim_names = {names[0]: shapes[asked]}, {names[0]: dim_names.get(asked, {})}
    unknown = [name for name in shapes if name not in names]
    if unknown:
        raise ConversionError(
            f"--shape {unknown[0] or '(no name)'}: the model has no such input; it has {', '.join(names)}"
        )
    chosen = [name for name in names if name in shapes]
    dynamic = []
    for name in chosen:
        axes, has_batch = _free_axes(shapes[name], dim_names.get(name, {}))
        dynamic.append({0: BATCH} | axes if has_batch else axes)
    failure: Exception | None = None
    for free, integers in itertools.product(FREE_SIZES, _by_likelihood(chosen)):
        kwargs: dict[str, torch.Tensor] = {}
        for name, axes in zip(chosen, dynamic, strict=True):
            size = [
                (2 if axes.get(axis) == BATCH else free) if axis in axes else size
                for axis, size in enumerate(shapes[name])
            ]
            kwargs[name] = torch.zeros(size, dtype=torch.int64) if name in integers else torch.randn(size)
        error = _try(module, kwargs)
        if error is None:
            if isinstance(module, torch.jit.ScriptModule):
                return Example(tuple(kwargs.values()), {}, dynamic)
            return Example((), kwargs | _settings(module), dynamic)
        failure = failure or error
        if not any(-1 in shape[1:] for shape in shapes.values()) and integers == set(chosen):
            break
    raise ConversionError(
        f"the model does not run on inputs of --shape {_shown(shapes)}: {first_line(failure or Exception())}"
    )


def _by_likelihood(names: list[str]) -> list[set[str]]:
    """Sets of inputs to try as integers: none, those that are called so, each one, all."""
    called = {name for name in names if name.endswith(("ids", "mask", "tokens", "indices"))}
    candidates: list[set[str]] = [set(), called, *({name} for name in names), set(names)]
    return [c for i, c in enumerate(candidates) if c not in candidates[:i]]


def _settings(module: torch.nn.Module) -> dict[str, Any]:
    """Arguments that keep a module to tensors: transformers' decoders return their cache otherwise."""
    return {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}


def _try(module: torch.nn.Module, kwargs: dict[str, torch.Tensor]) -> Exception | None:
    import torch

    try:
        with torch.no_grad():
            module(**kwargs)
    except Exception as error:  # the module's own code
        return error
    return None


def _shown(shapes: Shapes) -> str:
    return " ".join(f"{name}={','.join(map(str, shape))}" for name, shape in shapes.items())


def inferred(module: torch.nn.Module, names: list[str], progress: Callable[[str], None]) -> Example:
    """An example found out from the first layer: [N, in_features], or [N, C, H, W] where H and W can be told.

    Where just one usual size fits the module (a Linear behind a Flatten allows few), it is that one. Where
    several fit, height and width are dynamic.

    Raises:
        ConversionError: The shape cannot be told; the message shows how to give it.
    """
    import torch

    if len(names) != 1:
        raise ConversionError(
            f"the shapes of the inputs {', '.join(names)} are not recorded in the file; "
            f"give each, for instance --shape {names[0]}=1,3,32,32"
        )
    name, kind, weight, groups = names[0], *_first_layer(module)
    if kind == "Linear":
        if _try(module, {name: torch.randn(2, weight.shape[1])}) is None:
            return Example((torch.randn(2, weight.shape[1]),), {}, [{0: BATCH}])
    if kind == "Conv2d":
        channels = weight.shape[1] * groups
        fits = []
        for size in USUAL_SIZES:
            if _try(module, {name: torch.randn(1, channels, size, size)}) is None:
                fits.append(size)
            if len(fits) == 2 and _pools_to_a_grid(module):
                break
            if len(fits) == 2:
                return Example((torch.randn(2, channels, fits[0], fits[1]),), {}, [{0: BATCH, 2: "", 3: ""}])
        if len(fits) == 1:
            progress(
                f"no --shape given: {name} is [batch, {channels}, {fits[0]}, {fits[0]}], the one usual "
                f"size that fits"
            )
            return Example((torch.randn(2, channels, fits[0], fits[0]),), {}, [{0: BATCH}])
    example = "1,3,32,32" if kind != "Linear" else f"1,{weight.shape[1]}"
    raise ConversionError(
        f"the shape of the input {name!r} is not recorded in the file; give it, for instance --shape "
        f"{name}={example}"
    )


def _pools_to_a_grid(module: torch.nn.Module) -> bool:
    """Whether it has adaptive pooling to several cells, whose windows depend on the input's size."""
    pools = [layer for layer in module.modules() if _kind(layer).startswith("Adaptive")]
    sizes = [getattr(pool, "output_size", 1) for pool in pools]  # a trace does not record it
    return any(size not in (1, (1,), (1, 1)) for size in sizes)


def _kind(layer: torch.nn.Module) -> str:
    """The layer's class, also within TorchScript."""
    return str(getattr(layer, "original_name", type(layer).__name__))


def _first_layer(module: torch.nn.Module) -> tuple[str, Any, int]:
    """Type, weight and groups of the first layer that has a weight."""
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if weight is not None and weight.ndim > 1:
            return _kind(layer), weight, int(getattr(layer, "groups", 1))
    return "", None, 1
