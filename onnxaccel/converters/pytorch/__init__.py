"""PyTorch: state dicts, TorchScript, exported programs and live modules into ONNX."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxaccel.converters.contract import Conversion, Options
from onnxaccel.converters.detect import Detected
from onnxaccel.errors import ConversionError, MissingDependency
from onnxaccel.graph.model import MAX_IR_VERSION, Model

if TYPE_CHECKING:
    import torch

    from onnxaccel.converters.pytorch.example import Example


def convert_files(detected: Detected, options: Options) -> Conversion:
    """Convert a model file of PyTorch.

    Args:
        detected: The file and its format: "state-dict", "safetensors", "torchscript" or "exported-program".
        options: What the user asked for.

    Raises:
        ConversionError: One of its subclasses: the file is damaged or hostile, its weights do not fit the
        module,
            its input's shape is not known, or torch cannot export it.
        MissingDependency: torch or onnxscript is not installed.
    """
    _require_torch()
    path = detected.paths[0]
    if detected.format in ("torchscript", "exported-program"):
        from onnxaccel.converters.pytorch.sandbox import convert_archive

        return convert_archive(path, detected.format, options)
    import torch

    from onnxaccel.converters.pytorch import archive, factory

    state = archive.read_state(path, detected.format, options.trust_pickle)
    if isinstance(state, torch.nn.Module):
        module = _in_float32(state, options)
        return _convert(module, _example(module, options), detected.format, options)
    if options.factory is None:
        raise ConversionError(
            f"{path}: weights without their network; name the function that builds the module: "
            f"--factory module:callable"
        )
    module = _in_float32(factory.build(options.factory), options)
    factory.load_weights(module, state, path)
    return _convert(module, _example(module, options), detected.format, options)


def _in_float32(module: torch.nn.Module, options: Options) -> torch.nn.Module:
    """A module from a file with its half-precision weights widened: training and the CPU want float32."""
    import torch

    narrow = {p.dtype for p in module.parameters()} & {torch.float16, torch.bfloat16}
    if narrow:
        options.progress(f"the module's {', '.join(map(str, narrow))} weights are converted as float32")
        module.float()
    return module


def _refuse_types(module: torch.nn.Module, trainable: bool) -> None:
    """Refuse a live module whose floating type onnxruntime, or training, has no operators for."""
    import torch

    refused = {torch.bfloat16} | ({torch.float16, torch.float64} if trainable else set())
    name, parameter = next(((n, p) for n, p in module.named_parameters() if p.dtype in refused), ("", None))
    if parameter is not None:
        what = "training is in float32" if trainable else "onnxruntime's CPU has no bfloat16 operators"
        raise ConversionError(f"{name} is {parameter.dtype}, but {what}; convert module.float()")


def convert_live(model: Any, example: tuple[Any, ...], options: Options) -> Conversion:
    """Convert a module that is in memory.

    Args:
        model: A ``torch.nn.Module``. It is left as it is.
        example: Its inputs: ``(x, y)``; a dict as the last item, keyed by names of forward's arguments, holds
            keyword arguments. Empty: ``options.shapes`` says what the inputs are.
        options: What the user asked for.

    Raises:
        ConversionError: The example does not fit, or torch cannot export the module.
        MissingDependency: onnxscript is not installed.
    """
    _require_torch()
    import torch

    from onnxaccel.converters.pytorch.example import given

    if isinstance(model, torch.jit.ScriptModule):
        raise ConversionError(
            "a live ScriptModule is not converted; save it with module.save(path), give the path"
        )
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        model = model.module
    if not isinstance(model, torch.nn.Module):
        raise ConversionError(f"a {type(model).__name__} is no torch.nn.Module; give the module itself")
    chosen = given(model, example, options.shapes, options.dim_names) if example else _example(model, options)
    return _convert(model, chosen, "module", options)


def _convert(module: torch.nn.Module, example: Example, format_name: str, options: Options) -> Conversion:
    import torch

    from onnxaccel.converters.pytorch import archive, export, naming, reference
    from onnxaccel.converters.pytorch.trainable import refuse_cumulative_average

    refuse_cuts(options)
    _refuse_types(module, options.trainable)
    if options.trainable:
        refuse_cumulative_average(module)
    options.progress("tracing with torch.export")
    with export.mode(module, training=False):
        try:
            with torch.no_grad():
                outputs, _ = naming.output_leaves(module(*example.args, **example.kwargs))
        except Exception as error:  # the module's own code
            raise ConversionError(
                f"{type(module).__name__} does not run on the example: {type(error).__name__}: "
                f"{archive.first_line(error)}"
            ) from None
    try:
        graph_model, frozen = export.export_module(module, example, options.opset, options.trainable)
    except ConversionError as error:
        if any(set(axes) - {0} for axes in example.dynamic) and not options.shapes:
            raise ConversionError(f"{error}; or fix the sizes, for instance --shape x=1,3,224,224") from None
        raise
    naming.canonical_parameters(graph_model, module.state_dict(keep_vars=True))
    naming.own_weights(graph_model)
    outputs = naming.rename_outputs(graph_model, outputs)
    model = finish(graph_model, format_name, example.dynamic)
    if options.trainable:
        model.metadata.trainable = naming.trained(graph_model, module.named_parameters())
        model.metadata.frozen = frozen
    return Conversion(
        model=model,
        reference=reference.reference(module, example, model.input_names(), outputs),
        reference_name=f"PyTorch {torch.__version__}",
        ranges=reference.integer_ranges(graph_model),
        example=example.arrays(model.input_names()),
    )


def finish(graph_model: ir.Model, format_name: str, dynamic: Sequence[Mapping[int, str]] = ()) -> Model:
    """Wrap an exported graph: dimensions named (``dynamic``: by axis, of each input), metadata filled in."""
    from onnxaccel.converters.pytorch.naming import rename_dims

    rename_dims(graph_model, dynamic)
    graph_model.ir_version = min(graph_model.ir_version, MAX_IR_VERSION)
    model = Model(graph_model)
    model.metadata.framework = "pytorch"
    model.metadata.format = format_name
    model.metadata.running_variance = "unbiased"
    if any(value.shape is not None and len(value.shape) == 4 for value in model.inputs):
        model.metadata.preprocessing.layout = "NCHW"
    return model


def refuse_cuts(options: Options) -> None:
    """Refuse --inputs and --outputs, which name tensors inside a graph; a module is converted whole."""
    if options.inputs or options.outputs:
        raise ConversionError(
            "--inputs and --outputs cut TensorFlow graphs; a PyTorch model is converted whole"
        )


def _example(module: torch.nn.Module, options: Options) -> Example:
    import inspect

    from onnxaccel.converters.pytorch import export
    from onnxaccel.converters.pytorch.example import from_shapes, inferred

    parameters = inspect.signature(module.forward).parameters
    needed = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    with export.mode(module, training=False):
        if options.shapes:
            names = [*parameters] if set(options.shapes) & set(parameters) else needed
            return from_shapes(module, names, options.shapes, options.dim_names)
        return inferred(module, needed, options.progress)


def _require_torch() -> None:
    for package in ("torch", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise MissingDependency(package, "torch", "convert PyTorch models") from None
