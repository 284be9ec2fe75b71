"""PyTorch's side of a training: the module as its users train it, eager or through torch.compile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxaccel.compare.native import modules
from onnxaccel.compare.training.curve import are_probabilities, in_turns
from onnxaccel.errors import ConversionError

Array = npt.NDArray[Any]

_TINY = 1.1754944e-38
"""The smallest normal float32: below it there is no logarithm of a probability."""


class Side:
    """See `onnxaccel.compare.training.curve`."""

    axis = 1

    def __init__(self, setup: dict[str, Any], x: Array, y: Array) -> None:
        import torch

        torch.set_num_threads(setup["threads"])
        self.notes: list[str] = []
        source = _Module if setup["reference"] else _SOURCES.get(setup["format"])
        if source is None:
            raise ConversionError(
                f"a {setup['format']} is not trained: give the module's state dict with --factory, or a .pt2"
            )
        self._source = source(setup)
        torch.manual_seed(setup["seed"])  # of Dropout's masks
        module = self._source.module
        probabilities = setup["labels"] and are_probabilities(self.scores(x), self.axis)
        self._loss = _loss(setup["loss"], probabilities)
        weights = [p for p in module.parameters() if p.requires_grad]
        if not weights:
            raise ConversionError("the module has no parameter that wants a gradient")
        self._optimizer = _optimizer(weights, setup["optimizer"], setup["settings"])
        self._forward = torch.compile(module) if setup["mode"] == "compile" else module
        self.notes += ["dropout"] if self._source.drops and setup["dropout"] else []

    def ready(self, x: Array, y: Array) -> tuple[Any, Any]:
        """The batch as tensors."""
        import torch

        return torch.from_numpy(x), torch.from_numpy(y)

    def step(self, batch: tuple[Any, Any]) -> float:
        """One step."""
        x, y = batch
        self._optimizer.zero_grad()
        loss = self._loss(_first(self._forward(x)), y)
        loss.backward()
        self._optimizer.step()
        return float(loss.item())

    def timed(self, batches: list[Any]) -> Any:
        """Steps on these batches."""
        return in_turns(self.step, batches)

    def scores(self, x: Array) -> Array:
        """The scores in inference mode."""
        import torch

        with self._source.inference() as module, torch.no_grad():
            found: Array = _first(module(torch.from_numpy(x))).numpy()
        return found


class _Module:
    """A module that Python code builds: a reference model, or a factory's with a state dict."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.module = modules.build(setup).train()
        self.drops = False
        for part in self.module.modules():
            for name in ("p", "dropout"):
                rate = getattr(part, name, None)
                if isinstance(rate, float) and rate > 0:
                    self.drops = True
                    if not setup["dropout"]:
                        setattr(part, name, 0.0)

    def inference(self) -> Any:
        """The module in inference mode, within a with block."""
        from onnxaccel.converters.pytorch.export import mode

        return _entered(mode(self.module, training=False), self.module)


class _Program:
    """An exported program, which is trained through the module that it unpacks to."""

    def __init__(self, setup: dict[str, Any]) -> None:
        import torch

        from onnxaccel.converters.pytorch.scan import scan_exported_program
        from onnxaccel.converters.pytorch.trainable import set_mode

        path = Path(setup["files"][0])
        scan_exported_program(path, setup["trust_pickle"])
        self._program = torch.export.load(path)
        set_mode(self._program, training=True)
        drops = [node for node in self._program.graph.nodes if "dropout" in str(node.target)]
        self.drops = bool(drops)
        for node in [] if setup["dropout"] else drops:
            node.update_arg(1, 0.0)  # its share
        self._program.graph_module.recompile()
        self.module = self._program.module(check_guards=False)

    def inference(self) -> Any:
        """The program's inference form with the weights as they are now, within a with block."""
        from onnxaccel.converters.pytorch.trainable import set_mode

        set_mode(self._program, training=False)
        module = self._program.module(check_guards=False)
        set_mode(self._program, training=True)
        module.load_state_dict(self.module.state_dict())
        return _entered(contextlib.nullcontext(), module)


_SOURCES: dict[str, Any] = {
    "state-dict": _Module,
    "safetensors": _Module,
    "exported-program": _Program,
}


@contextlib.contextmanager
def _entered(context: Any, module: Any) -> Iterator[Any]:
    with context:
        yield module


def _loss(name: str, probabilities: bool) -> Any:
    """The loss as a function of scores and targets."""
    from torch.nn import functional

    if name == "cross_entropy" and probabilities:
        return lambda scores, y: functional.nll_loss(scores.clamp_min(_TINY).log(), y)
    return {
        "cross_entropy": functional.cross_entropy,
        "mse": functional.mse_loss,
        "bce_with_logits": functional.binary_cross_entropy_with_logits,
    }[name]


def _optimizer(weights: list[Any], name: str, settings: dict[str, Any]) -> Any:
    import torch

    given = dict(settings)
    if name == "sgd":
        return torch.optim.SGD(weights, **given)
    betas = given.pop("beta1"), given.pop("beta2")
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(weights, betas=betas, **given)


def _first(outputs: Any) -> Any:
    """The first tensor of what a module gives."""
    from onnxaccel.converters.pytorch.naming import output_leaves

    return outputs if hasattr(outputs, "backward") else output_leaves(outputs)[1][0]
