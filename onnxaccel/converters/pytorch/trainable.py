"""The trainable form: every parameter under PyTorch's name, BatchNormalization and Dropout as nodes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxaccel.converters.pytorch.signature import restore_names
from onnxaccel.errors import ConversionError
from onnxaccel.graph.rules.indexing import PADDING_ROW

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

_STOPS = ("aten.detach", "aten.item", "aten._local_scalar_dense")
"""Operators that let no gradient through, on purpose."""


def to_trainable(model: ir.Model, program: ExportedProgram) -> list[str]:
    """Simplify the export of a module in training mode, losing no parameter, and set it to inference.

    While the graph is simplified the parameters are its inputs, so that no pass can fold, merge or drop them.

    Returns:
        The names of the BatchNormalization nodes that the module keeps in inference mode while it trains.

    Raises:
        ConversionError: The graph draws random numbers other than through Dropout.
    """
    from onnxscript import optimizer

    graph = model.graph
    names = {spec.target for spec in program.graph_signature.input_specs if spec.target is not None}
    weights = {v: v.const_value for n, v in graph.initializers.items() if n in names}
    for value in weights:
        assert value.name is not None
        del graph.initializers[value.name]
        value.const_value = None
        graph.inputs.append(value)
    for index, node in enumerate(n for n in graph.all_nodes() if n.op_type == "Dropout"):
        _set_training(node, index)
    optimizer.optimize_ir(model)
    for value, weight in weights.items():
        graph.inputs.remove(value)
        value.const_value = weight
        assert value.name is not None
        graph.initializers[value.name] = value
    restore_names(model, program)  # the optimizer gives a weight's name to an output that is that weight
    random = next((node for node in graph.all_nodes() if node.op_type in _RANDOM), None)
    if random is not None:
        raise ConversionError(
            f"the module draws random numbers in training ({random.op_type} node {random.name!r}) other "
            f"than by dropout; "
            f"put that part into inference mode before converting: part.eval() within a module in train mode"
        )
    to_inference(model)
    _mark_padding(model, program)
    return _set_momenta(model, program)


def refuse_cumulative_average(module: torch.nn.Module) -> None:
    """Refuse batch normalization with ``momentum=None``, whose running statistics ONNX cannot express."""
    import torch

    for name, part in module.named_modules():
        if (
            isinstance(part, torch.nn.modules.batchnorm._NormBase)
            and part.momentum is None
            and part.track_running_stats
        ):
            raise ConversionError(
                f"{name}: a {type(part).__name__} with momentum=None averages over all batches, for "
                f"which ONNX has no "
                f"operator; give it a momentum, for instance 0.1"
            )


@contextlib.contextmanager
def without_own_gradients() -> Iterator[None]:
    """Refuse the module's own ``torch.autograd.Function`` while it is traced: a trace has its forward only.

    Raises:
        ConversionError: One is applied within the block.
    """
    import torch

    original = vars(torch.autograd.Function)["apply"]  # the classmethod, not one that is bound to Function

    def apply(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        if cls.__module__.startswith("torch."):
            return original.__get__(None, cls)(*args, **kwargs)
        raise ConversionError(
            f"{cls.__name__} is an autograd.Function with a gradient of its own, which no ONNX graph holds; "
            f"convert the module for inference only"
        )

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


def refuse_what_trains_otherwise(program: ExportedProgram) -> None:
    """Refuse a traced module for whose gradients or statistics ONNX has no operator.

    A gradient that torch keeps from a trainable parameter (detach, no_grad, item) would flow on, and training
    would silently differ from torch's.

    Raises:
        ConversionError: There is such a place.
    """
    parameters = program.graph_signature.inputs_to_parameters
    reached = set()
    for node in program.graph.nodes:
        target = str(node.target)
        if target == "aten.instance_norm.default" and node.args[3] is not None:
            raise ConversionError(
                "an InstanceNorm with track_running_stats=True normalises otherwise in training than in "
                "inference, for which ONNX has no operator; convert the module for inference only"
            )
        if target == "aten.embedding.default" and len(node.args) > 3 and node.args[3]:
            raise ConversionError(
                "an Embedding with scale_grad_by_freq=True divides its gradient by the rows' counts, for "
                "which ONNX has no operator; set it to False, or convert the module for inference only"
            )
        if node.op == "placeholder" and node.name in parameters:
            if program.state_dict[parameters[node.name]].requires_grad:
                reached.add(node)
        elif reached.intersection(node.all_input_nodes):
            if target.startswith(_STOPS) or (target == "wrap_with_set_grad_enabled" and not node.args[0]):
                raise ConversionError(
                    f"the module stops a gradient in its forward (detach, no_grad, item: {node.name!r}), "
                    f"for which ONNX has no operator, so its training would differ from torch's; convert it "
                    f"for inference only"
                )
            reached.add(node)


def _set_training(node: ir.Node, index: int) -> None:
    """Keep a Dropout node from being dropped as an identity, or merged with its equal."""
    mode = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.array(True)))])
    node.prepend(mode)
    node.resize_inputs(3)
    node.replace_input_with(2, mode.outputs[0])
    node.attributes["seed"] = ir.AttrInt64("seed", index)


def to_inference(model: ir.Model) -> None:
    """Set every Dropout and BatchNormalization node to inference, with one output each."""
    for node in model.graph.all_nodes():
        if node.op_type == "Dropout":
            node.attributes.pop("seed", None)
            node.resize_inputs(2)
        elif node.op_type == "BatchNormalization":
            node.attributes.pop("training_mode", None)
        else:
            continue
        if len(node.outputs) > 1:
            if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
                raise ConversionError(
                    f"{node.op_type} node {node.name!r}: its mask or statistics are used elsewhere"
                )
            node.resize_outputs(1)


def _mark_padding(model: ir.Model, program: ExportedProgram) -> None:
    """Note at each Gather of an embedding the row that gets no gradient (``padding_idx``)."""
    parameters = program.graph_signature.inputs_to_parameters
    rows: dict[str, set[int]] = {}
    for node in program.graph.nodes:
        if str(node.target) == "aten.embedding.default":
            table: Any = node.args[0]
            row: Any = node.args[2] if len(node.args) > 2 else -1
            rows.setdefault(parameters.get(table.name, table.name), set()).add(int(row))
    for gather in model.graph.all_nodes():
        if gather.op_type != "Gather" or gather.inputs[0] is None:
            continue
        name = gather.inputs[0].name or ""
        found = rows.get(name, {-1})
        if len(found) > 1:
            raise ConversionError(
                f"{name}: two embeddings share this table with different padding_idx {sorted(found)}, so "
                "their training cannot be kept; give them one padding_idx, or convert for inference only"
            )
        (padding,) = found
        if padding >= 0:
            gather.metadata_props[PADDING_ROW] = str(padding)


def _set_momenta(model: ir.Model, program: ExportedProgram) -> list[str]:
    """Write each BatchNormalization's momentum, 1 - PyTorch's; return the frozen ones' names."""
    buffers = dict(program.graph_signature.inputs_to_buffers)
    traced: dict[str, tuple[bool, float]] = {}
    for node in program.graph.nodes:
        arguments: Any = node.args
        if str(node.target) == "aten.batch_norm.default" and arguments[3] is not None:
            traced[buffers[arguments[3].name]] = (bool(arguments[5]), float(arguments[6]))
    frozen = []
    for norm in model.graph.all_nodes():
        if norm.op_type != "BatchNormalization":
            continue
        mean = norm.inputs[3]
        trains, momentum = traced.get(mean.name or "", (False, 0.1)) if mean is not None else (False, 0.1)
        norm.attributes["momentum"] = ir.AttrFloat32("momentum", 1 - momentum)
        if not trains:
            assert norm.name is not None
            frozen.append(norm.name)
    return frozen


def set_mode(program: ExportedProgram, training: bool) -> None:
    """Set every dropout and batch normalization of a traced program to training or inference, in place."""
    dropouts = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    flag_at = {f"aten.{name}.default": 2 for name in dropouts} | {"aten.batch_norm.default": 5}
    flag_at |= {f"aten.{name}.input": 6 for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
    for node in program.graph.nodes:
        position = flag_at.get(str(node.target))
        if position is not None:
            node.update_arg(position, training)
        elif str(node.target).startswith("aten.scaled_dot_product_attention") and not training:
            if len(node.args) > 4:
                node.update_arg(4, 0.0)
            elif "dropout_p" in node.kwargs:
                node.update_kwarg("dropout_p", 0.0)
    program.graph_module.recompile()
