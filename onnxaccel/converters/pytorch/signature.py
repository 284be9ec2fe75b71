"""The interface of a traced program: what goes in, what comes out, and under which names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def tidy(program: ExportedProgram) -> None:
    """Bring a traced program into the form that torch.onnx takes, in place.

    Outputs that are plain numbers are left out, and a parameter or buffer that several parts share is read
    under one name: torch's decomposition fails where a shared buffer is updated (a BatchNorm in two places).
    """
    _drop_plain_outputs(program)
    _merge_shared(program)


def _drop_plain_outputs(program: ExportedProgram) -> None:
    output = next(node for node in program.graph.nodes if node.op == "output")
    specs = program.graph_signature.output_specs
    kept = []
    for spec, value in zip(specs, output.args[0], strict=True):
        if isinstance(getattr(spec.arg, "value", None), (int, float, bool, str)):
            spec.arg.value = value = None
        kept.append(value)
    output.update_arg(0, tuple(kept))


def _merge_shared(program: ExportedProgram) -> None:
    signature, tensors = program.graph_signature, program.state_dict
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    first: dict[tuple[object, ...], str] = {}
    for spec in list(signature.input_specs):
        tensor = tensors.get(spec.target) if spec.target is not None else None
        if tensor is None or not tensor.numel():
            continue
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        keep = first.setdefault(key, spec.arg.name)
        if keep != spec.arg.name:
            duplicate = placeholders[spec.arg.name]
            duplicate.replace_all_uses_with(placeholders[keep])
            program.graph.erase_node(duplicate)
            signature.input_specs.remove(spec)
    program.graph_module.recompile()


def restore_names(model: ir.Model, program: ExportedProgram) -> None:
    """Give inputs and weights their names back where torch.onnx gave them to an output."""
    from torch.export.graph_signature import TensorArgument

    graph, specs = model.graph, program.graph_signature.input_specs
    inputs = [s.arg.name for s in specs if s.target is None and isinstance(s.arg, TensorArgument)]
    wanted = dict(zip(graph.inputs, inputs, strict=False))
    for name in {spec.target for spec in specs if spec.target is not None} - set(graph.initializers):
        if f"{name}_orig" in graph.initializers:
            wanted[graph.initializers[f"{name}_orig"]] = name
    names = set(wanted.values())
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in names:
                value.name = f"{value.name}_inner"
    for value, name in wanted.items():
        if value.name != name:
            initializer = graph.initializers.pop(value.name or "", None)
            value.name = name
            if initializer is not None:
                graph.initializers[name] = initializer
