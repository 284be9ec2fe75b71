"""PyTorch conversion: real files against torch's own outputs, and the trainable form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxaccel as oa
from onnxaccel.errors import ConversionError, MissingWeights
from onnxaccel.graph.model import Model
from onnxaccel.runtime.session import Session

torch = pytest.importorskip("torch")
nn = torch.nn
torch.set_num_threads(2)


@pytest.fixture
def samples(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shared / "samples" / "pytorch"
    monkeypatch.chdir(folder)  # the factories are found in the working directory, as by python -m
    return folder


SAMPLES = [
    ("digit_cnn", "weights.pth", {"factory": "sample_nets:digit_cnn"}),
    ("digit_cnn", "weights.pth", {"factory": "sample_nets:digit_cnn", "shapes": {"x": (1, 1, 28, 28)}}),
    ("digit_cnn", "weights.pth", {"factory": "sample_nets:digit_cnn", "trainable": True}),
    ("digit_cnn", "traced.pt", {}),
    ("digit_cnn", "scripted.pt", {"shapes": {"": (1, 1, 28, 28)}}),
    ("digit_cnn", "model.pt2", {}),
    ("digit_cnn", "model.pt2", {"trainable": True}),
    ("cifar_resnet20", "weights.th", {"factory": "sample_nets:cifar_resnet20"}),
    (
        "cifar_resnet20",
        "weights.th",
        {"factory": "sample_nets:cifar_resnet20", "shapes": {"x": (1, 3, 32, 32)}, "trainable": True},
    ),
    ("mtcnn_pnet", "weights.pt", {"factory": "sample_nets:mtcnn_pnet"}),
    ("mtcnn_pnet", "weights.pt", {"factory": "sample_nets:mtcnn_pnet", "trainable": True}),
]


@pytest.mark.parametrize(("name", "file", "options"), SAMPLES)
def test_samples_equal_torch(samples: Path, name: str, file: str, options: dict[str, Any]) -> None:
    model = oa.convert(samples / name / file, **options)
    assert model.metadata.max_relative_error is not None and model.metadata.max_relative_error <= 1e-5
    assert model.metadata.framework == "pytorch"
    assert model.metadata.preprocessing.layout == "NCHW"
    recorded = np.load(samples / name / "ref.npz")
    feed = {n: recorded[f"in{i}"] for i, n in enumerate(model.input_names())}
    outputs = Session(model).run(feed)
    for index, actual in enumerate(outputs.values()):
        expected = recorded[f"out{index}"]
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_torchscript_with_state_and_branches_is_refused(samples: Path) -> None:
    with pytest.raises(ConversionError, match=r"forward takes sr: int"):
        oa.convert(samples / "silero_vad" / "model.jit")


class EveryPart(nn.Module):
    """BatchNorm, a frozen BatchNorm, every dropout, tied weights, equal biases, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, momentum=0.2)
        self.frozen_norm = nn.BatchNorm2d(8)
        self.channel_dropout, self.alpha = nn.Dropout2d(0.1), nn.AlphaDropout(0.2)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.layer_norm = nn.LayerNorm(8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 5)
        for layer in (self.first, self.second, self.head):
            nn.init.zeros_(layer.bias)
        for norm in (self.norm, self.frozen_norm):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.frozen_norm(self.norm(self.conv(x))))
        x = self.alpha(self.channel_dropout(x)).mean((2, 3))
        x = torch.nn.functional.gelu(self.layer_norm(self.second(self.first(x))))
        x = self.encoder(x[:, None])[:, 0]
        return self.head(torch.nn.functional.dropout(x, 0.4, self.training))


def test_trainable_form_keeps_everything() -> None:
    torch.manual_seed(0)
    module = EveryPart()
    module.frozen_norm.eval()
    module.conv.bias.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = {name: part.training for name, part in module.named_modules()}

    model = oa.convert(module, torch.randn(1, 3, 8, 8), trainable=True)

    assert model.metadata.trainable == [n for n, p in module.named_parameters() if p.requires_grad]
    assert {part: m.training for part, m in module.named_modules()} == modes
    kept = model.weights([n for n in state if not n.endswith("num_batches_tracked") and n != "second.weight"])
    for name, array in kept.items():
        np.testing.assert_array_equal(array, state[name].numpy())
        assert torch.equal(module.state_dict()[name], state[name])
    norms = {n.inputs[3].name: n for n in model.graph if n.op_type == "BatchNormalization"}
    assert norms["norm.running_mean"].attributes["momentum"].as_float() == pytest.approx(0.8)
    assert model.metadata.frozen == [norms["frozen_norm.running_mean"].name]
    ratios = sorted(
        round(float(n.inputs[1].const_value.numpy()), 3) for n in model.graph if n.op_type == "Dropout"
    )
    assert ratios == [0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.4]
    assert len(model.graph.initializers["first.weight"].uses()) == 2
    assert model.metadata.running_variance == "unbiased"


def test_training_the_module_afterwards_does_not_change_the_graph() -> None:
    module = nn.Linear(4, 2)
    model = oa.convert(module, torch.randn(2, 4), trainable=True)
    before = model.weights(["weight"])["weight"].copy()
    with torch.no_grad():
        module.weight.add_(1)
    np.testing.assert_array_equal(model.weights(["weight"])["weight"], before)


class ManyInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 6)

    def forward(self, ids: Any, features: Any, scale: Any = None) -> Any:
        hidden = self.table(ids) * features[:, None]
        return {
            "hidden": hidden if scale is None else hidden * scale,
            "pooled": (hidden.mean(1), hidden.amax(1)),
        }


def test_several_inputs_keywords_and_nested_outputs() -> None:
    module = ManyInputs()
    keywords = {"scale": torch.randn(1, 7, 6), "features": torch.randn(1, 6)}
    model = oa.convert(
        module, torch.randint(0, 50, (1, 7)), keywords, shapes={"ids": (-1, -1), "scale": (-1, -1, 6)}
    )
    assert model.input_names() == ["ids", "features", "scale"]
    assert model.output_names() == ["hidden", "pooled.0", "pooled.1"]
    feed = {
        "ids": np.random.default_rng(0).integers(0, 50, (5, 9)),
        "features": np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32),
        "scale": np.random.default_rng(2).normal(size=(5, 9, 6)).astype(np.float32),
    }
    expected = module(*(torch.from_numpy(a) for a in feed.values()))
    actual = Session(model).run(feed)
    np.testing.assert_allclose(actual["hidden"], expected["hidden"].detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual["pooled.1"], expected["pooled"][1].detach(), rtol=1e-5, atol=1e-6)


class Returns(nn.Linear):
    """Returns its input, a parameter, one tensor twice and a number besides the result."""

    def forward(self, x: Any) -> Any:
        y = super().forward(x)
        return {"y": y, "x": x, "again": y, "weight": self.weight, "count": 3, "nothing": None}


@pytest.mark.parametrize("trainable", [False, True])
def test_names_are_kept_whatever_is_returned(trainable: bool) -> None:
    module, x = Returns(3, 2), torch.randn(4, 3)
    model = oa.convert(module, x, trainable=trainable)
    assert (model.input_names(), model.output_names()) == (["x"], ["y", "output_x", "again", "output_weight"])
    assert set(model.weights()) == {"weight", "bias"}
    actual, expected = Session(model).run({"x": x.numpy()}), module(x)
    for name in model.output_names():
        np.testing.assert_allclose(actual[name], expected[name.removeprefix("output_")].detach(), rtol=1e-6)


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if bool(x.sum() > 0) else x - 1


class FixedBatch(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.reshape(2, 12) * 2


class Noise(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + torch.randn_like(x) if self.training else x * 3


@pytest.mark.parametrize(
    ("module", "example", "options", "message"),
    [
        (Branch(), (torch.randn(2, 3),), {}, "branch that depends on its input's values.*torch.cond"),
        (FixedBatch(), (torch.randn(2, 3, 4),), {}, r"fixes a dimension .* to be a constant \(2\)"),
        (Noise(), (torch.randn(2, 3),), {"trainable": True}, "draws random numbers in training"),
        (nn.Linear(3, 2), (torch.randn(2, 4),), {}, "does not run on the example"),
        (nn.Linear(3, 2), (torch.randn(2, 3), torch.randn(2, 3)), {}, "does not fit Linear.forward"),
        (nn.Linear(3, 2), (torch.randn(2, 3),), {"shapes": {"y": (1, 3)}}, "no such input; it has input"),
        (nn.Linear(3, 2), (torch.randn(2, 3),), {"outputs": ["y"]}, "converted whole"),
        (nn.LSTM(3, 2), (), {}, "give it, for instance --shape"),
    ],
)
def test_what_cannot_be_converted_is_refused(module: Any, example: Any, options: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        oa.convert(module, *example, **options)


NETS = """
import torch
def net(width=4):
    nn = torch.nn
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
def wide():
    return net(5)
def deep():
    return torch.nn.Sequential(*net(), torch.nn.Linear(2, 2))
def broken():
    raise RuntimeError("no such width")
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = f"nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    torch.save(
        {"epoch": 3, "model": {f"module.{k}": v for k, v in scope["net"]().state_dict().items()}}, "w.pt"
    )
    return tmp_path / name


def test_checkpoints_in_every_container(nets: Path) -> None:
    from safetensors.torch import save_file

    state = {k.removeprefix("module."): v for k, v in torch.load("w.pt")["model"].items()}
    torch.save(state, "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, "w.safetensors")
    models = [oa.convert(f, factory=f"{nets.name}:net") for f in ("w.pt", "legacy.pth", "w.safetensors")]
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    first, *others = (Session(m).run({m.input_names()[0]: x})["output"] for m in models)
    for other in others:
        np.testing.assert_array_equal(other, first)
    assert [m.metadata.format for m in models] == ["state-dict", "state-dict", "safetensors"]


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("wide", MissingWeights, r"'0.weight' has shape \[4, 3\] in the file, \[5, 3\] in the module"),
        ("deep", MissingWeights, r"no weights for '3.weight' \(and 1 more\), shape \[2, 2\]"),
        ("broken", ConversionError, "RuntimeError: no such width"),
        ("absent", ConversionError, "has no attribute 'absent'"),
    ],
)
def test_weights_that_do_not_fit(nets: Path, factory: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        oa.convert("w.pt", factory=f"{nets.name}:{factory}")


def test_weights_without_a_factory(nets: Path) -> None:
    with pytest.raises(ConversionError, match="--factory module:callable"):
        oa.convert("w.pt")


@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_truncated_files(nets: Path, keep: float) -> None:
    data = Path("w.pt").read_bytes()
    Path("cut.pt").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(oa.AccelError, match="damaged or truncated"):
        oa.convert("cut.pt", factory=f"{nets.name}:net")


def test_exported_program_of_a_module_in_training_mode(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.2))
    torch.export.save(torch.export.export(module.train(), (torch.randn(2, 3, 8, 8),)), tmp_path / "m.pt2")
    model = oa.convert(tmp_path / "m.pt2", trainable=True)
    assert model.metadata.trainable == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization", "Dropout"]
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    expected = module.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(Session(model).run({"input": x})["output"], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConversionError, match="recorded in it"):
        oa.convert(tmp_path / "m.pt2", shapes={"input": (1, 3, 9, 9)})


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Linear(20, 3)], ["batch", "20"]),
        ([nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 62 * 62, 3)], ["batch", "3", "64", "64"]),
        ([nn.Conv2d(4, 4, 3, groups=2), nn.AdaptiveAvgPool2d(1)], ["batch", "4", "input_2", "input_3"]),
        ([nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2)], None),
        ([nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 61 * 61, 3)], None),
    ],
)
def test_shapes_are_found_out_where_they_can_be_told(layers: list[Any], shape: list[str] | None) -> None:
    module = nn.Sequential(*layers)
    if shape is None:
        with pytest.raises(ConversionError, match="is not recorded in the file; give it"):
            oa.convert(module)
    else:
        assert [str(dim) for dim in oa.convert(module).inputs[0].shape] == shape


def test_torchscript_keeps_both_branches(tmp_path: Path) -> None:
    torch.jit.script(Branch()).save(tmp_path / "branch.pt")
    model = oa.convert(tmp_path / "branch.pt", shapes={"x": (1, 3)})
    for x in (np.ones((2, 3), np.float32), -np.ones((2, 3), np.float32)):
        expected = Branch()(torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(Session(model).run({"x": x})["output"], expected)


def test_pickled_modules_only_on_trust(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "model": nn.Sequential(nn.Linear(3, 2))}, tmp_path / "m.pt")
    with pytest.raises(ConversionError, match="--trust-pickle"):
        oa.convert(tmp_path / "m.pt")
    model = oa.convert(tmp_path / "m.pt", trust_pickle=True, trainable=True)
    assert model.metadata.trainable == ["0.weight", "0.bias"]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_modules_keep_their_own_names(wrap: Any) -> None:
    model = oa.convert(wrap(nn.Linear(3, 2)), torch.randn(2, 3), trainable=True)
    assert (model.input_names(), model.metadata.trainable) == (["input"], ["weight", "bias"])


def test_the_model_survives_saving(tmp_path: Path) -> None:
    model = oa.convert(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(4, 3), trainable=True)
    loaded = Model.load(model.save(tmp_path / "m.onnx"))
    assert loaded.metadata == model.metadata
    assert set(loaded.weights()) >= {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
    }


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder as transformers saves it: config.json and weights without the tied lm_head."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_transformers_folder(llama: Path) -> None:
    from transformers import LlamaForCausalLM

    model = oa.convert(
        llama / "model.safetensors",
        factory=f"transformers:{llama}",
        shapes={"input_ids": (1, -1)},
        trainable=True,
    )
    assert [n for n in model.metadata.trainable or [] if "embed" in n or "head" in n] == [
        "model.embed_tokens.weight"
    ]
    ids = np.random.default_rng(0).integers(0, 50, (3, 9))
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(llama)(torch.from_numpy(ids)).logits.numpy()
    actual = Session(model).run({"input_ids": ids})["logits"]
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_transformers_decoders_are_converted_without_their_cache(llama: Path) -> None:
    from transformers import LlamaForCausalLM

    model = oa.convert(LlamaForCausalLM.from_pretrained(llama), torch.randint(0, 50, (2, 7)))
    assert (model.input_names(), model.output_names()) == (["input_ids"], ["logits"])
