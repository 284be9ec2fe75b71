"""One plain form of a graph, so that the gradient rules need no branches for ONNX's many spellings.

After `normalize`: functions are inlined, Constant nodes are initializers, no initializer is also an input,
nodes stand in topological order, auto_pad is written out, BatchNormalizations share no running statistics
by chance, and every value that ONNX can infer has its type and shape. `differentiable` also writes out the
operators that have no gradient rule but are made of others that have one, and spells some things so that
their gradients are cheap.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxaccel.errors import ModelError, UnsupportedOperator
from onnxaccel.graph.builder import Builder, attribute, describe, dims_of
from onnxaccel.graph.expand import expand, plain_form
from onnxaccel.graph.model import Model, tensor_of
from onnxaccel.graph.simplify import simplify

_WINDOWED = frozenset({"Conv", "MaxPool", "AveragePool", "LpPool"})


def normalize(model: Model) -> None:
    """Bring ``model`` into the plain form, in place.

    Raises:
        ModelError: The graph has a cycle, or is otherwise not valid.
        UnsupportedOperator: An auto_pad cannot be written out, since a size is not known.
    """
    try:
        plain_form(model)
    except Exception as error:
        raise ModelError(f"the graph is not valid ONNX ({error})") from None
    for node in list(model.graph.all_nodes()):
        if node.op_type == "ConvTranspose":
            _explicit_transposed_pads(node)
        elif node.op_type in _WINDOWED:
            _explicit_pads(node)
            if attribute(node, "storage_order", 0):
                _row_major_indices(model, node)
        elif node.op_type == "BatchNormalization":
            for index, role in ((3, "running_mean"), (4, "running_var")):
                _own_statistics(model, node, index, role)


def differentiable(model: Model) -> None:
    """`normalize`, `expand` and `simplify`, in place; what expansion wrote comes into the plain form as well.

    Raises:
        ModelError: See `normalize`.
        UnsupportedOperator: See `normalize`.
    """
    normalize(model)
    if expand(model):
        normalize(model)
    simplify(model)


def _own_statistics(model: Model, node: ir.Node, index: int, role: str) -> None:
    """Give a BatchNormalization running statistics of its own.

    Exporters merge initializers of equal value, so that a fresh layer's running mean is its bias; each must
    go its own way in training.
    """
    value = node.inputs[index]
    source = value
    while (
        source is not None and (producer := source.producer()) is not None and producer.op_type == "Identity"
    ):
        source = producer.inputs[0]
    if source is None or not source.is_initializer():
        return
    one_layer_used_twice = model.metadata.trainable is not None  # our converters merge nothing then
    if source is value and (one_layer_used_twice or len(source.uses()) == 1):
        return
    name = f"{node.name}.{role}"
    own = ir.val(name, const_value=ir.tensor(tensor_of(source), name=name))
    model.graph.register_initializer(own)
    node.replace_input_with(index, own)


def _explicit_pads(node: ir.Node) -> None:
    """Replace auto_pad by pads: SAME_* pad such that ``out = ceil(n / stride)`` (ONNX: Conv, AveragePool)."""
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode == "NOTSET":
        return
    node.attributes.pop("auto_pad", None)
    if mode == "VALID":
        node.attributes.pop("pads", None)
        return
    x, weight = node.inputs[0], node.inputs[1] if node.op_type == "Conv" else None
    dims = dims_of(x) if x is not None else None
    kernel = attribute(node, "kernel_shape")
    if kernel is None and weight is not None:
        kernel = [d for d in (dims_of(weight) or [])[2:] if isinstance(d, int)]
    rank = len(kernel)
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    before, after = [], []
    for axis in range(rank):
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        size = dims[2 + axis] if dims is not None else None
        if strides[axis] == 1:
            total = extent - 1
        elif isinstance(size, int):
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + extent - size, 0)
        else:
            raise UnsupportedOperator(
                f"{describe(node)}: auto_pad {mode} with stride {strides[axis]} needs a fixed axis {2 + axis}"
            )
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    node.attributes["pads"] = ir.AttrInt64s("pads", before + after)


def _explicit_transposed_pads(node: ir.Node) -> None:
    """Replace auto_pad and output_shape of ConvTranspose by pads and output_padding (ONNX: ConvTranspose).

    SAME_* makes the result ``stride`` times as large as the input, which fixes the pads without its size.
    """
    mode, target = attribute(node, "auto_pad", "NOTSET"), attribute(node, "output_shape")
    node.attributes.pop("auto_pad", None)  # onnxruntime keeps the pads of VALID
    if target is None and mode in ("NOTSET", "VALID"):
        return
    x, weight = node.inputs[:2]
    filters = dims_of(weight) if weight is not None else None
    plane = dims_of(x) if x is not None else None
    kernel = attribute(node, "kernel_shape") or [k for k in (filters or [])[2:] if isinstance(k, int)]
    rank = len(kernel)
    sizes = [n for n in (plane or [])[2:] if isinstance(n, int)]
    if not rank or (target is not None and len(sizes) != rank):
        raise UnsupportedOperator(f"{describe(node)}: its output_shape needs inputs of fixed size")
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    extra = list(attribute(node, "output_padding", [0] * rank))
    before, after = [], []
    for axis in range(rank):
        covered = extra[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        if target is not None:
            total = strides[axis] * (sizes[axis] - 1) + covered - target[len(target) - rank + axis]
            extra[axis] += max(-total, 0)
        else:
            total = covered - strides[axis]
        small, large = max(total, 0) // 2, -(-max(total, 0) // 2)
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    node.attributes.pop("output_shape", None)
    node.attributes["pads"] = ir.AttrInt64s("pads", before + after)
    node.attributes["output_padding"] = ir.AttrInt64s("output_padding", extra)


def _row_major_indices(model: Model, pool: ir.Node) -> None:
    """Let a MaxPool with column-major Indices put out row-major ones, and compute the others from them."""
    graph, rank = pool.graph, len(attribute(pool, "kernel_shape"))
    if rank != 2 or not isinstance(graph, ir.Graph):
        return
    del pool.attributes["storage_order"]
    if len(pool.outputs) < 2:
        return
    op = Builder(graph, pool.name or "pool", model.graph)
    indices, (x, *_) = pool.outputs[1], pool.inputs
    readers, result = list(indices.uses()), indices.is_graph_output()
    h, w = op.Shape(x, start=2, end=3), op.Shape(x, start=3, end=4)
    plane = op.Mod(indices, op.Mul(h, w))
    row = op.Div(plane, w)
    column = op.Sub(plane, op.Mul(row, w))
    moved = op.Add(op.Sub(indices, plane), op.Add(row, op.Mul(column, h)))
    moved.type, moved.shape = indices.type, indices.shape
    for node, index in readers:
        node.replace_input_with(index, moved)
    if result:
        moved.name, indices.name = indices.name, op.fresh("indices")
        graph.outputs[list(graph.outputs).index(indices)] = moved
    graph.sort()
