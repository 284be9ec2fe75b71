"""Inference form and training form of a graph: what BatchNormalization and Dropout do.

Models are stored in inference form: Dropout passes its input on, BatchNormalization uses its running
statistics. `to_training_form` switches them over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, constant_of, describe
from onnxaccel.graph.model import Model


@dataclass(frozen=True)
class RunningStatistics:
    """Where one BatchNormalization's running statistics are read and written.

    Attributes:
        mean: Initializer of the running mean, shape [C].
        var: Initializer of the running variance, shape [C].
        new_mean: Its value after the step.
        new_var: Its value after the step.
    """

    mean: ir.Value
    var: ir.Value
    new_mean: ir.Value
    new_var: ir.Value


def to_training_form(model: Model, op: Builder, seed: int = 0) -> list[RunningStatistics]:
    """Switch Dropout and BatchNormalization to training, except the nodes named in ``metadata.frozen``.

    Dropout gets its mask from a generator seeded with ``seed`` and the node's position. BatchNormalization
    gets momentum 0, so that its two extra outputs are the batch's own mean and (population) variance; the
    running statistics are then ``momentum * running + (1 - momentum) * batch``, the variance with the factor
    m / (m - 1) over the m values of the batch where ``metadata.running_variance`` is "unbiased".

    Args:
        model: A normalised model; changed in place.
        op: The builder over its graph.
        seed: Seed of all Dropout masks.

    Returns:
        The running statistics that the step must carry on.
    """
    statistics = []
    for position, node in enumerate(list(model.graph)):
        if node.name in model.metadata.frozen:
            continue
        if node.op_type == "Dropout":
            _dropout_to_training(op, node, seed + 7919 * (position + 1))
        elif node.op_type == "BatchNormalization":
            unbiased = model.metadata.running_variance == "unbiased"
            statistics.append(_batch_norm_to_training(op, node, unbiased))
    return statistics


def pool_before_relu(model: Model) -> None:
    """Swap each Relu with the MaxPool that alone reads it: the same values, on a fraction of the elements.

    max and relu are both monotone, so they commute; the gradient is the same as well, for where a window's
    maximum is not positive, relu lets nothing through.
    """
    for pool in list(model.graph):
        relu = pool.inputs[0].producer() if pool.op_type == "MaxPool" and pool.inputs[0] is not None else None
        if relu is None or relu.op_type != "Relu" or len(pool.outputs) > 1:
            continue
        between, pooled = relu.outputs[0], pool.outputs[0]
        if len(between.uses()) > 1 or between.is_graph_output() or pooled.is_graph_output():
            continue
        pool.replace_input_with(0, relu.inputs[0])
        ir.convenience.replace_all_uses_with(pooled, between)
        between.shape = pooled.shape
        relu.replace_input_with(0, pooled)
        model.graph.remove(relu)
        model.graph.insert_after(pool, relu)


def dropout_ratio(node: ir.Node) -> float | None:
    """The share of elements a Dropout node drops, or None when it passes everything on.

    Raises:
        UnsupportedOperator: The ratio or the mode is only known when the graph runs.
    """
    _, ratio, mode = [*node.inputs, None, None][:3]
    known_mode, known_ratio = constant_of(mode), constant_of(ratio)
    if (mode is not None and known_mode is None) or (ratio is not None and known_ratio is None):
        raise UnsupportedOperator(f"{describe(node)}: its ratio and training_mode must be constants")
    if known_mode is None or not bool(known_mode):
        return None
    share = 0.5 if known_ratio is None else float(known_ratio)
    return share or None


def _dropout_to_training(op: Builder, node: ir.Node, seed: int) -> None:
    node.resize_inputs(3)
    if node.inputs[1] is None:
        node.replace_input_with(1, op.constant(np.float32(0.5)))
    node.replace_input_with(2, op.constant(np.array(True)))
    node.attributes["seed"] = ir.AttrInt64("seed", seed)


def _batch_norm_to_training(op: Builder, node: ir.Node, unbiased: bool) -> RunningStatistics:
    momentum = float(attribute(node, "momentum", 0.9))
    x, _, _, mean, var = node.inputs
    assert x is not None and mean is not None and var is not None
    if not (mean.is_initializer() and var.is_initializer()):
        raise UnsupportedOperator(
            f"{describe(node)}: its running statistics must be initializers to be trained"
        )
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    node.attributes["momentum"] = ir.AttrFloat32("momentum", 0.0)
    # onnxruntime writes the two outputs over these inputs' buffers, which the blend below still has to read
    node.replace_input_with(3, op.Mul(mean, 0.0))
    node.replace_input_with(4, op.Mul(var, 0.0))
    node.resize_outputs(3)
    batch_mean, batch_var = node.outputs[1:]
    for output, stem in ((batch_mean, "batch_mean"), (batch_var, "batch_var")):
        output.name = op.fresh(stem)
        output.type, output.shape = mean.type, mean.shape
    fresh_var = batch_var
    if unbiased:
        dtype = mean.dtype or ir.DataType.FLOAT
        count = op.Cast(op.Div(op.Size(x), op.Size(mean)), to=dtype.value)
        # one value per channel has no unbiased variance; it is left as it is
        fresh_var = op.Mul(batch_var, op.Div(count, op.Max(op.Sub(count, 1.0), 1.0)))

    def blend(running: ir.Value, batch: ir.Value) -> ir.Value:
        return op.Add(op.Mul(running, momentum), op.Mul(batch, 1.0 - momentum))

    return RunningStatistics(mean, var, blend(mean, batch_mean), blend(var, fresh_var))
