"""onnxaccel on a GPU, in one command and without a network: is it right, what falls back, how fast is it?

    python benchmarks/gpu.py [--ep cuda] [--small] [--rounds 5] [--seconds 1] [--json FILE]
    python benchmarks/gpu.py --prepare FOLDER    writes the graphs, on a machine with torch.onnx and pytest
    python benchmarks/gpu.py --folder FOLDER     runs them; needs torch, numpy, onnx, onnx_ir and onnxruntime

1. Each case of the gradient rules' table, in float32, on the provider against the CPU.
2. Four networks trained for some steps on the provider and on the CPU: the largest difference of the loss.
3. For both: the nodes that fall back to the CPU.
4. Steps per second and memory of training, and runs per second of inference at batch 1 and 32, beside torch
   eager and torch.compile in the same precision, with and without CUDA graphs; each candidate in its own
   process, taking turns. Training in float32, TF32 and bfloat16, inference in float32, TF32 and float16.

torch is imported before onnxruntime, whose CUDA libraries it brings. ``--ep cpu --small`` runs all of it
anywhere, quickly.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import onnxruntime as ort  # isort: skip  after torch, whose CUDA libraries it takes

from onnxaccel import Trainer, optimizers
from onnxaccel.graph.feeds import relative_error
from onnxaccel.graph.model import Model, SessionSettings
from onnxaccel.runtime.measure import Job, Limits, measure
from onnxaccel.runtime.providers import Provider, resolve
from onnxaccel.runtime.session import Session
from onnxaccel.runtime.upload import Uploads

RATE = 0.01
TOLERANCE = 1e-3
"""Relative error of a gradient in float32 that is still called right."""
SHAPES = {"mlp": (784,), "cifar_cnn": (3, 32, 32), "resnet": (3, 32, 32), "transformer": (64, 128)}
BATCH = {"mlp": 128, "cifar_cnn": 64, "resnet": 64, "transformer": 32}


class Residual(torch.nn.Module):
    """A block of a small residual network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(width, width, 3, padding=1, bias=False),
            torch.nn.BatchNorm2d(width),
            torch.nn.ReLU(),
            torch.nn.Conv2d(width, width, 3, padding=1, bias=False),
            torch.nn.BatchNorm2d(width),
        )

    def forward(self, x: Any) -> Any:
        """See above."""
        return torch.relu(x + self.body(x))


class Attention(torch.nn.Module):
    """A layer of a transformer encoder, without dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.norms = torch.nn.ModuleList([torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)])
        self.feed = torch.nn.Sequential(
            torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)
        )

    def forward(self, x: Any) -> Any:
        """See above."""
        q, k, v = self.project(self.norms[0](x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.feed(self.norms[1](x))


def module(name: str) -> torch.nn.Module:
    """A network with freshly drawn weights."""
    torch.manual_seed(0)
    nn = torch.nn
    if name == "mlp":
        return nn.Sequential(
            nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )
    if name == "cifar_cnn":
        return nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 36, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip
    if name == "resnet":
        blocks = [Residual(64) for _ in range(4)]
        stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(*(Attention(128, 4) for _ in range(4)), nn.Flatten(), nn.Linear(64 * 128, 10))


def batch_of(name: str, size: int | None = None, seed: int = 0) -> tuple[Any, Any]:
    """One batch of inputs and labels."""
    rng = np.random.default_rng(seed)
    count = size or BATCH[name]
    return rng.random((count, *SHAPES[name]), np.float32), rng.integers(0, 10, count)


def prepare(folder: Path, small: bool) -> None:
    """Write the networks and the gradient graphs of the rules' table into ``folder``."""
    import onnxaccel as oa
    from onnxaccel.runtime.optimize.variants import fp16

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.graph.gradcheck import one_node
    from tests.graph.test_rules import CASES

    for name in ["mlp"] if small else list(SHAPES):
        x = torch.from_numpy(batch_of(name, 2)[0])
        oa.convert(module(name), x, trainable=True).save(folder / f"{name}.onnx")
        inference = oa.convert(module(name).eval(), x).save(folder / f"{name}.inference.onnx")
        fp16(inference, folder / f"{name}.inference.fp16.onnx", inference)
    for number, (op, inputs, attributes) in enumerate(CASES[:: 40 if small else 1]):
        single = [x if x is None or x.dtype.kind != "f" else x.astype(np.float32) for x in inputs]
        proto, feed = one_node(op, single, **attributes)
        try:
            gradient = oa.gradient(proto, wrt=list(feed))
        except oa.AccelError as error:
            print(f"{op}: left out, {error}", file=sys.stderr)
            continue
        stem = folder / f"rule-{number:04d}-{op}"
        gradient.save(stem.with_suffix(".onnx"))
        np.savez(stem.with_suffix(".npz"), **feed)


def rules(folder: Path, ep: str) -> list[dict[str, Any]]:
    """Each gradient graph on the provider against the CPU."""
    rows = []
    for path in sorted(folder.glob("rule-*.onnx")):
        model = Model.load(path)
        with np.load(path.with_suffix(".npz")) as stored:
            feed: dict[str, Any] = {name: stored[name] for name in stored.files}
        row: dict[str, Any] = {"case": path.stem.removeprefix("rule-")}
        try:
            feed |= _seeds(model, feed)
            expected = Session(model, "cpu").run(feed)
            session = Session(model, ep)
            actual = session.run(feed)
            row["error"] = max(relative_error(actual[name], expected[name]) for name in expected)
            row["elsewhere"] = {op: len(nodes) for op, nodes in session.elsewhere.items()}
            row["right"] = row["error"] <= TOLERANCE
        except Exception as error:
            row |= {"right": False, "failure": str(error).splitlines()[0]}
        rows.append(row)
    return rows


def _seeds(model: Model, feed: dict[str, Any]) -> dict[str, Any]:
    """Cotangents shaped like the outputs, which a run with scalars of zero tells."""
    names = [name for name in model.input_names() if name not in feed]
    outputs = {f"{name}_grad": name for name in model.output_names()}
    forward = model.copy()
    kept = [v for v in forward.graph.outputs if v.name in {outputs[name] for name in names}]
    forward.graph.outputs.clear()
    forward.graph.outputs.extend(kept)
    forward.graph.inputs[:] = [v for v in forward.graph.inputs if v.name in feed]
    from onnxaccel.graph.autodiff import prune

    prune(forward)
    results = Session(forward, "cpu").run(feed)
    rng = np.random.default_rng(0)
    return {n: np.asarray(rng.standard_normal(results[outputs[n]].shape), np.float32) for n in names}


def trainings(folder: Path, ep: str, steps: int) -> list[dict[str, Any]]:
    """Losses on the provider against the CPU."""
    rows = []
    for path in sorted(folder.glob("*.inference.onnx")):
        name = path.name.split(".")[0]
        curves = {}
        row: dict[str, Any] = {"model": name, "steps": steps}
        try:
            for where in ("cpu", ep):
                trainer = Trainer(
                    folder / f"{name}.onnx", optimizer=optimizers.SGD(RATE), ep=where, metrics=False
                )
                curves[where] = [trainer.step(*batch_of(name, seed=seed)) for seed in range(steps)]
            row["largest_difference"] = float(np.abs(np.subtract(curves[ep], curves["cpu"])).max())
        except Exception as error:
            row["failure"] = str(error).splitlines()[0]
        rows.append(row)
    return rows


def candidate(setup: dict[str, Any]) -> tuple[Callable[[], object], dict[str, Any]]:
    """A candidate's process, see `onnxaccel.runtime.measure.worker`."""
    ep, name, size = setup["ep"], setup["model"], setup["batch"]
    gpu = ep != "cpu"
    before = torch.cuda.mem_get_info()[0] if gpu else 0
    x, y = batch_of(name, size)
    make = _torch if setup["side"].startswith("torch") else _onnxaccel
    step = make(setup, x, y)
    for _ in range(5):
        step()
    facts = {"gpu_bytes": before - torch.cuda.mem_get_info()[0]} if gpu else {}
    return step, facts


def _onnxaccel(setup: dict[str, Any], x: Any, y: Any) -> Callable[[], object]:
    folder, name, precision = Path(setup["folder"]), setup["model"], setup["precision"]
    graphs = setup["side"] == "onnxaccel"
    options = {"use_tf32": str(int(precision != "fp32"))} | ({} if graphs else {"enable_cuda_graph": "0"})
    provider = resolve(setup["ep"], options if setup["ep"] == "cuda" else {})
    if not setup["training"]:
        suffix = "inference.fp16" if precision == "fp16" else "inference"
        return _inference(folder / f"{name}.{suffix}.onnx", provider, x, graphs)
    trainer = Trainer(
        folder / f"{name}.onnx",
        optimizer=optimizers.SGD(RATE),
        ep=provider,
        metrics=False,
        precision="bf16" if precision == "bf16" else "fp32",
    )
    return lambda: trainer.step(x, y)


def _inference(path: Path, provider: Provider, x: Any, graphs: bool) -> Callable[[], object]:
    """Runs from and to the host, by way of buffers that stay, which a CUDA graph needs."""
    plain = Session(path, provider, settings=SessionSettings())
    (name,) = plain.input_names
    if not graphs:
        return lambda: plain.run({name: x})
    shapes = plain.run({name: x})
    session = Session(path, provider, settings=SessionSettings(), capture=True)
    uploads = Uploads(provider.device, provider.device_id)
    outputs = [
        ort.OrtValue.ortvalue_from_numpy(array, provider.device, provider.device_id)
        for array in shapes.values()
    ]
    binding, options = session.raw.io_binding(), ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "1")
    binding.bind_ortvalue_input(name, uploads.write({name: x}).values[name])
    for output, value in zip(shapes, outputs, strict=True):
        binding.bind_ortvalue_output(output, value)

    def run() -> Any:
        uploads.write({name: x})
        session.raw.run_with_iobinding(binding, options)
        return [value.numpy() for value in outputs]

    return run


def _torch(setup: dict[str, Any], x: Any, y: Any) -> Callable[[], object]:
    device = "cpu" if setup["ep"] == "cpu" else "cuda"
    precision = setup["precision"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    net = module(setup["model"]).to(device)
    training = setup["training"]
    net.train(training)
    forward = torch.compile(net, mode="reduce-overhead") if setup["side"] == "torch.compile" else net
    optimizer = torch.optim.SGD(net.parameters(), RATE)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    cast = torch.autocast(device, low, enabled=low is not None)

    def step() -> float:
        inputs, labels = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
        optimizer.zero_grad()
        with cast:
            loss = torch.nn.functional.cross_entropy(forward(inputs), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    def infer() -> Any:
        with torch.inference_mode(), cast:
            return forward(torch.from_numpy(x).to(device)).float().cpu()

    return step if training else infer


def speeds(
    folder: Path, ep: str, small: bool, rounds: int, seconds: float, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Training and inference beside torch, in the same precision."""
    rows = []
    for path in sorted(folder.glob("*.inference.onnx")):
        name = path.name.split(".")[0]
        kinds = [(True, BATCH[name]), (False, 1), *([] if small else [(False, 32)])]
        for training, size in kinds:
            for precision in ["fp32"] if ep == "cpu" else ["fp32", "tf32", "bf16" if training else "fp16"]:
                base = {"folder": str(folder), "model": name, "ep": ep, "precision": precision}
                base |= {"training": training, "batch": size}
                sides = ["torch eager", *([] if small else ["torch.compile"]), "onnxaccel"]
                sides += ["onnxaccel without CUDA graphs"] if ep == "cuda" else []
                jobs = {side: Job(f"{__file__}:candidate", {**base, "side": side}) for side in sides}
                results = measure(
                    jobs, rounds=rounds, seconds=seconds, limits=Limits(600), patience=1, progress=progress
                )
                eager = results["torch eager"]
                for side, result in results.items():
                    row = {"side": side, **{k: v for k, v in base.items() if k != "folder"}}
                    if result.failure is not None:
                        rows.append(row | {"failure": result.failure})
                        continue
                    row |= {"per_second": result.rate, "p50_ms": 1e3 * result.percentile(0.5), **result.facts}
                    if eager.failure is None:
                        row["ratio_to_torch_eager"] = result.rate / eager.rate
                    rows.append(row)
    return rows


def main() -> None:
    """Run it all and print the tables."""
    from onnxaccel.report.terminal import show

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ep", default="cuda")
    parser.add_argument("--small", action="store_true", help="a few cases and one network, quickly")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.prepare is not None:
        options.prepare.mkdir(parents=True, exist_ok=True)
        prepare(options.prepare, options.small)
        return
    provider = resolve(options.ep)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if options.folder is None:
            prepare(folder, options.small)
        found = {
            "provider": provider.name,
            "device": torch.cuda.get_device_name() if provider.name != "cpu" else "cpu",
            "rules": rules(folder, options.ep),
            "trainings": trainings(folder, options.ep, 5 if options.small else 30),
            "speeds": speeds(
                folder,
                options.ep,
                options.small,
                options.rounds,
                options.seconds,
                lambda line: print(line, file=sys.stderr),
            ),
        }
    wrong = [row for row in found["rules"] if not row["right"]]
    print(
        f"{found['device']}: {len(found['rules']) - len(wrong)} of {len(found['rules'])} rules' cases right"
    )
    left = [r for r in found["rules"] if r.get("elsewhere")]
    for title, rows in (
        ("Wrong", wrong),
        ("Nodes on the CPU", left),
        ("Training against the CPU", found["trainings"]),
        ("Speed", found["speeds"]),
    ):
        columns = list(dict.fromkeys(key for row in rows for key in row))
        show(title, columns, [[row.get(key) for key in columns] for row in rows])
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
