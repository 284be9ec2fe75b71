"""Every block of the README runs as it stands, one after the other in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL
)
BLOCKS = list(BLOCK.finditer(README.read_text()))
RUN = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block["reason"] is None],
    ids=lambda block: block["code"].splitlines()[0][:50],
)
def test_block_runs(block: re.Match[str], folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*RUN[block["language"]], block["code"]],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr


def test_most_of_the_readme_runs() -> None:
    commands = [line for block in BLOCKS if block["reason"] is None for line in block["code"].splitlines()]
    for verb in ("convert", "train", "evaluate", "predict", "gradient", "inspect", "models"):
        assert any(line.startswith(f"onnxaccel {verb}") for line in commands), verb
