"""Which form of a convolution's gradients is the fastest for which shape, beside torch's own.

    python benchmarks/convolution_forms.py [--rounds 15]

One thread; the candidates take turns, and each figure is the least processor time of a call, in
milliseconds, so that a busy machine disturbs little. Each form is asked of the gradient rules themselves, by
moving their bounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

import onnxaccel as oa
from onnxaccel.graph.autodiff import prune
from onnxaccel.graph.model import Model, name_of, tensor_of
from onnxaccel.graph.rules import convolution, convolution_weight

SHAPES = ((16, 32, 32), (32, 32, 32), (64, 32, 32), (128, 16, 32), (256, 8, 32), (512, 4, 32))
"""Channels, image size, batch; kernels are 3 x 3 with padding 1."""

NEVER, ALWAYS = 1 << 62, 0
WEIGHT_FORMS = {
    "dW stacked": {"THIN": NEVER},
    "dW by shifts": {"THIN": ALWAYS, "SMALL": NEVER},
    "dW by position": {"THIN": ALWAYS, "SMALL": ALWAYS},
}
INPUT_FORMS = {
    "dx ConvTranspose": {"_convolves": lambda window: False},
    "dx flipped weight": {"_flips_weight": lambda weight, dy: True},
    "dx flipped images": {"_flips_weight": lambda weight, dy: False},
}


@contextmanager
def bounds(module: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Move the bounds between the forms."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


def runner(model: Model, feed: dict[str, Any]) -> Callable[[], Any]:
    """A call of the gradient graph without its forward pass, with its inputs bound, on one thread.

    The weight is an input, as in training: onnxruntime would prepare a constant one once and for all.
    """
    weight = model.graph.initializers.pop("weight")
    feed = feed | {"weight": tensor_of(weight)}
    weight.const_value = None
    model.graph.inputs.append(weight)
    for output in [v for v in model.outputs if not name_of(v).endswith("_grad")]:
        model.graph.outputs.remove(output)
    prune(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(
        model.to_proto().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    taken = {value.name for value in session.get_inputs()}
    for name, array in feed.items():
        if name in taken:
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def candidates(channels: int, size: int, batch: int) -> dict[str, Callable[[], Any]]:
    """All forms for one shape, by name."""
    module = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    x, dy = (torch.randn(batch, channels, size, size) for _ in range(2))
    weight = module.weight.detach()

    def native(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False]
        )

    calls: dict[str, Callable[[], Any]] = {
        "torch forward": lambda: nn.functional.conv2d(x, weight, padding=1),
        "torch dx": lambda: native(True, False),
        "torch dW": lambda: native(False, True),
    }
    model = oa.convert(module, x, trainable=True, verify=False)
    name, output = model.input_names()[0], model.output_names()[0]
    feed = {name: x.numpy(), f"{output}_grad": dy.numpy()}
    for module_, forms, wrt in (
        (convolution, INPUT_FORMS, name),
        (convolution_weight, WEIGHT_FORMS, "weight"),
    ):
        for form, values in forms.items():
            with bounds(module_, values):
                calls[form] = runner(oa.gradient(model, [wrt]), feed)
    return calls


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    header: list[str] = []
    for shape in SHAPES:
        calls = candidates(*shape)
        times: dict[str, list[float]] = {form: [] for form in calls}
        for turn in range(rounds + 1):
            for form, call in calls.items():
                started = time.thread_time()
                call()
                if turn:
                    times[form].append(1e3 * (time.thread_time() - started))
        if not header:
            header = ["channels@size", *calls]
            print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
        figures = [f"{np.min(times[form]):.2f}" for form in calls]
        print(f"| {shape[0]}@{shape[1]} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
