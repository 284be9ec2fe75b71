"""How much memory and time a conversion takes beyond the torch module itself.

    python benchmarks/memory_pytorch.py [--table docs/measurements/pytorch_memory.md] [WIDTHxLAYERS ...]

Each row is a process of its own that converts a stack of linear layers with random weights, writes the
file, and runs it in onnxruntime. Peak memory is the highest resident size from the conversion to the saved
file, less the size just before, when torch, onnxruntime and the module are loaded: in multiples of the
weights' size. Large weights are read by onnxruntime from a file, and what is mapped counts as resident.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = ("1000x5", "2000x10", "5000x10", "8000x10")


def resident() -> int:
    """Bytes resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(size: str, trainable: bool) -> str:
    """One line of the table."""
    import torch

    import onnxaccel as oa
    from onnxaccel.runtime.session import Session

    oa.convert(torch.nn.Linear(4, 4), torch.randn(2, 4), trainable=trainable)  # everything is imported now
    width, layers = map(int, size.split("x"))
    torch.manual_seed(0)
    stack = [layer for _ in range(layers) for layer in (torch.nn.Linear(width, width), torch.nn.Tanh())]
    module = torch.nn.Sequential(*stack)
    nbytes = sum(p.numel() * 4 for p in module.parameters())
    before, started = resident(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = oa.convert(module, torch.randn(2, width), trainable=trainable)
        path = model.save(Path(folder) / "model.onnx")
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        x = torch.randn(3, width)
        expected = module(x).detach().numpy()
        actual = Session(oa.Model.load(path)).run({"input": x.numpy()})["output"]
        error = abs(actual - expected).max() / abs(expected).max()
        sizes = [f"{file.name} {file.stat().st_size / 2**20:.1f}" for file in sorted(path.parent.iterdir())]
    form = "trainable" if trainable else "inference"
    cells = [
        f"{nbytes / 2**20:.0f}",
        form,
        f"{(peak - before) / nbytes:.2f}",
        f"{error:.1e}",
        f"{seconds:.0f}",
    ]
    return f"| {' | '.join([*cells, ', '.join(sizes)])} |"


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=SIZES)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--one", choices=["inference", "trainable"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(measure(arguments.sizes[0], arguments.one == "trainable"))
        return
    lines = [
        "| weights, MiB | form | peak memory, in weights | relative error | seconds | files, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for size in arguments.sizes:
        for form in ("inference", "trainable"):
            command = [sys.executable, __file__, size, "--one", form]
            lines.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
            print(lines[-1], flush=True)
    if arguments.table:
        about = (__doc__ or "").partition("...]")[2].strip()
        arguments.table.write_text("\n".join(["# Memory of a PyTorch conversion", "", about, "", *lines, ""]))


if __name__ == "__main__":
    main()
