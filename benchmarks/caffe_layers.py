"""Every Caffe layer type against a real Caffe.

Writes docs/measurements/caffe_layers.md, and the references that the tests use where there is no Caffe.

python benchmarks/caffe_layers.py           needs a real Caffe (make caffe)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import onnxaccel as oa  # noqa: E402
from onnxaccel.converters.caffe.reference import RealCaffe, caffe_home  # noqa: E402
from onnxaccel.converters.gate import relative_error, row_error  # noqa: E402
from onnxaccel.runtime.session import Session  # noqa: E402
from tests.converters.caffe import test_detection, test_reading  # noqa: E402
from tests.converters.caffe.case import STORED, Array, Case  # noqa: E402
from tests.converters.caffe.cases import CASES  # noqa: E402
from tests.converters.caffe.test_layers import ask_caffe, worst  # noqa: E402

HEAD = """# Caffe's layers, one by one

Written by `benchmarks/caffe_layers.py`. Each row is a layer type; each set of parameters is a network of that
one layer with random weights and inputs, at the declared batch size and, where Caffe allows it, at another
one. The error is `max|ours - theirs| / max|theirs|`, the largest over all tops and batch sizes. Compared
with: *Caffe*, a real one (`make caffe`); *Caffe, rewritten*, the same made up of layers that this Caffe has;
*formula*, written from the layer's definition in numpy, where no Caffe at hand has it.

| layer | sets of parameters | compared with | largest error |
|---|---|---|---|
"""


def main() -> None:
    """Run all cases and write the table."""
    home = caffe_home()
    if home is None:
        sys.exit("error: no real Caffe on this machine; make caffe builds one")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        caffe = RealCaffe(home)
        references = ask_caffe(caffe, folder)
        rows: dict[str, list[tuple[Case, float]]] = {}
        for case in CASES:
            expected = references[str(case)] if case.formula is None else list(case.by_formula())
            rows.setdefault(case.type, []).append((case, worst(case, expected, folder)))
        arrays, detectors = _detectors(caffe, folder)
        for name, tops in test_reading.ask_caffe(caffe, folder / "reading").items():
            arrays |= {f"reading/{name}/{top}": value for top, value in tops.items()}
    table = [_row(kind, tried) for kind, tried in sorted(rows.items(), key=lambda item: item[0].lower())]
    table += detectors
    target = ROOT / "docs/measurements/caffe_layers.md"
    target.write_text(
        HEAD
        + "\n".join(table)
        + f"\n\n{len(CASES)} sets of parameters of {len(rows)} layer types, and the heads of detectors.\n"
    )
    arrays |= {
        f"{name}/{run}/{top}": value
        for name, results in references.items()
        for run, tops in enumerate(results)
        if isinstance(tops, dict)
        for top, value in tops.items()
    }
    np.savez_compressed(STORED, **arrays)
    print(f"wrote {target.relative_to(ROOT)} and {STORED.relative_to(ROOT)}")


def _detectors(caffe: RealCaffe, folder: Path) -> tuple[dict[str, Array], list[str]]:
    """What Caffe gives for the networks of detectors, and their rows of the table."""
    for part in ("detection", "reading", "ours"):
        (folder / part).mkdir()
    expected = test_detection.ask_caffe(caffe, folder / "detection")
    errors: dict[str, list[float]] = {}
    for name, net in test_detection.NETS.items():
        model = oa.convert(*net.write(folder / "ours"), verify=False)
        got = Session(model).run(net.feed)[net.output]
        measure = relative_error if name.startswith("priors") else row_error
        errors.setdefault(name.split(":")[0], []).append(measure(got, expected[name]))
    rows = []
    for part, kind, settings in (
        ("priors", "PriorBox", "; ".join(f"`{s}`" for s in test_detection.PRIORS.values())),
        ("boxes", "DetectionOutput", "; ".join(test_detection.BOXES) + "; each for 1 and 3 images"),
        ("ssd", "a whole SSD", "two feature maps, 5 classes, 2 images"),
    ):
        rows.append(f"| {kind} | {settings} | Caffe | {max(errors[part]):.1e} |")
    return {f"detection/{n}/{test_detection.NETS[n].output}": value for n, value in expected.items()}, rows


def _row(kind: str, tried: list[tuple[Case, float]]) -> str:
    ways = {_oracle(case) for case, _ in tried}
    settings = dict.fromkeys(_said(case) for case, _ in tried)
    error = max(error for _, error in tried)
    return f"| {kind} | {'; '.join(settings)} | {', '.join(sorted(ways))} | {error:.1e} |"


def _oracle(case: Case) -> str:
    return "formula" if case.formula is not None else "Caffe, rewritten" if case.as_caffe else "Caffe"


def _said(case: Case) -> str:
    text = case.settings or "defaults"
    if len(case.inputs) > 1:
        text += f" ({len(case.inputs)} bottoms)"
    return f"`{text}`" + (", trainable form" if case.trained else "")


if __name__ == "__main__":
    main()
