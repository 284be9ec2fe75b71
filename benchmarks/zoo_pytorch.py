"""Convert the PyTorch zoo, in inference and in trainable form, and train it beside torch.

    python benchmarks/zoo_pytorch.py [NAME ...] [--table docs/measurements/pytorch_zoo.md]

For each architecture: the largest relative error between torch and the converted model (random inputs,
batches of 2 and 3), seconds of the conversion, and the largest relative difference of the loss over 10 steps
of SGD with momentum (mean squared error to a random target; the same weights and batch in torch and in
onnxaccel). Weights are random; batch normalization's statistics are taken from two batches first, so that
outputs are not degenerate.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zoo_pytorch_nets import PLAIN, Net, huggingface

import onnxaccel as oa
from onnxaccel.converters.pytorch.naming import output_leaves

STEPS = 10
RATE, MOMENTUM = 0.01, 0.9


def calibrated(net: Net) -> torch.nn.Module:
    """The module with batch normalization's statistics set from random batches."""
    torch.manual_seed(0)
    module = net.build().train()
    with torch.no_grad():
        for _ in range(2):
            call(module, net.example())
    return module


def call(module: torch.nn.Module, example: tuple[Any, ...]) -> Any:
    """Call with a last dict as keyword arguments."""
    keywords = example[-1] if isinstance(example[-1], dict) else {}
    return module(*example[: len(example) - bool(keywords)], **keywords)


def training_difference(net: Net, module: torch.nn.Module) -> float:
    """Largest relative difference of the loss between torch and onnxaccel."""
    example = net.example()
    model = oa.convert(module, *example, trainable=True, shapes=net.shapes)
    trainer = oa.Trainer(model, loss="mse", optimizer=oa.optimizers.SGD(RATE, momentum=MOMENTUM), ep="cpu")
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD(module.parameters(), RATE, momentum=MOMENTUM)
    with torch.no_grad():
        target = torch.randn_like(output_leaves(call(copy.deepcopy(module), example))[1][0])
    tensors = [t for e in example for t in (e.values() if isinstance(e, dict) else [e])]
    feed = dict(zip(model.input_names(), (t.numpy() for t in tensors), strict=True))
    worst = 0.0
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(output_leaves(call(module, example))[1][0], target)
        loss.backward()
        optimizer.step()
        worst = max(worst, abs(trainer.step(feed, target.numpy()) - loss.item()) / abs(loss.item()))
    return worst


def row(name: str, net: Net) -> str:
    """One line of the table."""
    module = calibrated(net)
    started = time.perf_counter()
    try:
        model = oa.convert(module, *net.example(), shapes=net.shapes)
        error = f"{model.metadata.max_relative_error:.1e}"
        nodes = str(len(list(model.graph)))
    except oa.AccelError as problem:
        return f"| {name} | {type(problem).__name__}: {str(problem)[:120]} | | | |"
    seconds = f"{time.perf_counter() - started:.1f}"
    try:
        training = f"{training_difference(net, module):.1e}"
    except oa.AccelError as problem:
        training = f"{type(problem).__name__}: {str(problem)[:120]}"
    return f"| {name} | {error} | {nodes} | {seconds} | {training} |"


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    np.random.seed(0)
    nets = PLAIN | huggingface()
    lines = [
        "| architecture | relative error | nodes | seconds | loss difference over 10 steps |",
        "|---|---|---|---|---|",
    ]
    print(*lines, sep="\n", flush=True)
    for name in arguments.names or nets:
        lines.append(row(name, nets[name]))
        print(lines[-1], flush=True)
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        about = (__doc__ or "").partition("pytorch_zoo.md]")[2].strip()
        arguments.table.write_text("\n".join(["# The PyTorch zoo", "", about, "", *lines, ""]))


if __name__ == "__main__":
    main()
