"""Execution providers: their options, what is said when one is missing, and nodes that fall back."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxaccel.errors import ModelError, ProviderError
from onnxaccel.graph.model import Model, SessionSettings
from onnxaccel.runtime import providers
from onnxaccel.runtime.environment import examine
from onnxaccel.runtime.providers import libraries
from onnxaccel.runtime.providers.options import FLAG, KNOWN, NUMBER, TEXT, defaults, distribute, parse
from onnxaccel.runtime.providers.probe import explain, probe
from onnxaccel.runtime.session import Session, provider_for

OPTIONS = [(provider, name) for provider, options in KNOWN.items() for name in options]


def small_model(operator: str = "Relu") -> Model:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in ("x", "y")]
    nodes = [helper.make_node(operator, ["x"], ["h"], name="first"), helper.make_node("Neg", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


@pytest.mark.parametrize(("provider", "name"), OPTIONS)
def test_every_option_takes_its_values_and_no_others(provider: str, name: str) -> None:
    kind = KNOWN[provider][name]
    if isinstance(kind, tuple):
        right, wrong = kind, ["2x", ""]
    elif kind == NUMBER:
        right, wrong = ("0", "4096"), ["-1", "1.5", "all"]
    elif kind == TEXT:
        right, wrong = ("/a b/c",), []
    else:
        right, wrong = ("x:1x3x8x8", "x:1x3,y:2"), ["x", "1x3", "x:1,3", "x:ax2"]
    for value in right:
        assert distribute([provider, "cpu"], {name: value})[provider] == {name: value}
    for value in wrong:
        with pytest.raises(ProviderError, match=rf"option {name}={re.escape(value)}: it takes "):
            distribute([provider, "cpu"], {name: value})


def test_an_option_goes_to_each_provider_that_knows_it() -> None:
    given = distribute(
        ["tensorrt", "cuda", "cpu"], {"device_id": "1", "trt_fp16_enable": "1", "use_tf32": "1"}
    )
    assert given == {
        "tensorrt": {"device_id": "1", "trt_fp16_enable": "1"},
        "cuda": {"device_id": "1", "use_tf32": "1"},
        "cpu": {},
    }


def test_flags_are_taken_as_words_too() -> None:
    assert FLAG == ("0", "1")
    assert distribute(["cuda"], {"use_tf32": "True"}) == {"cuda": {"use_tf32": "1"}}
    assert distribute(["cuda"], {"prefer_nhwc": "off"}) == {"cuda": {"prefer_nhwc": "0"}}


BAD_OPTIONS = {
    "no value": (["use_tf32"], "cuda", "'use_tf32': write NAME=VALUE"),
    "empty value": (["use_tf32="], "cuda", "'use_tf32=': write NAME=VALUE"),
    "twice": (["use_tf32=1", "use_tf32=0"], "cuda", "use_tf32 is given twice: 1 and 0"),
    "typing error": (
        ["trt_fp16_enabled=1"],
        "tensorrt",
        r"no option 'trt_fp16_enabled'; it has trt_fp16_enable",
    ),
    "of another provider": (
        ["trt_fp16_enable=1"],
        "cuda",
        "'trt_fp16_enable' belongs to tensorrt, not to cuda",
    ),
    "no options at all": (["nonsense=1"], "cpu", "cpu has no options, 'nonsense' neither; --threads"),
    "number": (["device_id=gpu"], "cuda", "device_id=gpu: it takes a whole number"),
    "word": (["arena_extend_strategy=big"], "cuda", "it takes one of kNextPowerOfTwo, kSameAsRequested"),
    "shapes": (["trt_profile_min_shapes=1x3"], "tensorrt", "it takes shapes by input name"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_wrong_options_are_refused_before_the_device_is_asked(case: str) -> None:
    given, provider, message = BAD_OPTIONS[case]
    with pytest.raises(ProviderError, match=message):
        providers.resolve(provider, parse(given))


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert defaults("cuda", "") == {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
    one, two = defaults("tensorrt", "ort1-trt10.1"), defaults("tensorrt", "ort1-trt10.2")
    assert one["trt_engine_cache_enable"] == one["trt_timing_cache_enable"] == "1"
    assert Path(one["trt_engine_cache_path"]) == tmp_path / "onnxaccel/tensorrt/ort1-trt10.1"
    assert one["trt_engine_cache_path"] != two["trt_engine_cache_path"]  # versions do not meet
    assert Path(defaults("tensorrt-rtx", "v")["nv_runtime_cache_path"]).is_relative_to(tmp_path)
    for provider in KNOWN:
        assert set(defaults(provider, "v")) <= set(KNOWN[provider])
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Path(defaults("tensorrt", "v")["trt_timing_cache_path"]).is_relative_to(Path.home() / ".cache")


def test_cuda_graphs_are_for_those_whose_buffers_stay() -> None:
    """On by default for training steps, off in all other sessions, whatever the options say."""
    plain = providers.Provider("cuda", {"cuda": {"use_tf32": "0"}, "cpu": {}})
    off = providers.Provider("cuda", {"cuda": {"enable_cuda_graph": "0"}, "cpu": {}})
    assert plain.captures and not off.captures
    assert plain.capturing(True).options["cuda"] == {"use_tf32": "0", "enable_cuda_graph": "1"}
    assert plain.capturing(True).capturing(False).options["cuda"]["enable_cuda_graph"] == "0"
    chain = {"tensorrt": {"trt_cuda_graph_enable": "1"}, "cuda": {}, "cpu": {}}
    tensorrt = providers.Provider("tensorrt", chain)
    assert not tensorrt.captures
    assert tensorrt.capturing(False).options == {
        "tensorrt": {"trt_cuda_graph_enable": "0"},
        "cuda": {"enable_cuda_graph": "0"},
        "cpu": {},
    }
    cpu = providers.resolve("cpu")
    assert not cpu.captures and cpu.capturing(True) is cpu


def test_what_is_missing_is_named_with_the_line_that_installs_it() -> None:
    assert providers.missing("cpu") is None
    assert providers.resolve("auto").name in ("cuda", "cpu")
    for name in providers.NAMES[1:]:
        problem = providers.missing(name)
        if problem is None:
            assert providers.resolve(name).name == name
            continue
        assert "install" in problem
        with pytest.raises(
            ProviderError, match=f"execution provider '{name}' is not usable here: "
        ) as caught:
            providers.resolve(name)
        assert problem in str(caught.value)
    with pytest.raises(ProviderError, match="unknown execution provider 'abacus'; choose one of auto, cpu"):
        providers.resolve("abacus")


def _absent(library: str) -> None:
    raise OSError(f"{library}: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize(
    ("linked", "expected"),
    [
        ("12", ["libcudart.so.12", "libcufft.so.11", "nvidia-cuda-runtime-cu12", "nvidia-cudnn-cu12"]),
        ("13", ["libcudart.so.13", "libcufft.so.12", "nvidia-cuda-runtime ", "nvidia-cudnn-cu13"]),
    ],
)
def test_missing_libraries_follow_the_installed_onnxruntime(
    linked: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An onnxruntime whose CUDA provider names its cuBLAS, on a machine without NVIDIA's libraries."""
    (tmp_path / "capi").mkdir()
    provider = tmp_path / "capi/libonnxruntime_providers_cuda.so"
    provider.write_bytes(b"\x7fELF\0libcublasLt.so." + linked.encode() + b"\0")
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    assert libraries.cuda_version() == linked
    monkeypatch.setattr(libraries.ctypes, "CDLL", _absent)
    problem = libraries.missing_libraries("tensorrt") or ""
    for part in (*expected, f"(CUDA {linked})", "libnvinfer.so.10", f"tensorrt-cu{linked}<11"):
        assert part in problem
    assert problem.count("pip install") == 2  # NVIDIA's packages in one line; TensorRT from its own index


MESSAGES = {
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version": "driver is too old",
    "CUDA failure 100: no CUDA-capable device is detected ; GPU=0": "sees no device; check nvidia-smi",
    "CUDA failure 2: out of memory ; GPU=0": "no memory left",
    "CUDA failure 209: no kernel image is available for execution on the device": "compute capability",
    "[ONNXRuntimeError] : 1 : FAIL : something new\nand more": "it does not start (something new)",
    "": "it fails without a message",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_a_provider_that_does_not_start_are_explained(message: str) -> None:
    assert MESSAGES[message] in explain(message)


def test_probe_runs_a_node() -> None:
    assert probe(providers.Provider("cpu")) is None


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A provider of the stock wheel that takes no ordinary node: all fall back to the CPU."""
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no second provider")
    monkeypatch.setitem(providers._ORT_NAMES, "azure", "AzureExecutionProvider")
    yield


@pytest.mark.usefixtures("azure")
def test_nodes_that_fall_back_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        session = Session(small_model(), providers.Provider("azure"))
    assert session.elsewhere["Relu"] == ["first"] and len(session.elsewhere["Neg"]) == 1
    (record,) = caplog.records
    assert "2 of 2 nodes run on the CPU, not on azure: Relu 1, Neg 1" in record.getMessage()
    assert "--strict-ep makes this an error" in record.getMessage()


@pytest.mark.usefixtures("azure")
def test_strict_makes_the_fallback_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ProviderError, match=r"2 of 2 nodes run on the CPU, not on azure: .*'first'"):
        Session(small_model(), providers.Provider("azure", strict=True))
    Session(small_model(), providers.resolve("cpu", strict=True))  # the CPU leaves nothing
    assert not caplog.records


def test_a_provider_that_does_not_start_is_not_replaced_silently(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ProviderError, ModelError)):
        Session(
            small_model(), providers.Provider("openvino" if "openvino" not in providers.usable() else "cuda")
        )
    assert capsys.readouterr().out == ""


def test_running_out_of_memory_says_how_much_was_asked_for() -> None:
    x, y = (
        helper.make_tensor_value_info(n, t, [1])
        for n, t in (("x", TensorProto.INT64), ("y", TensorProto.FLOAT))
    )
    y.type.tensor_type.shape.dim[0].dim_param = "n"
    node = helper.make_node("ConstantOfShape", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y])
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    elements = 2**48
    with pytest.raises(
        ModelError, match=r"out of memory \(1,073,741,824 MiB more was asked for\); use a smaller"
    ):
        Session(model).run({"x": np.array([elements])})


def test_recorded_settings_are_honoured(tmp_path: Path) -> None:
    model = small_model()
    model.metadata.session = SessionSettings("cpu", threads=1, spinning=False, graph_optimization="basic")
    loaded = Model.load(model.save(tmp_path / "m.onnx"))
    assert loaded.metadata.session == model.metadata.session
    options = Session(loaded).raw.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert (
        Session(loaded, threads=2).raw.get_session_options().intra_op_num_threads == 2
    )  # what is asked wins
    assert provider_for(loaded, "auto").name == "cpu"
    loaded.metadata.session = SessionSettings("tensorrt-rtx")  # found best on another machine
    assert provider_for(loaded, "auto").name in ("cpu", "cuda", "tensorrt-rtx")


def test_doctor_finds_builds_that_overwrite_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert examine().problems == []
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.31.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (problem,) = examine().problems
    assert "onnxruntime and onnxruntime-gpu are installed together" in problem
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxaccel[gpu]'" in problem


def test_models_are_not_changed_by_a_session() -> None:
    model = small_model()
    before = onnx.ModelProto.SerializeToString(model.to_proto())
    Session(model)
    assert onnx.ModelProto.SerializeToString(model.to_proto()) == before


@pytest.mark.slow
def test_openvino_runs_and_says_what_it_does_not_take(tmp_path: Path) -> None:
    """A real second provider, in an environment that holds its onnxruntime before ours."""
    target = tmp_path / "openvino"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, "onnxruntime-openvino==1.24.1"], check=True)
    path = tmp_path / "m.onnx"
    small_model().save(path)
    np.savez(tmp_path / "d.npz", x=np.arange(12, dtype=np.float32).reshape(4, 3), y=np.arange(4) % 3)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")])
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "onnxaccel", *arguments, "--ep", "openvino"]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    data = ["--data", str(tmp_path / "d.npz")]
    done = run("evaluate", str(path), *data, "--json")
    assert done.returncode == 0 and '"provider": "openvino"' in done.stdout, done.stderr
    assert re.search(r"\d+ of \d+ nodes run on the CPU, not on openvino: ", done.stderr)
    strict = run("evaluate", str(path), *data, "--strict-ep")
    assert strict.returncode == 1 and "leave out --strict-ep to allow it" in strict.stderr
    absent = run("evaluate", str(path), *data, "--ep-option", "device_type=GPU")
    assert absent.returncode == 1 and "does not start with these options" in absent.stderr
    train = run("train", str(path), *data)
    assert train.returncode == 1 and "openvino is for inference; train with --ep cpu" in train.stderr
