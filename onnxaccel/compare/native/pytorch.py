"""PyTorch as its users run it: eager, compiled, exported programs and TorchScript."""

from __future__ import annotations

import importlib.util
import inspect
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxaccel.compare.native.common import Array, steps


def candidate(setup: Mapping[str, Any]) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """An archive; see `onnxaccel.compare.native.common`; "format", "files" and "mode" say what to run.

    Archives hold programs: where nothing has to be compiled the process may write into the folder of its
    results and nowhere else ("confine": the file of `onnxaccel.converters.pytorch.confine`).
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    import torch

    if setup["mode"] != "compile":
        spec = importlib.util.spec_from_file_location("confine", setup["confine"])
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        folder = tempfile.tempdir = os.path.dirname(setup["results"])
        module.confine(folder, setup["memory"], 24 * 3600, 2**31)
    path = setup["files"][0]
    if setup["format"] == "torchscript":
        loaded = torch.jit.load(path, map_location=setup["device"]).eval()  # type: ignore[no-untyped-call]
    else:
        loaded = torch.export.load(path).module().to(setup["device"])
    return serve(loaded, setup)


def serve(module: Any, setup: Mapping[str, Any]) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """The steps of a module in inference mode."""
    import torch

    torch.set_num_threads(setup["threads"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    forward = torch.compile(module, dynamic=False) if setup["mode"] == "compile" else module
    keywords = _keywords(module, setup["names"])
    device = setup["device"]

    def run(feed: Sequence[Array]) -> list[Array]:
        tensors = [torch.from_numpy(array) for array in feed]
        if device != "cpu":
            tensors = [tensor.to(device) for tensor in tensors]
        with torch.inference_mode():
            results = forward(**dict(zip(keywords, tensors, strict=True))) if keywords else forward(*tensors)
        if isinstance(results, torch.Tensor):
            return [results.cpu().numpy()]
        leaves = torch.utils._pytree.tree_leaves(results)
        return [leaf.cpu().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]

    return steps(setup, run), {"versions": {"torch": torch.__version__}}


def _keywords(module: Any, names: Sequence[str]) -> list[str]:
    """The names to pass the inputs by, where they are not simply the first arguments."""
    forward = getattr(module, "forward", module)
    try:
        parameters = list(inspect.signature(forward).parameters)
    except (TypeError, ValueError):  # TorchScript's methods have none
        return []
    if list(names) == parameters[: len(names)] or not set(names) <= set(parameters):
        return []
    return list(names)
