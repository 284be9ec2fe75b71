"""An onnxruntime session over a `Model`, on a named execution provider."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnxruntime as ort

from onnxaccel.errors import ModelError, ProviderError
from onnxaccel.files import scratch_folder
from onnxaccel.graph.session import SessionSettings
from onnxaccel.protect.container import is_sealed
from onnxaccel.runtime.providers import Provider, missing, resolve
from onnxaccel.runtime.providers.options import TRIED

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxaccel.graph.model import Model

Arrays = dict[str, npt.NDArray[Any]]

_log = logging.getLogger(__name__)

_LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class Session:
    """Runs a model.

    Args:
        model: The model to run, or the path of its file, which onnxruntime then reads by itself.
        ep: A name of `onnxaccel.runtime.providers.NAMES`, or a resolved `Provider`.
        threads: Threads within an operator; 0: what ``settings`` say.
        settings: How to run; None: as the model's metadata say, where `optimize` recorded it.
        profile: Folder that onnxruntime writes its profile into; `raw.end_profiling()` ends it.
        capture: Replay runs as CUDA graphs; for callers that bind inputs and outputs to buffers that stay
            where they are, with a run option "gpu_graph_id" for each set of them.
        secret: Let nothing of the model reach the disk, as for every `Model` with a key.

    Attributes:
        raw: The onnxruntime session.
        provider: Where it runs.
        elsewhere: The nodes that the provider does not take and the CPU runs: names by operator.

    Raises:
        ProviderError: The provider is not usable here, or is strict and leaves nodes to the CPU.
        ModelError: onnxruntime refuses the graph.
    """

    def __init__(
        self,
        model: Model | Path,
        ep: str | Provider = "cpu",
        threads: int = 0,
        settings: SessionSettings | None = None,
        profile: Path | None = None,
        capture: bool = False,
        secret: bool = False,
    ) -> None:
        if isinstance(model, Path) and is_sealed(model):
            from onnxaccel.graph.model import Model

            model = Model.load(model)
        recorded = None if isinstance(model, Path) else model.metadata.session
        settings = settings or recorded or SessionSettings()
        self.provider = resolve(ep)
        if settings.graph_optimization not in _LEVELS:
            raise ModelError(f"there is no graph optimization {settings.graph_optimization!r}")
        if secret or (not isinstance(model, Path) and model.key is not None):
            self.provider = self.provider.without_files()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or settings.threads
        options.graph_optimization_level = _LEVELS[settings.graph_optimization]
        if not settings.spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "profile")
        options.log_severity_level = 4  # errors reach the user as ours
        self.raw = _create(model, options, self.provider)
        self.input_names = [i.name for i in self.raw.get_inputs()]
        self.output_names = [o.name for o in self.raw.get_outputs()]
        self.elsewhere = self._left_to_the_cpu()

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

    def _left_to_the_cpu(self) -> dict[str, list[str]]:
        """Find, and report, the nodes that run on the CPU although another provider was asked for."""
        if self.provider.name == "cpu":
            return {}
        assigned = getattr(self.raw, "get_provider_graph_assignment_info", None)
        if assigned is None:
            if self.provider.strict:
                raise ProviderError(f"--strict-ep needs onnxruntime 1.24 or newer, this is {ort.__version__}")
            return {}
        left: dict[str, list[str]] = {}
        total = 0
        for part in assigned():
            nodes = part.get_nodes()
            total += len(nodes)
            if part.ep_name == "CPUExecutionProvider":
                for node in nodes:
                    left.setdefault(node.op_type, []).append(node.name)
        if left:
            counts = Counter({operator: len(names) for operator, names in left.items()})
            named = ", ".join(f"{operator} {count}" for operator, count in counts.most_common())
            first = next(iter(left[counts.most_common(1)[0][0]]))
            message = (
                f"{counts.total()} of {total} nodes run on the CPU, not on {self.provider.name}: {named} "
                f"(the first is {first!r})"
            )
            if self.provider.strict:
                raise ProviderError(f"{message}; leave out --strict-ep to allow it")
            _log.warning("%s; --strict-ep makes this an error", message)
        return left


def provider_for(model: Model, ep: str | Provider) -> Provider:
    """The provider to run ``model`` on: for "auto" the one that `optimize` found best, if it works here."""
    recorded = model.metadata.session
    if ep != "auto" or recorded is None or recorded.provider is None:
        return resolve(ep)
    if recorded.options not in TRIED.get(recorded.provider, ()):
        raise ModelError(
            f"the model asks for provider {recorded.provider!r} with options {recorded.options}, which "
            "onnxaccel optimize never records; say with --ep where to run it"
        )
    usable = missing(recorded.provider) is None
    return resolve(recorded.provider, recorded.options) if usable else resolve(ep)


def _create(model: Model | Path, options: ort.SessionOptions, provider: Provider) -> ort.InferenceSession:
    if provider.name != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    settings: dict[str, Any] = {
        "providers": provider.attach(options),
        # EliminateDropout also drops nodes in training mode, wherever nothing reads their mask
        "disabled_optimizers": ["EliminateDropout"],
        "enable_fallback": 0,  # else a provider that fails is replaced by the CPU, with a line on stdout
    }
    if not isinstance(model, Path):
        from onnxaccel.graph.model import LARGE
        from onnxaccel.graph.proto_file import with_references
    try:
        if isinstance(model, Path):
            session = ort.InferenceSession(model, options, **settings)
        elif model.key is not None:
            proto, large = with_references(model.ir, "in memory", _is_plain)
            values = [ort.OrtValue.ortvalue_from_numpy(tensor.numpy()) for tensor in large.values()]
            options.add_external_initializers(list(large), values)
            session = ort.InferenceSession(proto.SerializeToString(), options, **settings)
        elif model.nbytes <= LARGE:
            session = ort.InferenceSession(model.to_proto().SerializeToString(), options, **settings)
        else:  # a file is mapped, which spares a copy of the weights
            with scratch_folder() as folder:
                session = ort.InferenceSession(
                    model.save(folder / "model.onnx", apart=True), options, **settings
                )
    except Exception as error:
        raise ModelError(f"onnxruntime {ort.__version__} refuses the model: {short(error)}") from None
    if provider.ort_name not in session.get_providers():
        raise ProviderError(f"execution provider {provider.name!r} does not start with these options")
    return session


def _is_plain(tensor: ir.TensorProtocol) -> bool:
    """Whether numpy itself has the tensor's type."""
    return tensor.numpy().dtype.kind in "fiub"


def short(error: Exception) -> str:
    """The first line of one of onnxruntime's messages, without its codes; advice where memory ran out."""
    text = str(error).strip() or type(error).__name__
    asked = re.search(r"requested buffer of size (\d+)", text)
    if asked or re.search(r"out of memory|std::bad_alloc|cudaErrorMemoryAllocation", text):
        size = f" ({int(asked[1]) / 2**20:,.0f} MiB more was asked for)" if asked else ""
        return f"out of memory{size}; use a smaller --batch-size, or a device with more memory"
    line = text.splitlines()[0]
    return line.split(" : ")[-1]
