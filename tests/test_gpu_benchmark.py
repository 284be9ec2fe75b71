"""benchmarks/gpu.py in its small mode on the CPU: the command that a GPU machine runs works."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[1] / "benchmarks/gpu.py"


def test_small_run_on_the_cpu(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(PROGRAM), "--ep", "cpu", "--small", "--rounds", "1", "--seconds", "0.05"]
    done = subprocess.run([*command, "--json", str(report)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["provider"] == "cpu" and len(found["rules"]) >= 5
    assert all(row["right"] and row["error"] == 0 and row["elsewhere"] == {} for row in found["rules"])
    assert [row["largest_difference"] for row in found["trainings"]] == [0]
    rows = {(row["side"], row["training"]): row for row in found["speeds"]}
    assert set(rows) == {(side, kind) for side in ("torch eager", "onnxaccel") for kind in (True, False)}
    assert all(row["per_second"] > 0 and row["ratio_to_torch_eager"] > 0 for row in rows.values())
    assert "rules' cases right" in done.stdout


def test_all_precisions_and_both_ways_of_running(tmp_path: Path) -> None:
    """Each candidate of the GPU's table, on the CPU: what it needs is there, and it steps."""
    benchmark = load()
    benchmark.prepare(tmp_path, small=True)
    for training, precision in ((True, "bf16"), (False, "fp16")):
        for side in ("torch eager", "onnxaccel", "onnxaccel without CUDA graphs"):
            setup = {"folder": str(tmp_path), "model": "mlp", "ep": "cpu", "precision": precision}
            step, facts = benchmark.candidate({**setup, "training": training, "batch": 4, "side": side})
            assert facts == {} and step() is not None


def load() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
