"""Hostile PyTorch files, built here: refused, and nothing written."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onnxaccel as oa
from onnxaccel.converters.pytorch.sandbox import Sandbox
from onnxaccel.converters.pytorch.scan import scan_exported_program
from onnxaccel.errors import ConversionError

torch = pytest.importorskip("torch")


class Bomb:
    """Unpickled, it creates a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "written-by-the-file"


def edited(source: Path, changes: dict[str, Callable[[bytes], bytes]], added: dict[str, bytes]) -> Path:
    """A copy of a zip archive with members changed (by the end of their name) or added."""
    copy = source.with_name("edited" + source.suffix)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            for tail, change in changes.items():
                if name.endswith(tail):
                    content = change(content)
            new.writestr(name, content)
        for name, content in added.items():
            new.writestr(name, content)
    return copy


@pytest.mark.parametrize("new_format", [True, False])
def test_pickle(tmp_path: Path, target: Path, new_format: bool) -> None:
    torch.save(
        {"weight": torch.ones(2), "x": Bomb(target)},
        tmp_path / "w.pt",
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(ConversionError, match=r"would run code from the file \(it calls posix.mkdir\)"):
        oa.convert(tmp_path / "w.pt", factory="nets:net")
    assert not target.exists()


def test_plain_pickle(tmp_path: Path, target: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Bomb(target), protocol=2))
    with pytest.raises(ConversionError):
        oa.convert(tmp_path / "w.pt", factory="nets:net")
    assert not target.exists()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    batch = torch.export.Dim("batch")
    module = torch.nn.Linear(3, 2)
    exported = torch.export.export(module, (torch.randn(2, 3),), dynamic_shapes={"input": {0: batch}})
    torch.export.save(exported, tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def torch_pickle(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_pickles_within_an_exported_program(program: Path, target: Path) -> None:
    bomb = torch_pickle(((Bomb(target),), {}))
    for tail in ("sample_inputs/model.pt", "weights/weight_0"):
        hostile = edited(program, {tail: lambda _: bomb}, {})
        with pytest.raises(ConversionError, match="would run code when loaded"):
            oa.convert(hostile)
    hostile = edited(program, {}, {"model/data/constants/custom_obj_0": b"anything"})
    with pytest.raises(ConversionError, match="custom object"):
        oa.convert(hostile)
    assert not target.exists()


def hostile_values(target: Path) -> dict[str, dict[str, Any]]:
    """Places of a program's JSON that torch would take for Python."""
    code = f"__import__('os').mkdir('{target}')"
    return {
        "shape": {"expr_str": code},
        "shape by attributes": {"expr_str": f"Symbol('x').func.os.mkdir('{target}')"},
        "guard": {"guards_code": [code]},
        "operator": {"target": "torch.os.mkdir"},
        "operator that writes": {"target": "torch.ops.aten.save.default"},
        "library": {"target": "torch.ops.load_library"},
        "argument's name": {"name": f"x=1 or {code})#"},
    }


@pytest.mark.parametrize("place", hostile_values(Path("x")))
def test_code_in_the_graph_of_an_exported_program(program: Path, target: Path, place: str) -> None:
    values = hostile_values(target)[place]

    def poisoned(item: Any) -> Any:
        if isinstance(item, list):
            return [poisoned(entry) for entry in item]
        if isinstance(item, dict):
            return {k: values.get(k, poisoned(v)) for k, v in item.items()}
        return item

    def change(content: bytes) -> bytes:
        changed = json.dumps(poisoned(json.loads(content))).encode()
        assert changed != content
        return changed

    with pytest.raises(ConversionError, match="could run code"):
        oa.convert(edited(program, {"models/model.json": change}, {}))
    assert not target.exists()


def test_guards_and_relations_of_sizes_pass_the_scan(tmp_path: Path) -> None:
    class Related(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.reshape(x.shape[0] // 2 * 2, -1).flatten(), y])[: y.shape[0] // 3] * 2

    axes = {"x": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}, "y": {0: torch.export.Dim.AUTO}}
    exported = torch.export.export(Related(), (torch.randn(4, 6), torch.randn(7)), dynamic_shapes=axes)
    torch.export.save(exported, tmp_path / "m.pt2")
    scan_exported_program(tmp_path / "m.pt2", trust_pickle=False)


def test_paths_out_of_the_archive(program: Path) -> None:
    for name in ("../evil", "/tmp/evil", "model/../../evil"):
        with pytest.raises(ConversionError, match="points outside the archive"):
            oa.convert(edited(program, {}, {name: b"x"}))


def test_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(100 * 2**20))
    with pytest.raises(ConversionError, match="are no saved model"):
        oa.convert(tmp_path / "w.pt", factory="nets:net")


class Writes(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.ops.aten.save(x, self.path)
        return x * 2


def test_torchscript_that_writes_a_file(tmp_path: Path, target: Path) -> None:
    module = torch.jit.script(Writes(str(target)))
    module(torch.ones(1))
    target.unlink()  # so it does write where nothing holds it
    module.save(tmp_path / "writes.pt")
    with pytest.raises(ConversionError, match="touches files"):
        oa.convert(tmp_path / "writes.pt", shapes={"x": (1, 3)})
    # with the scan switched off, the confined process still holds
    oa.convert(tmp_path / "writes.pt", shapes={"x": (1, 3)}, trust_pickle=True)
    assert not target.exists()


class Spins(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(x.sum() == x.sum()):
            x = x + 1
        return x


class Hoards(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(1 << 31).sum()


def test_torchscript_over_its_limits(tmp_path: Path) -> None:
    torch.jit.script(Hoards()).save(tmp_path / "hoards.pt")
    with pytest.raises(ConversionError, match="DefaultCPUAllocator: can't allocate memory"):
        oa.convert(tmp_path / "hoards.pt", shapes={"x": (1, 3)})

    torch.jit.script(Spins()).save(tmp_path / "spins.pt")
    sandbox = Sandbox(tmp_path / "spins.pt", seconds=8)
    shapes = {"shapes": {"x": [1, 3]}, "dim_names": {}}
    request = {"format": "torchscript", "opset": 18, "trainable": False} | shapes
    try:
        with pytest.raises(ConversionError, match="more than 8 seconds"):
            sandbox.ask("export", request)
    finally:
        sandbox.close()
