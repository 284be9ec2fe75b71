"""Scratch folders and files that appear whole: what a killed process left, and what is not touched."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnxaccel.files import PREFIX, atomic_folder, scratch_folder

HOLDER = (
    "import sys\nfrom onnxaccel.files import scratch_folder\n"
    "with scratch_folder(sys.argv[1]) as folder:\n"
    "    (folder / 'big').write_bytes(b'x' * 1000)\n    print(folder, flush=True)\n    sys.stdin.read()"
)


def holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process with a scratch folder, which ends when its standard input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_left_by_the_dead_removed_by_the_next_and_the_livings_kept(tmp_path: Path) -> None:
    (killed, left), (alive, used) = holder(tmp_path), holder(tmp_path)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL and left.is_dir()
    with scratch_folder(tmp_path) as ours:
        assert {ours, used} == set(tmp_path.iterdir()) and (used / "big").is_file()
    alive.communicate("")
    assert alive.returncode == 0 and not list(tmp_path.iterdir())
    killed.communicate("")


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / f"{PREFIX}link").symlink_to(tmp_path / "precious")
    with scratch_folder(tmp_path / "place"):
        pass
    assert (tmp_path / "precious").is_dir()


def churn(parent: str, times: int) -> int:
    """Make scratch folders, one after the other; gives how many vanished while they were in use."""
    lost = 0
    for _ in range(times):
        with scratch_folder(parent) as folder:
            (folder / "file").touch()
            lost += not (folder / "file").exists()
    return lost


def test_processes_that_make_folders_at_once_do_not_take_each_others(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.starmap(churn, [(str(tmp_path), 200)] * 4) == [0] * 4
    assert not list(tmp_path.iterdir())


def test_nothing_moves_when_the_block_fails(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path) as folder:
        (folder / "m").write_text("new")
        _ = 1 / 0
    assert [p.name for p in tmp_path.iterdir()] == ["m"] and (tmp_path / "m").read_text() == "old"


def test_a_model_is_never_beside_the_data_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each rename of a pair, what a reader (or a kill) would find."""
    seen = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append({p.name: p.read_text() for p in tmp_path.iterdir() if p.is_file()})
        replace(source, target)

    for version in ("1", "2"):
        monkeypatch.setattr(os, "replace", watched)
        with atomic_folder(tmp_path) as folder:
            (folder / "m.onnx").write_text(version)
            (folder / "m.onnx.data").write_text(version)
    assert seen == [{}, {"m.onnx.data": "1"}, {"m.onnx.data": "1"}, {"m.onnx.data": "2"}]
    assert {p.read_text() for p in tmp_path.iterdir()} == {"2"}
