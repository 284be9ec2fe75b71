"""What goes into a PyTorch conversion: sizes and their names, containers of weights, what is not free."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel.converters import gate
from onnxaccel.converters.contract import Conversion
from onnxaccel.errors import ConversionError, MissingDependency, MissingWeights, ParityError
from onnxaccel.runtime.session import Session

torch = pytest.importorskip("torch")
nn = torch.nn
torch.set_num_threads(2)


def encoder(batch_first: bool) -> Any:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


class Recurrent(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.LSTM(5, 6, **options)

    def forward(self, x: Any, state: Any = None) -> Any:
        return self.layer(x, state)


class TimeFirst(nn.Module):
    """nn.RNN is traced step by step, so that axis 0 is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.RNN(5, 6)

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0][-1]


class Skip(nn.Module):
    """Runs at multiples of 8 only, of which the smallest is special."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return y + nn.functional.interpolate(nn.functional.max_pool2d(y, 8), scale_factor=8)


STATE = (torch.randn(1, 4, 6), torch.randn(1, 4, 6))


@pytest.mark.parametrize(
    ("module", "example", "shapes", "dims"),
    [
        (nn.Linear(3, 2), [torch.randn(1, 3)], {}, ["batch,3"]),
        (encoder(True), [torch.randn(4, 7, 8)], {"src": ("batch", "length", 8)}, ["batch,length,8"]),
        (encoder(False), [torch.randn(7, 4, 8)], {"src": ("length", "batch", 8)}, ["length,batch,8"]),
        (Recurrent(batch_first=True), [torch.randn(4, 7, 5)], {}, ["batch,7,5"]),
        (Recurrent(batch_first=True), [torch.randn(4, 7, 5)], {"x": (-1, "length", 5)}, ["batch,length,5"]),
        (Recurrent(), [torch.randn(7, 4, 5)], {"x": (7, "batch", 5)}, ["7,batch,5"]),
        (Recurrent(), [torch.randn(7, 4, 5)], {}, ["batch,x_1,5"]),
        (Recurrent(), [torch.randn(7, 4, 5), STATE], {}, ["batch,x_1,5", "1,x_1,6", "1,x_1,6"]),
        (TimeFirst(), [torch.randn(7, 4, 5)], {}, ["7,batch,5"]),
        (
            Recurrent(batch_first=True),
            [torch.randn(4, 7, 5), STATE],
            {},
            ["batch,7,5", "1,batch,6", "1,batch,6"],
        ),
        (Skip(), [torch.randn(2, 3, 32, 32)], {"x": (-1, 3, "height", -1)}, ["batch,3,height,x_3"]),
    ],
)
def test_dynamic_dimensions(module: Any, example: Any, shapes: Any, dims: list[str]) -> None:
    model = oa.convert(module.eval(), *example, shapes=shapes)
    assert [",".join(str(getattr(d, "value", d)) for d in v.shape) for v in model.inputs] == dims
    assert model.metadata.max_relative_error is not None and model.metadata.max_relative_error <= 1e-5


def test_dimensions_of_torchscript_are_named(tmp_path: Path) -> None:
    torch.jit.trace(nn.Embedding(9, 4), torch.randint(0, 9, (2, 5))).save(tmp_path / "m.pt")
    model = oa.convert(tmp_path / "m.pt", shapes={"input": (1, "length")})
    assert str(model.inputs[0].shape) == "[batch,length]"


class Drops(nn.Module):
    """Dropout within attention, between recurrent layers, and of SELU's kind."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, 0.4, batch_first=True)
        self.recurrent, self.alpha = nn.GRU(8, 8, 2, dropout=0.4, batch_first=True), nn.AlphaDropout(0.4)

    def forward(self, x: Any) -> Any:
        return self.alpha(self.recurrent(self.attend(x))[0])


def test_programs_exported_in_training_mode_are_converted_for_inference(tmp_path: Path) -> None:
    module, x = Drops().train(), torch.randn(2, 5, 8)
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "m.pt2")
    actual = Session(oa.convert(tmp_path / "m.pt2")).run({"x": x.numpy()})["output"]
    np.testing.assert_allclose(actual, module.eval()(x).detach(), rtol=1e-4, atol=1e-5)


class Joined(nn.Module):
    def forward(self, ids: Any, mask: Any) -> Any:
        return torch.cat([ids.float(), mask.float() * 2], 1).cumsum(1)


def test_equal_names_are_one_dimension() -> None:
    shapes = {"ids": ("batch", "length"), "mask": ("batch", "length")}
    model = oa.convert(Joined(), torch.randint(0, 9, (2, 5)), torch.randint(0, 2, (2, 5)), shapes=shapes)
    assert len({str(value.shape) for value in model.inputs}) == 1


class Bags(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.bags = nn.EmbeddingBag(20, 6, **options)

    def forward(self, *inputs: Any) -> Any:
        return self.bags(*inputs)


@pytest.mark.parametrize("options", [{}, {"mode": "sum"}, {"mode": "max"}, {"padding_idx": 3}])
@pytest.mark.parametrize("with_offsets", [False, True])
def test_embedding_bags(options: dict[str, Any], with_offsets: bool) -> None:
    """Offsets must rise from 0, which random integers do not: the example's own are fed."""
    inputs = [torch.randint(0, 20, (12,)), torch.tensor([0, 3, 3, 7])]
    model = oa.convert(Bags(**options), *(inputs if with_offsets else [torch.randint(0, 20, (4, 5))]))
    assert model.metadata.max_relative_error is not None and model.metadata.max_relative_error <= 1e-5


@dataclasses.dataclass
class Result:
    scores: Any
    hidden: Any = None


class ReturnsDataclass(nn.Linear):
    def forward(self, x: Any) -> Any:
        return Result(super().forward(x))


def test_dataclasses_are_looked_into() -> None:
    assert oa.convert(ReturnsDataclass(3, 2), torch.randn(2, 3)).output_names() == ["scores"]


class Random(nn.Module):
    def forward(self, x: Any) -> Any:
        return nn.functional.dropout(x, 0.5)


class Median(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.median(-1)[0]


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Random(), {}, "another output 'output' each time"),
        (Median(), {}, "no ONNX form of aten.median.dim"),
        (nn.Linear(3, 2).bfloat16(), {}, r"weight is torch.bfloat16.*module.float\(\)"),
        (nn.Linear(3, 2).half(), {"trainable": True}, "training is in float32"),
    ],
)
def test_refusals_say_what_to_do(module: Any, options: Any, message: str) -> None:
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    with pytest.raises(ConversionError, match=message):
        oa.convert(module, torch.randn(2, 3).to(dtype), **options)


class Either(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v - 1, (x,))


@pytest.mark.parametrize("branch", ["then_branch", "else_branch"])
def test_the_gate_takes_every_branch(branch: str) -> None:
    model = oa.convert(Either(), torch.randn(2, 3))
    node = next(node for node in model.graph if node.op_type == "If")
    constant = next(
        value
        for n in node.attributes[branch].as_graph()
        for value in n.inputs
        if value.const_value is not None
    )
    constant.const_value = type(constant.const_value)(constant.const_value.numpy() + 1, name=constant.name)
    conversion = Conversion(
        model, lambda feed: {"output": Either()(torch.from_numpy(feed["x"])).numpy()}, "PyTorch"
    )
    with pytest.raises(ParityError, match="differs from PyTorch"):
        gate.verify(conversion, 1e-4)


NETS = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    def forward(self, x):
        return self.decoder(self.encoder(x))
def half():
    return Net().half()
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / f"nets_{tmp_path.name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "nets"}
    exec(NETS, scope)
    torch.manual_seed(0)
    return scope["Net"]()


CONTAINERS = {
    "plain": lambda state: state,
    "lightning": lambda state: {
        "state_dict": {f"model.{k}": v for k, v in state.items()} | {"criterion.weight": torch.ones(2)},
        "epoch": 3,
    },
    "doubly wrapped": lambda state: {"model": {f"module.model.{k}": v for k, v in state.items()}},
    "unusual key": lambda state: {"params_ema": dict(state), "step": 7},
    "one per part": lambda state: {
        part: {k.split(".")[1]: v for k, v in state.items() if k.startswith(part)}
        for part in ("encoder", "decoder")
    },
    "half precision": lambda state: {k: v.half() for k, v in state.items()},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("legacy", [False, True])
def test_containers_of_weights(net: Any, container: str, legacy: bool) -> None:
    content = CONTAINERS[container](net.state_dict())
    torch.save(content, "w.pt", _use_new_zipfile_serialization=not legacy)
    model = oa.convert("w.pt", factory=f"nets_{Path.cwd().name}:Net")
    x = torch.randn(5, 3)
    if container == "half precision":
        net.half().float()
    actual = Session(model).run({"x": x.numpy()})["output"]
    np.testing.assert_allclose(actual, net(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_factory_of_half_precision_is_converted_in_float32(net: Any) -> None:
    torch.save(net.state_dict(), "w.pt")
    lines: list[str] = []
    model = oa.convert("w.pt", factory=f"nets_{Path.cwd().name}:half", trainable=True, progress=lines.append)
    assert {array.dtype for array in model.weights().values()} == {np.dtype(np.float32)}
    assert any("float16 weights are converted as float32" in line for line in lines)


def test_weights_of_another_module(net: Any) -> None:
    torch.save({f"other.{k}": v for k, v in nn.LSTM(3, 3).state_dict().items()}, "w.pt")
    with pytest.raises(
        MissingWeights, match=r"no weights for 'encoder.weight' .* the file has 'other.weight_ih_l0'"
    ):
        oa.convert("w.pt", factory=f"nets_{Path.cwd().name}:Net")


def test_factories_that_are_not_there(net: Any) -> None:
    torch.save(net.state_dict(), "w.pt")
    with pytest.raises(ConversionError, match=r"no config\.json in that folder"):
        oa.convert("w.pt", factory="transformers:./nowhere")
    try:
        import timm
    except ImportError:
        with pytest.raises(MissingDependency, match=r"onnxaccel\[timm\]"):
            oa.convert("w.pt", factory="timm:resnet18")
    else:
        state = timm.create_model("resnet18", num_classes=7).state_dict()
        torch.save(state, "w.pt")
        model = oa.convert("w.pt", factory="timm:resnet18,num_classes=7", shapes={"x": (1, 3, 64, 64)})
        assert model.metadata.max_relative_error is not None
