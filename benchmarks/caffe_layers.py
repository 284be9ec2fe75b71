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

from onnxaccel.converters.caffe.reference import RealCaffe, caffe_home  # noqa: E402
from tests.converters.caffe.case import Case  # noqa: E402
from tests.converters.caffe.cases import CASES  # noqa: E402
from tests.converters.caffe.test_layers import STORED, ask_caffe, worst  # noqa: E402

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
        references = ask_caffe(RealCaffe(home), folder)
        rows: dict[str, list[tuple[Case, float]]] = {}
        for case in CASES:
            expected = references[str(case)] if case.formula is None else list(case.by_formula())
            rows.setdefault(case.type, []).append((case, worst(case, expected, folder)))
    table = [_row(kind, tried) for kind, tried in sorted(rows.items(), key=lambda item: item[0].lower())]
    target = ROOT / "docs/measurements/caffe_layers.md"
    target.write_text(
        HEAD + "\n".join(table) + f"\n\n{len(CASES)} sets of parameters of {len(rows)} layer types.\n"
    )
    arrays = {
        f"{name}/{run}/{top}": value
        for name, results in references.items()
        for run, tops in enumerate(results)
        if isinstance(tops, dict)
        for top, value in tops.items()
    }
    np.savez_compressed(STORED, **arrays)
    print(f"wrote {target.relative_to(ROOT)} and {STORED.relative_to(ROOT)}")


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
