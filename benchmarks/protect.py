"""What protection costs and what it holds: overhead, altered bytes, and a search for plaintext on disk.

    python benchmarks/protect.py [--megabytes 100] [--rounds 5] [--flips 1000] [-o protection.md]

Overhead: each step on the plain and on the encrypted model in turns, medians, as a ratio. Altered bytes:
random flips in an encrypted model and in a signed one with external data. Plaintext: every write of every
verb, and of its children, seen by strace, is compared with the models' bytes: plain, trained, optimized.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import onnxaccel as oa
from onnxaccel import protection
from onnxaccel.errors import AccelError
from onnxaccel.graph.model import Model
from onnxaccel.protect.keys import KEY_FILE
from tests.protect.traced import traced

DATA = "sklearn:digits"


def main() -> None:
    """Run all three parts and write their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ[KEY_FILE] = str(protection.generate(folder / "model.key"))
        lines = [
            "# Protection, measured",
            "",
            f"`python benchmarks/protect.py`, {platform.machine()}, {os.cpu_count()} cores.",
            "",
        ]
        lines += overhead(folder, options.megabytes, options.rounds)
        lines += flips(folder, options.flips)
        lines += leaks(folder)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output is not None:
        options.output.write_text(text)


def network(width: int) -> torch.nn.Module:
    """An MLP for 8x8 digits with one square layer of that width."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, width), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 10))


def converted(path: Path, width: int) -> Path:
    """The network's model at ``path``."""
    return oa.convert(network(width), torch.zeros(2, 64), trainable=True).save(path)


def overhead(folder: Path, megabytes: int, rounds: int) -> list[str]:
    """Seconds of each step on a plain and an encrypted model of that size, in turns."""
    plain = converted(folder / "big.onnx", int((megabytes * 2**20 / 4) ** 0.5))
    secret = protection.encrypt(plain, folder / "big.encrypted.onnx")
    size = plain.stat().st_size / 2**20

    def train(path: Path) -> None:
        trainer = oa.Trainer(path, optimizer=oa.optimizers.SGD(0.01), ep="cpu")
        trainer.fit(f"{DATA}#0:512", epochs=1, checkpoint_folder=folder / f"{path.stem}-checkpoints")
        trainer.export(folder / f"{path.stem}.trained.onnx")

    steps: dict[str, Callable[[Path], object]] = {
        "load": Model.load,
        "load and save": lambda path: Model.load(path).save(folder / f"{path.stem}.copy.onnx"),
        "evaluate, from the file": lambda path: oa.evaluate(path, DATA, ep="cpu"),
        "train an epoch of 512 samples, checkpoint, export": train,
    }
    lines = [f"Overhead for a model of {size:.0f} MiB, medians of {rounds} rounds in turns:", ""]
    lines += ["| step | plain s | encrypted s | ratio |", "|---|---|---|---|"]
    for name, step in steps.items():
        times: dict[Path, list[float]] = {plain: [], secret: []}
        for number in range(rounds + 1):
            for path, taken in times.items():
                started = time.perf_counter()
                step(path)
                if number:  # the first round warms up
                    taken.append(time.perf_counter() - started)
        ours, theirs = (statistics.median(times[path]) for path in (secret, plain))
        lines.append(f"| {name} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.2f} |")
    for name, work in (
        ("encrypt", lambda: protection.encrypt(plain, folder / "again.onnx")),
        ("decrypt", lambda: protection.decrypt(secret, folder / "back.onnx")),
    ):
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        lines.append(f"| {name} | - | {seconds:.3f} | {size / seconds:,.0f} MiB/s |")
    same = oa.evaluate(plain, DATA, ep="cpu").loss == oa.evaluate(secret, DATA, ep="cpu").loss
    return [*lines, "", f"The loss is the same: {'yes' if same else 'NO'}.", ""]


def flips(folder: Path, count: int) -> list[str]:
    """Random flips of one byte each: how many were refused, by error."""
    rng = np.random.default_rng(0)
    place = folder / "flips"
    place.mkdir()
    plain = converted(folder / "small.onnx", 256)
    onnx.save(onnx.load(plain), place / "m.onnx", save_as_external_data=True, location="m.data")
    secret = protection.encrypt(place / "m.onnx", folder / "flipped.onnx")
    private, public = protection.generate_pair(folder / "signer.pem")
    protection.sign(place / "m.onnx", private)
    cases: list[tuple[str, list[Path], Callable[[], object]]] = [
        ("encrypted", [secret], lambda: Model.load(secret)),
        (
            "signed",
            protection.verify(place / "m.onnx", public),
            lambda: Model.load(place / "m.onnx", public_key=public),
        ),
    ]
    lines = ["One byte changed, at random places of a model with external data:", ""]
    lines += ["| model | bytes | flips | refused | as |", "|---|---|---|---|---|"]
    for name, files, load in cases:
        contents = [file.read_bytes() for file in files]
        sizes = [len(content) for content in contents]
        found: dict[str, int] = {}
        for _ in range(count):
            at = int(rng.integers(sum(sizes)))
            number = 0
            while at >= sizes[number]:
                at -= sizes[number]
                number += 1
            changed = bytearray(contents[number])
            changed[at] ^= int(rng.integers(1, 256))
            files[number].write_bytes(changed)
            try:
                load()
            except AccelError as error:
                found[type(error).__name__] = found.get(type(error).__name__, 0) + 1
            files[number].write_bytes(contents[number])
        load()
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(found.items()))
        lines.append(f"| {name} | {sum(sizes):,} | {count} | {sum(found.values())} | {kinds} |")
    return [*lines, ""]


def leaks(folder: Path) -> list[str]:
    """Every verb under strace: files written, and in how many of them plaintext was found."""
    run = folder / "run"
    run.mkdir()
    plain = converted(folder / "plain.onnx", 1200)
    protection.encrypt(plain, run / "m.onnx")
    train = ["--data", f"{DATA}#0:1500", "--val", f"{DATA}#1500:", "--ep", "cpu", "--lr", "5e-3"]
    train += ["--epochs", "2", "--threads", "1"]
    fast = ["--data", f"{DATA}#0:600", "--rounds", "1", "--seconds", "0.05", "--max-error", "1"]
    compared = [
        "--data",
        f"{DATA}#0:600",
        "--train",
        "--training",
        "epochs=1",
        "--no-optimize",
        "--ep",
        "cpu",
    ]
    compared += ["--batch-sizes", "1", "--rounds", "1", "--seconds", "0.05"]
    commands = {
        "train": ["m.onnx", *train, "--checkpoint", "c", "--logdir", "logs", "-o", "t.onnx"],
        "train --workers 2": ["m.onnx", *train, "--workers", "2", "--accumulate", "2", "-o", "w.onnx"],
        "evaluate": ["t.onnx", "--data", f"{DATA}#1500:", "--ep", "cpu", "--json"],
        "predict": ["t.onnx", f"{DATA}#1500:1510", "--ep", "cpu"],
        "gradient": ["t.onnx", "--wrt", "parameters", "-o", "g.onnx"],
        "inspect": ["t.onnx"],
        "optimize --profile": ["t.onnx", *fast, "--profile", "-o", "o.onnx"],
        "compare --train": ["t.onnx", *compared],
        "encrypt": ["../plain.onnx", "-o", "again.onnx"],
    }
    traces = {}
    for name, words in commands.items():
        print(f"{name}: runs under strace", file=sys.stderr, flush=True)
        traces[name] = traced(name.split()[0], *words, cwd=run)
        if traces[name].status:
            raise SystemExit(f"{name}: {traces[name].output}")
    opened = [p for p in run.rglob("*") if p.is_file() and protection.is_sealed(p)]
    secrets = [plain.read_bytes()]
    for number, path in enumerate(opened):
        target = folder / "opened" / f"{number}.onnx"
        target.parent.mkdir(exist_ok=True)
        secrets.append(protection.decrypt(path, target)[0].read_bytes())
    lines = [f"Writes of an encrypted model's verbs, compared with {len(secrets)} plaintexts of it:", ""]
    lines += ["| command | files written on disk | writes | with plaintext |", "|---|---|---|---|"]
    for name, trace in traces.items():
        disk = trace.on_disk()
        lines.append(
            f"| {name} | {len(disk)} | {sum(map(len, disk.values())):,} | {len(trace.leaks(secrets))} |"
        )
    needles = [secret[at : at + 64] for secret in secrets for at in range(2**20, len(secret) - 64, 2**20)]
    left = [p for p in run.rglob("*") if p.is_file()]
    found = [p for p in left if any(needle in p.read_bytes() for needle in needles)]
    memory = [p for p in Path("/dev/shm").glob(".onnxaccel-*")]
    plain_loss = evaluated_plain(plain, folder, train)
    secret_loss = oa.evaluate(run / "t.onnx", f"{DATA}#1500:", ep="cpu", threads=1).loss
    return [
        *lines,
        "",
        f"Of the {len(left)} files that the commands left, {len(found)} hold one of {len(needles)} pieces of "
        f"the plaintexts; {len(memory)} folders were left in memory.",
        "",
        f"Validation loss after the training: encrypted {secret_loss!r}, plain {plain_loss!r}.",
    ]


def evaluated_plain(plain: Path, folder: Path, train: list[str]) -> float:
    """The loss that the same training of the plain model ends with; its writes must show its plaintext."""
    (folder / "open").mkdir()
    trace = traced("train", plain, *train, "-o", "t.onnx", cwd=folder / "open")
    target = folder / "open" / "t.onnx"
    if trace.status or not trace.leaks([target.read_bytes()]):
        raise SystemExit(f"the search does not find what a plain training writes: {trace.output}")
    return oa.evaluate(target, f"{DATA}#1500:", ep="cpu", threads=1).loss


if __name__ == "__main__":
    main()
