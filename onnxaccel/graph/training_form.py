"""Inference form and training form of a graph: what BatchNormalization and Dropout do.

Models are stored in inference form: Dropout passes its input on, BatchNormalization uses its running
statistics. `to_training_form` switches them over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxaccel.errors import UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, constant_of, describe
from onnxaccel.graph.dropout import Masks
from onnxaccel.graph.model import Model, tensor_of


@dataclass(frozen=True)
class Carried:
    """A tensor that outlives a step.

    Attributes:
        old: Its value before the step: an initializer, or a value that nothing produces.
        new: Its value after the step.
        start: Its value at the start of training.
    """

    old: ir.Value
    new: ir.Value
    start: npt.NDArray[Any]


def to_training_form(model: Model, op: Builder, seed: int = 0) -> list[Carried]:
    """Switch Dropout and BatchNormalization to training, except the nodes named in ``metadata.frozen``.

    Dropout becomes a multiplication by its mask (see `onnxaccel.graph.dropout`). BatchNormalization
    gets momentum 0, so that its two extra outputs are the batch's own mean and (population) variance; the
    running statistics are then ``momentum * running + (1 - momentum) * batch``, the variance with the factor
    m / (m - 1) over the m values of the batch where ``metadata.running_variance`` is "unbiased". With a
    factor in ``metadata.running_factors`` they are Caffe's averages: ``f' = momentum f + 1``, and
    ``(momentum f running + batch) / f'``, so that the first batches count in full.

    Args:
        model: A normalised model; changed in place.
        op: The builder over its graph.
        seed: Seed of Dropout's masks.

    Returns:
        What the step must carry on: running statistics, and the counter that Dropout's masks follow from.
    """
    carried: list[Carried] = []
    masks = Masks(op, seed)
    for node in list(model.graph):
        if node.name in model.metadata.frozen:
            continue
        if node.op_type == "Dropout":
            _dropout_to_training(op, node, masks)
        elif node.op_type == "BatchNormalization":
            unbiased = model.metadata.running_variance == "unbiased"
            factor = model.metadata.running_factors.get(node.name or "")
            _batch_norm_to_training(op, node, unbiased, carried, factor)
    if masks.draws is not None:
        carried.append(Carried(masks.draws, op.Add(masks.draws, np.uint64(1)), np.zeros((), np.uint64)))
    return carried


def running_factor(name: str | None) -> str:
    """The name under which a step carries on the factor of a BatchNormalization node's statistics."""
    return f"{name}.running_factor"


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


def _dropout_to_training(op: Builder, node: ir.Node, masks: Masks) -> None:
    x, ratio, _ = [*node.inputs, None, None][:3]
    share = constant_of(ratio) if ratio is not None else np.float32(0.5)
    if x is None or x.dtype is None or share is None or not 0 <= float(share) < 1:
        raise UnsupportedOperator(f"{describe(node)}: its ratio must be a constant from 0 to below 1")
    keep = masks.keep(x, float(share))
    for mask in node.outputs[1:]:
        ir.convenience.replace_all_uses_with(mask, keep, replace_graph_outputs=True)
    node.resize_outputs(1)
    node.op_type = "Mul"
    node.attributes.clear()
    node.resize_inputs(2)
    kept = op.Cast(keep, to=x.dtype.value)  # Cast and Mul run faster than Where
    factor = op.Mul(kept, 1.0 / (1.0 - float(share)))
    factor.type, factor.shape = x.type, x.shape
    node.replace_input_with(1, factor)


def _batch_norm_to_training(
    op: Builder, node: ir.Node, unbiased: bool, carried: list[Carried], factor: float | None
) -> None:
    momentum = float(attribute(node, "momentum", 0.9))
    x, _, _, mean, var = node.inputs
    assert x is not None and mean is not None and var is not None
    if not (mean.is_initializer() and var.is_initializer()):
        raise UnsupportedOperator(
            f"{describe(node)}: its running statistics must be initializers to be trained"
        )
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    node.attributes["momentum"] = ir.AttrFloat32("momentum", 0.0)
    earlier = {c.old: c for c in carried if c.old in (mean, var)}  # of a layer that is used twice
    for position, running in ((3, mean), (4, var)):
        # onnxruntime writes the two outputs over these inputs' buffers, which the blend below still reads
        before = earlier[running].new if running in earlier else running
        node.replace_input_with(position, op.Mul(before, 0.0))
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

    kept: float | ir.Value = momentum
    share: float | ir.Value = 1.0 - momentum
    if factor is not None:  # Caffe: the statistics are sums, divided by the sum of their batches' weights
        held = ir.val(running_factor(node.name), ir.DataType.FLOAT, ir.Shape([]))
        older = op.Mul(held, momentum)
        total = op.Add(older, 1.0)
        kept, share = op.Div(older, total), op.Reciprocal(total)
        carried.append(Carried(held, total, np.array(factor, np.float32)))
    for running, batch in ((mean, batch_mean), (var, fresh_var)):
        before = earlier[running].new if running in earlier else running
        # a factor of 0 would make one node of this product and of the one above, whose buffer is written over
        new = op.Add(op.Mul(before, kept), op.Mul(batch, share)) if momentum else batch
        carried[:] = [c for c in carried if c.old is not running]
        carried.append(Carried(running, new, tensor_of(running)))
