"""An onnxruntime session over a `Model`, on a named execution provider."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from onnxaccel.errors import ModelError
from onnxaccel.graph.model import PROTO_LIMIT, Model
from onnxaccel.runtime.providers import Provider, resolve

Arrays = dict[str, npt.NDArray[Any]]


class Session:
    """Runs a model.

    Args:
        model: The model to run.
        ep: "auto", "cpu", "cuda", "tensorrt", or a resolved `Provider`.
        threads: Threads within an operator; 0 leaves it to onnxruntime.

    Raises:
        ProviderError: The provider is not usable here.
        ModelError: onnxruntime refuses the graph.
    """

    def __init__(self, model: Model, ep: str | Provider = "cpu", threads: int = 0) -> None:
        self.provider = resolve(ep) if isinstance(ep, str) else ep
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors reach the user as ours
        self.raw = _create(model, options, self.provider)
        self.input_names = [i.name for i in self.raw.get_inputs()]
        self.output_names = [o.name for o in self.raw.get_outputs()]

    def run(self, feed: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Run once.

        Args:
            feed: Arrays by input name.
            outputs: Names of the outputs wanted; None for all.

        Returns:
            Arrays by output name.

        Raises:
            ModelError: An input is missing, or has a type or shape that the model does not take.
        """
        names = list(outputs) if outputs is not None else self.output_names
        try:
            return dict(zip(names, self.raw.run(names, dict(feed)), strict=True))
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise ModelError(f"the model does not run on this input: {short(error)}") from None


def _create(model: Model, options: ort.SessionOptions, provider: Provider) -> ort.InferenceSession:
    # EliminateDropout also drops nodes in training mode, wherever nothing reads their mask
    settings = {"providers": provider.ort_providers(), "disabled_optimizers": ["EliminateDropout"]}
    try:
        if model.nbytes <= PROTO_LIMIT:
            return ort.InferenceSession(model.to_proto().SerializeToString(), options, **settings)
        with tempfile.TemporaryDirectory() as folder:
            return ort.InferenceSession(model.save(Path(folder) / "model.onnx"), options, **settings)
    except Exception as error:
        raise ModelError(f"onnxruntime {ort.__version__} refuses the model: {short(error)}") from None


def short(error: Exception) -> str:
    """The first line of one of onnxruntime's messages, without its prefix of codes."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.split(" : ")[-1]
