"""Every block of the README and of docs/ runs as it stands, a page's one after the other in one folder."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL
)
BLOCKS = [(page, block) for page in PAGES for block in BLOCK.finditer(page.read_text())]
RUN = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}

TENSORFLOW_S_OWN = "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR"
"""What importing Keras prints, in a program that does not ask for quiet."""

TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.compile(r"^## `(.+)`$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    return cache(lambda page: tmp_path_factory.mktemp(page.stem))


@pytest.mark.parametrize(
    ("page", "block"),
    [
        pytest.param(page, block, id=f"{page.stem}: {block['code'].splitlines()[0][:50]}")
        for page, block in BLOCKS
        if block["reason"] is None
    ],
)
def test_block_runs(page: Path, block: re.Match[str], folder_of: Callable[[Path], Path]) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*RUN[block["language"]], block["code"]],
        cwd=folder_of(page),
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.replace(TENSORFLOW_S_OWN, "").lower(), done.stderr


def test_most_of_the_readme_runs() -> None:
    commands = [
        line
        for page, block in BLOCKS
        if page.stem == "README" and block["reason"] is None
        for line in block["code"].splitlines()
    ]
    for verb in ("convert", "train", "evaluate", "predict", "gradient", "inspect", "models"):
        assert any(line.startswith(f"onnxaccel {verb}") for line in commands), verb


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(
            ("http", "measurements/")
        ):  # those are written by long runs, in their own time
            assert (page.parent / target).exists(), target


@cache
def messages() -> list[str]:
    """Every text of the program but its docstrings, with "..." for what is filled in."""
    found = []
    for path in (ROOT / "onnxaccel").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if node in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("quoted", QUOTED.findall(TROUBLESHOOTING.read_text()))
def test_a_quoted_message_is_one_of_the_program(quoted: str) -> None:
    assert any(quoted in message for message in messages())
