"""What `onnxaccel optimize` finds for four kinds of network on this machine, as one table.

    python benchmarks/optimize_cpu.py [--models resnet20,mobilenet,bert,lstm] [--rounds 5] [--json FILE]

resnet20 is a CIFAR-10 network with trained weights, judged on real images (both from ../shared); the others
have random weights and inputs, so that their error is the relative one.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared"


def resnet20() -> tuple[Any, str | None]:
    """He et al.'s CIFAR-10 ResNet with trained weights, and the test images."""
    import torch

    import onnxaccel as oa

    sys.path.insert(0, str(SHARED / "samples/pytorch"))
    import sample_nets

    stored = torch.load(SHARED / "samples/pytorch/cifar_resnet20/weights.th", "cpu", weights_only=True)
    net = sample_nets.cifar_resnet20()
    net.load_state_dict({name.removeprefix("module."): w for name, w in stored["state_dict"].items()})
    model = oa.convert(net.eval(), torch.randn(2, 3, 32, 32))
    model.metadata.preprocessing.mean = [123.675, 116.28, 103.53]
    model.metadata.preprocessing.scale = 1 / 57.4  # ImageNet's deviation, the same for all channels
    return model, str(SHARED / "data/cifar10/test")


def mobilenet() -> tuple[Any, None]:
    """MobileNetV2's blocks at 160 pixels."""
    import torch
    from torch import nn

    import onnxaccel as oa

    def conv(
        inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
    ) -> Any:
        layers = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        return nn.Sequential(*layers, *([nn.ReLU6()] if act else []))

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int, widen: int) -> None:
            super().__init__()
            inner = inputs * widen
            self.adds = stride == 1 and inputs == outputs
            self.body = nn.Sequential(
                conv(inputs, inner, 1),
                conv(inner, inner, 3, stride, inner),
                conv(inner, outputs, 1, act=False),
            )

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.adds else self.body(x)

    torch.manual_seed(0)
    layers, width = [conv(3, 32, 3, 2)], 32
    blocks = "1,16,1,1 6,24,2,2 6,32,3,2 6,64,4,2 6,96,3,1 6,160,3,2 6,320,1,1"
    for widen, outputs, count, stride in (map(int, block.split(",")) for block in blocks.split()):
        for index in range(count):
            layers.append(Block(width, outputs, stride if index == 0 else 1, widen))
            width = outputs
    head = [conv(320, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    net = nn.Sequential(*layers, *head).train()
    with torch.no_grad():
        for _ in range(3):  # running statistics that fit
            net(torch.randn(8, 3, 160, 160))
    return oa.convert(net.eval(), torch.randn(2, 3, 160, 160)), None


def bert() -> tuple[Any, None]:
    """Four of BERT's layers, 256 wide, over 64 tokens."""
    import torch
    from transformers import BertConfig, BertModel

    import onnxaccel as oa

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(
                hidden_size=256,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=1024,
                vocab_size=8000,
                attn_implementation="eager",
            )
            self.bert = BertModel(config)
            self.head = torch.nn.Linear(256, 10)

        def forward(self, tokens: Any) -> Any:
            return self.head(self.bert(tokens).pooler_output)

    torch.manual_seed(0)
    return oa.convert(Classifier().eval(), torch.randint(0, 8000, (2, 64))), None


def lstm() -> tuple[Any, None]:
    """Two LSTM layers, 256 wide, over 50 steps."""
    import torch

    import onnxaccel as oa

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(64, 256, 2, batch_first=True)
            self.head = torch.nn.Linear(256, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    return oa.convert(Classifier().eval(), torch.randn(2, 50, 64)), None


MODELS = {"resnet20": resnet20, "mobilenet": mobilenet, "bert": bert, "lstm": lstm}


def main() -> None:
    """Run the benchmark and print the tables."""
    from onnxaccel.report.terminal import show_optimization
    from onnxaccel.runtime.optimize import optimize

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--max-error", type=float, default=0.01)
    parser.add_argument("--patience", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {}
    for name in options.models.split(","):
        model, data = MODELS[name]()
        result = optimize(
            model,
            data,
            max_error=options.max_error,
            rounds=options.rounds,
            seconds=options.seconds,
            patience=options.patience,
            with_profile=True,
            progress=lambda line: print(line, file=sys.stderr),
        )
        print(f"== {name}")
        show_optimization(result)
        for warning in result.warnings:
            print(f"warning: {warning}")
        found[name] = asdict(result)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
