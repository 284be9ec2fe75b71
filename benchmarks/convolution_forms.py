"""Which form of a convolution's gradients is the fastest for which shape, beside torch's own.

    python benchmarks/convolution_forms.py [--rounds 15] [--ep cuda]

The candidates take turns, and each figure is the least time of a call, in milliseconds: on the CPU of the
processor, on one thread, so that a busy machine disturbs little; on CUDA until the device is done. Each form
is asked of the gradient rules themselves, by moving their bounds; "dW by convolution" is none of theirs.
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
from onnxaccel.graph.builder import Builder
from onnxaccel.graph.model import Model, SessionSettings, name_of, tensor_of
from onnxaccel.graph.rules import convolution, convolution_weight
from onnxaccel.graph.rules.window import Window
from onnxaccel.runtime.providers import Provider, resolve
from onnxaccel.runtime.session import Session

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


def runner(model: Model, feed: dict[str, Any], provider: Provider) -> Callable[[], Any]:
    """A call of the gradient graph without its forward pass, with its inputs bound; on CPU on one thread.

    The weight is an input, as in training: onnxruntime would prepare a constant one once and for all.
    """
    weight = model.graph.initializers.pop("weight")
    feed = feed | {"weight": tensor_of(weight)}
    weight.const_value = None
    model.graph.inputs.append(weight)
    for output in [v for v in model.outputs if not name_of(v).endswith("_grad")]:
        model.graph.outputs.remove(output)
    prune(model)
    device, number = provider.device, provider.device_id
    session = Session(model, provider, 1, SessionSettings(graph_optimization="extended"))
    binding = session.raw.io_binding()
    for name, array in feed.items():
        if name in session.input_names:
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, number))
    for output in session.output_names:
        binding.bind_output(output, device, number)
    return lambda: session.raw.run_with_iobinding(binding)


def by_convolution(op: Builder, x: Any, weight: Any, dy: Any, window: Window) -> Any:
    """dW as a convolution of images by gradients, batch and channels swapped: what cuDNN might run well."""
    swapped = (op.Transpose(value, perm=[1, 0, 2, 3]) for value in (x, dy))
    product = op.Conv(*swapped, pads=window.pads, strides=window.dilations, dilations=window.strides)
    return op.Transpose(product, perm=[1, 0, 2, 3])


def candidates(channels: int, size: int, batch: int, provider: Provider) -> dict[str, Callable[[], Any]]:
    """All forms for one shape, by name."""
    module = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    x, dy = (torch.randn(batch, channels, size, size) for _ in range(2))
    model = oa.convert(module, x, trainable=True, verify=False)
    name, output = model.input_names()[0], model.output_names()[0]
    feed = {name: x.numpy(), f"{output}_grad": dy.numpy()}
    x, dy, weight = (value.detach().to(provider.device) for value in (x, dy, module.weight))

    def native(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False]
        )

    calls: dict[str, Callable[[], Any]] = {
        "torch forward": lambda: nn.functional.conv2d(x, weight, padding=1),
        "torch dx": lambda: native(True, False),
        "torch dW": lambda: native(False, True),
    }
    for module_, forms, wrt in (
        (convolution, INPUT_FORMS, name),
        (convolution_weight, WEIGHT_FORMS, "weight"),
        (convolution, {"dW by convolution": {"weight_gradient": by_convolution}}, "weight"),
    ):
        for form, values in forms.items():
            with bounds(module_, values):
                calls[form] = runner(oa.gradient(model, [wrt]), feed, provider)
    return calls


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--ep", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    provider, rounds = resolve(given.ep), given.rounds
    clock = time.thread_time if given.ep == "cpu" else time.perf_counter
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    header: list[str] = []
    for shape in SHAPES:
        calls = candidates(*shape, provider)
        times: dict[str, list[float]] = {form: [] for form in calls}
        for turn in range(rounds + 1):
            for form, call in calls.items():
                started = clock()
                call()
                if given.ep == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    times[form].append(1e3 * (clock() - started))
        if not header:
            header = ["channels@size", *calls]
            print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
        figures = [f"{np.min(times[form]):.2f}" for form in calls]
        print(f"| {shape[0]}@{shape[1]} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
