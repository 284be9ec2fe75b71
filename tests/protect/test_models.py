"""Encrypted models: they train and evaluate as plain ones do, and their plaintext reaches no disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import onnxaccel as oa
from onnxaccel import protection
from onnxaccel.errors import CheckpointError, ModelError, OutputError, ProtectionError
from onnxaccel.graph import model as model_module
from onnxaccel.graph.model import Model
from onnxaccel.protect import memory
from onnxaccel.protect.keys import KEY_FILE, PASSPHRASE, Key
from onnxaccel.runtime.providers import Provider
from onnxaccel.runtime.session import Session
from tests.protect.traced import needs_strace, traced

TRAIN, HELD_OUT = "sklearn:digits#0:1500", "sklearn:digits#1500:"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trainable MLP whose weights take 6.5 MB: more than sessions are given as bytes otherwise."""
    path = tmp_path_factory.mktemp("plain") / "m.onnx"
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(64, 1500), torch.nn.ReLU(), torch.nn.Linear(1500, 1000), torch.nn.ReLU()
    ).append(torch.nn.Linear(1000, 10))
    return oa.convert(module, torch.zeros(2, 64), trainable=True).save(path)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Key:
    """A key that the environment names."""
    path = protection.generate(tmp_path / "model.key")
    monkeypatch.setenv(KEY_FILE, str(path))
    monkeypatch.delenv(PASSPHRASE, raising=False)
    return Key.from_file(path)


@pytest.fixture
def encrypted(plain: Path, key: Key, tmp_path: Path) -> Path:
    return protection.encrypt(plain, tmp_path / "e.onnx", key)


def external(plain: Path, folder: Path, location: str = "m.data") -> Path:
    """The model with its weights beside it."""
    folder.mkdir(exist_ok=True)
    (folder / location).parent.mkdir(exist_ok=True)
    proto = onnx.load(plain)
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location=location)
    return folder / "m.onnx"


def test_trains_to_the_same_weights(plain: Path, encrypted: Path, tmp_path: Path) -> None:
    """Encrypted and plain, with checkpoints, interrupted and resumed: equal to the last bit."""

    def trained(source: Path, name: str) -> tuple[Path, list[float | None]]:
        for epochs in (1, 2):
            trainer = oa.Trainer(source, optimizer=oa.optimizers.SGD(0.1, momentum=0.9), ep="cpu", threads=1)
            history = trainer.fit(
                TRAIN,
                HELD_OUT,
                epochs=epochs,
                checkpoint_folder=tmp_path / name,
                resume=epochs > 1,
                best=True,
            )
        assert history.steps == 2 * 24
        return trainer.export(tmp_path / f"{name}.onnx"), [epoch.val_loss for epoch in history.epochs]

    (one, losses), (other, same) = trained(plain, "plain"), trained(encrypted, "secret")
    assert losses == same
    ours, theirs = Model.load(one).weights(), Model.load(other).weights()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert oa.evaluate(one, HELD_OUT).loss == oa.evaluate(other, HELD_OUT).loss
    written = [*(tmp_path / "secret").glob("*.safetensors"), other]
    assert len(written) == 4 and all(map(protection.is_sealed, written))
    assert not protection.is_sealed(one)


def test_checkpoints_are_of_the_same_kind_as_the_model(plain: Path, encrypted: Path, tmp_path: Path) -> None:
    """A plain one may be anyone's; and who resumes an encrypted one must not go on in the open."""
    for first, second, words in (
        (plain, encrypted, "not encrypted, and the model is encrypted"),
        (encrypted, plain, "encrypted, and the model is not"),
    ):
        folder = tmp_path / first.stem
        oa.Trainer(first, ep="cpu").fit("sklearn:digits#0:64", epochs=1, checkpoint_folder=folder)
        with pytest.raises(CheckpointError, match=words):
            oa.Trainer(second, ep="cpu").fit(
                "sklearn:digits#0:64", epochs=2, checkpoint_folder=folder, resume=True
            )


@pytest.mark.parametrize("location", ["m.data", "weights/of/m.data"])
def test_external_data_is_packed_and_comes_back(plain: Path, key: Key, tmp_path: Path, location: str) -> None:
    if "/" in location:
        (tmp_path / "model" / "weights").mkdir(parents=True)
    source = external(plain, tmp_path / "model", location)
    sealed = protection.encrypt(source, tmp_path / "e.onnx", key)
    expected = Model.load(plain).weights()
    assert all(np.array_equal(expected[n], a) for n, a in Model.load(sealed).weights().items())
    (tmp_path / "back").mkdir()
    written = protection.decrypt(sealed, tmp_path / "back" / "other.onnx")
    assert [p.relative_to(tmp_path / "back").as_posix() for p in written] == ["other.onnx", location]
    assert written[0].read_bytes() == source.read_bytes()
    assert written[1].read_bytes() == (source.parent / location).read_bytes()
    with pytest.raises(OutputError, match="there is a file of that name"):
        protection.decrypt(sealed, tmp_path / "back" / "third.onnx")
    assert len([p for p in (tmp_path / "back").rglob("*") if p.is_file()]) == 2


def test_over_the_limit_of_a_message(
    plain: Path, encrypted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights over 2 GB (here: 1 MB) the container holds them as external data."""
    monkeypatch.setattr(model_module, "PROTO_LIMIT", 2**20)
    big = Model.load(encrypted).save(tmp_path / "big.onnx")
    written = protection.decrypt(big, tmp_path / "back.onnx")
    assert [p.name for p in written] == ["back.onnx", "big.onnx.data"]
    onnx.checker.check_model(tmp_path / "back.onnx", full_check=True)
    expected = Model.load(plain).weights()
    for model in (Model.load(big), Model.load(tmp_path / "back.onnx")):
        assert all(np.array_equal(expected[name], array) for name, array in model.weights().items())
    x = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    (y,) = Session(Model.load(big)).run({Model.load(big).input_names()[0]: x}).values()
    (expected_y,) = Session(Model.load(plain)).run({Model.load(plain).input_names()[0]: x}).values()
    np.testing.assert_array_equal(y, expected_y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_weights_of_every_type_reach_the_session(dtype: torch.dtype, key: Key, tmp_path: Path) -> None:
    kind = {torch.float16: 10, torch.bfloat16: 16, torch.float64: 11, torch.int8: 3}[dtype]
    values = torch.arange(2**20 + 8).remainder(100).to(dtype)
    raw = values.view(torch.uint8).numpy().tobytes()
    weight = onnx.TensorProto(name="w", data_type=kind, dims=[len(values)], raw_data=raw)
    nodes = [
        onnx.helper.make_node("Cast", ["w"], ["c"], to=1),
        onnx.helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    shape = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [shape("x", 1, [1])], [shape("y", 1, [len(values)])], [weight])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(proto, tmp_path / "m.onnx")
    model = Model.load(protection.encrypt(tmp_path / "m.onnx", tmp_path / "e.onnx", key))
    found = Session(model).run({"x": np.ones(1, np.float32)})["y"]
    np.testing.assert_array_equal(found, values.float().numpy() + 1)


def test_what_comes_of_an_encrypted_model_is_encrypted(encrypted: Path, tmp_path: Path) -> None:
    model = Model.load(encrypted)
    model.check()
    derived = {
        "copy": model.copy(),
        "gradient": oa.gradient(model, wrt="parameters"),
        "trained": oa.Trainer(model, num_classes=5, freeze=["0.*"], ep="cpu").model(),
    }
    for name, result in derived.items():
        assert protection.is_sealed(result.save(tmp_path / f"{name}.onnx")), name
    model.key = None
    assert not protection.is_sealed(model.save(tmp_path / "open.onnx"))


def _outside(plain: Path, tmp: Path) -> Path:
    source = external(plain, tmp / "model")
    (tmp / "model" / "m.data").rename(tmp / "elsewhere")
    (tmp / "model" / "m.data").symlink_to(tmp / "elsewhere")
    return source


def _no_model(plain: Path, tmp: Path) -> Path:
    (tmp / "m.onnx").write_bytes(os.urandom(1000))
    return tmp / "m.onnx"


BAD: dict[str, tuple[Callable[[Path, Path], Path], type[Exception], str]] = {
    "no file": (lambda plain, tmp: tmp / "none.onnx", ModelError, "no such file"),
    "no model": (_no_model, ModelError, "not a"),
    "encrypted": (
        lambda plain, tmp: protection.encrypt(plain, tmp / "twice.onnx", Key(bytes(32))),
        ProtectionError,
        "encrypted already",
    ),
    "data outside": (_outside, ModelError, "outside the model's folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_encrypted(case: str, plain: Path, key: Key, tmp_path: Path) -> None:
    make, kind, words = BAD[case]
    with pytest.raises(kind, match=words):
        protection.encrypt(make(plain, tmp_path), tmp_path / "out.onnx", key)
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_that_lacks_its_data(plain: Path, key: Key, tmp_path: Path) -> None:
    """A container whose model refers to data that is not in it; only who has the key can make one."""
    source = external(plain, tmp_path / "model")
    shutil.copy(source, tmp_path / "model" / "m.safetensors")  # encrypted as it is, without its data
    alone = protection.encrypt(tmp_path / "model" / "m.safetensors", tmp_path / "e.onnx", key)
    with pytest.raises(ModelError, match=r"the data of tensor .* is not in it"):
        Model.load(alone)


def test_providers_keep_no_files_of_an_encrypted_model() -> None:
    given = {
        "tensorrt": {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "/c",
            "trt_timing_cache_enable": "1",
        },
        "openvino": {"cache_dir": "/c"},
    }
    found = Provider("tensorrt", given).without_files().options
    assert found == {
        "tensorrt": {"trt_engine_cache_enable": "0", "trt_timing_cache_enable": "1"},
        "openvino": {},
    }


def test_folders_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with memory.memory_folder() as folder:
        assert os.statvfs(folder).f_fsid == os.statvfs("/dev/shm").f_fsid or "XDG_RUNTIME_DIR" in os.environ
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv(memory.MEMORY_FOLDER, str(tmp_path / "none"))
    with pytest.raises(ProtectionError, match="none is no folder in memory; mount a tmpfs"):
        memory.memory_folder().__enter__()


@needs_strace
def test_no_plaintext_is_written(plain: Path, encrypted: Path, tmp_path: Path) -> None:
    """All that a training writes, seen by strace: the model's bytes, before and after, are nowhere."""
    folder = tmp_path / "run"
    folder.mkdir()
    options = ["--ep", "cpu", "--epochs", 1, "--threads", 1, "--checkpoint", "c", "--logdir", "logs"]
    commands: list[list[object]] = [
        ["train", encrypted, "--data", "sklearn:digits#0:200", "--val", HELD_OUT, *options, "-o", "t.onnx"],
        ["gradient", "t.onnx", "--wrt", "parameters"],
    ]
    traces = [traced(*command, cwd=folder) for command in commands]
    assert [trace.status for trace in traces] == [0, 0], [trace.output for trace in traces]
    secrets = [plain.read_bytes()]
    for name in ("t.onnx", "t.gradient.onnx", *(f"c/{p.name}" for p in (folder / "c").glob("*.safetensors"))):
        copy = protection.decrypt(folder / name, tmp_path / f"open-{Path(name).name}")[0]
        secrets.append(copy.read_bytes())
    wrote = [path for trace in traces for path in trace.on_disk()]
    assert any("t.onnx" in path for path in wrote) and any("safetensors" in path for path in wrote)
    assert [trace.leaks(secrets) for trace in traces] == [[], []]
    weights = np.ascontiguousarray(next(a for a in Model.load(plain).weights().values() if a.size > 10**6))
    needle = weights.tobytes()[5000:5048]
    assert needle in secrets[0]
    assert [p for p in folder.rglob("*") if p.is_file() and needle in p.read_bytes()] == []


@needs_strace
def test_plaintext_would_be_seen(plain: Path, tmp_path: Path) -> None:
    """The same search finds the weights that a plain model's training writes."""
    (tmp_path / "run").mkdir()
    options = ["--data", "sklearn:digits#0:64", "--ep", "cpu", "--epochs", 1, "-o", "t.onnx"]
    trace = traced("train", plain, *options, cwd=tmp_path / "run")
    assert trace.status == 0, trace.output
    assert trace.leaks([(tmp_path / "run" / "t.onnx").read_bytes()])
