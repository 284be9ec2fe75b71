"""CPU time of Dropout with its gradient: onnxruntime's node, and the mask that training uses instead.

python benchmarks/dropout.py
"""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir

from onnxaccel.graph.builder import Builder
from onnxaccel.graph.dropout import DRAWS, Masks
from onnxaccel.graph.model import Model
from onnxaccel.runtime.session import Session

RATIO = 0.25
SHAPES = [(32, 128), (64, 128), (32, 64, 128), (64, 4096), (64, 32, 15, 15)]


def graph(counted: bool, shape: tuple[int, ...]) -> Model:
    """Dropout and its gradient, by counted masks or by the node."""
    x, dy = (ir.val(name, ir.DataType.FLOAT, ir.Shape(["N", *shape[1:]])) for name in ("x", "dy"))
    inner = ir.Graph([x, dy], [], nodes=[], opset_imports={"": 18}, name="dropout")
    op = Builder(inner)
    scale = 1 / (1 - RATIO)
    if counted:
        masks = Masks(op, 0)
        factor = op.Mul(op.Cast(masks.keep(x, RATIO), to=ir.DataType.FLOAT.value), scale)
        assert masks.draws is not None
        inner.inputs.append(masks.draws)
        y, dx = op.Mul(x, factor), op.Mul(dy, factor)
    else:
        y, mask = op.node(
            "Dropout", [x, op.constant(np.float32(RATIO)), op.constant(np.array(True))], outputs=2, seed=1
        )
        mask.type = ir.TensorType(ir.DataType.BOOL)
        dx = op.Mul(op.Mul(dy, op.Cast(mask, to=ir.DataType.FLOAT.value)), scale)
    for value, name in ((y, "y"), (dx, "dx")):
        value.name, value.type, value.shape = name, x.type, x.shape
        inner.outputs.append(value)
    return Model(ir.Model(inner, ir_version=10))


def microseconds(model: Model, shape: tuple[int, ...]) -> float:
    """CPU time of one run: the least of ten means over twenty runs."""
    session = Session(model, threads=1)
    binding = session.raw.io_binding()
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for name in session.input_names:
        binding.bind_cpu_input(name, np.array(5, np.uint64) if name == DRAWS else values)
    for name in session.output_names:
        binding.bind_output(name)
    best = float("inf")
    for _ in range(11):
        started = time.process_time()
        for _ in range(20):
            session.raw.run_with_iobinding(binding)
        best = min(best, (time.process_time() - started) / 20)
    return best * 1e6


if __name__ == "__main__":
    print("| shape | Dropout node (us) | counted mask (us) | ratio |\n|---|---|---|---|")
    for shape in SHAPES:
        node, mask = (microseconds(graph(counted, shape), shape) for counted in (False, True))
        print(f"| {'x'.join(map(str, shape))} | {node:.0f} | {mask:.0f} | {mask / node:.2f} |")
