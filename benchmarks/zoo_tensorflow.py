"""Convert the TensorFlow zoo: keras.applications, and small models that cover Keras's layers.

    python benchmarks/zoo_tensorflow.py [NAME ...] [--table docs/measurements/tensorflow_zoo.md]

Each model has random weights; batch normalization's statistics are taken from a batch, so that outputs are
not degenerate. It is saved as .keras and converted from the file, once for inference and once in trainable
form; the networks of keras.applications each in a process of its own, which loads, converts and compares.
For each: the largest relative error between Keras and the converted model (random inputs, batches of 2 and
3), seconds of the conversion (load, convert, compare), the process's peak memory, transposes in the graph,
loops in the graph, and how many of Keras's trainable parameters the trainable form kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HEADER = (
    "| model | relative error | seconds | peak MB | transposes | loops | trainable: error | kept | seconds |"
)


def build(name: str, path: Path) -> None:
    """Build a model, calibrate it, save it."""
    import keras
    import numpy as np
    from zoo_tensorflow_nets import SMALL, application

    keras.utils.set_random_seed(0)
    model = SMALL[name]() if name in SMALL else application(name)
    calibrate(model, np.random.default_rng(0))
    model.save(path)


def calibrate(model: Any, rng: Any) -> None:
    """Set batch normalization's statistics to those of one random batch."""
    import keras

    norms = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
    if not norms:
        return
    kept = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    feeds = [rng.standard_normal([8, *(d or 96 for d in x.shape[1:])]).astype(x.dtype) for x in model.inputs]
    model(feeds if len(feeds) > 1 else feeds[0], training=True)
    for layer, momentum in zip(norms, kept, strict=True):
        layer.momentum = momentum


def measure(path: Path, trainable: bool) -> dict[str, Any]:
    """Convert the file, and say what came out."""
    import onnxaccel as oa

    started = time.perf_counter()
    try:
        model = oa.convert(path, trainable=trainable, custom_objects="zoo_tensorflow_nets")
    except oa.AccelError as problem:
        return {"problem": f"{type(problem).__name__}: {str(problem)[:150]}"}
    seconds = time.perf_counter() - started
    operators = [node.op_type for node in model.graph]
    return {
        "error": f"{model.metadata.max_relative_error:.1e}",
        "seconds": f"{seconds:.1f}",
        "peak": str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024),
        "transposes": str(operators.count("Transpose")),
        "loops": str(operators.count("Loop") + operators.count("Scan")),
        "kept": f"{len(model.metadata.trainable or ())} of {trainable_count(path)}" if trainable else "",
    }


def trainable_count(path: Path) -> int:
    """How many trainable parameters Keras counts."""
    import keras
    import zoo_tensorflow_nets  # noqa: F401  (its layers)

    return len(keras.models.load_model(path, compile=False).trainable_variables)


def in_process(*arguments: str) -> Any:
    """What this script prints as JSON when it is called with these arguments."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("json:")]
    if not lines:
        return {"problem": (done.stderr.strip().splitlines() or ["no answer"])[-1][:150]}
    return json.loads(lines[-1].removeprefix("json:"))


def row(name: str, folder: Path) -> str:
    """One line of the table, each form in a process of its own."""
    path = folder / "model.keras"
    built = in_process("--step", "build", name, str(path))
    if built:
        return f"| {name} | {built['problem']} | | | | | | | |"
    forms = [in_process("--step", form, name, str(path)) for form in ("inference", "trainable")]
    return line(name, *forms)


def small_row(name: str, folder: Path) -> str:
    """One line of the table, in this process: its peak memory says nothing of one small model."""
    path = folder / "small.keras"
    build(name, path)
    return line(name, measure(path, False) | {"peak": ""}, measure(path, True))


def line(name: str, plain: dict[str, Any], trained: dict[str, Any]) -> str:
    """A model's line, from what `measure` said of its two forms."""
    columns = ("error", "seconds", "peak", "transposes", "loops")
    first = plain.get("problem") or " | ".join(plain[k] for k in columns)
    second = trained.get("problem") or " | ".join(trained[k] for k in ("error", "kept", "seconds"))
    return f"| {name} | {first} | {second} |"


def step(kind: str, name: str, path: Path) -> Any:
    """One step of `row`, in its own process."""
    if kind == "build":
        return build(name, path)
    return measure(path, kind == "trainable")


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--step")
    arguments = parser.parse_args()
    if arguments.step:
        name, path = arguments.names
        print("json:" + json.dumps(step(arguments.step, name, Path(path))))
        return
    from zoo_tensorflow_nets import APPLICATIONS, SMALL

    names = arguments.names or [*APPLICATIONS, *SMALL]
    lines = [HEADER, "|" + "---|" * 9]
    print(*lines, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            lines.append((small_row if name in SMALL else row)(name, Path(folder)))
            print(lines[-1], flush=True)
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        about = (__doc__ or "").partition("tensorflow_zoo.md]")[2].strip()
        arguments.table.write_text("\n".join(["# The TensorFlow zoo", "", about, "", *lines, ""]))


if __name__ == "__main__":
    main()
