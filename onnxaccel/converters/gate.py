"""The parity gate: a converted model computes what its source framework computes, or it is refused.

The error of an output is ``max|y - r| / max|r|`` over the whole tensor, y from ONNX Runtime and r from the
source framework. It is measured on several random feeds of different size and magnitude. A reference that is
constant (all zeros, a softmax saturated on one class for every sample) proves nothing and does not count.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxaccel.converters.contract import Conversion
from onnxaccel.errors import ConversionError, ParityError
from onnxaccel.graph.feeds import random_feed, relative_error
from onnxaccel.runtime.session import Session

SCALES = (1.0, 0.25, 4.0, 0.02, 64.0)
"""Standard deviations tried in turn, until each output was informative at both batch sizes."""


def row_error(actual: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> float:
    """The error of a detector's rows (image, label, score, x1, y1, x2, y2), taken as a set.

    Each expected row is paired with the actual one of its image and label that is nearest in score and box;
    the error is the largest difference of a pair, relative to the largest value. Rows whose presence hinges
    on a comparison of nearly equal numbers come and go with the last bit: one in a hundred may be unpaired.
    """
    rows, wanted = (a.astype(np.float64).reshape(-1, a.shape[-1]) for a in (actual, expected))
    scale = max(float(np.max(np.abs(wanted[:, 2:]), initial=0.0)), 1.0)
    distances = []
    for row in wanted:
        same = rows[(rows[:, 0] == row[0]) & (rows[:, 1] == row[1])]
        distances.append(float(np.min(np.max(np.abs(same - row), axis=1), initial=np.inf)) / scale)
    unpaired = len(wanted) // 100
    if abs(len(rows) - len(wanted)) > unpaired:
        return float("inf")
    return sorted(distances)[-1 - unpaired] if distances else 0.0


def informative(expected: npt.NDArray[np.generic]) -> bool:
    """Whether a reference output could show a difference: finite, not constant, not only zeros and ones."""
    if expected.size == 0 or not np.all(np.isfinite(expected.astype(np.float64))):
        return False
    if np.issubdtype(expected.dtype, np.floating):
        saturated = np.all((np.abs(expected) < 1e-6) | (np.abs(expected - 1) < 1e-6))
        return not saturated and (expected.size == 1 or float(np.ptp(expected)) > 0)
    return True


def verify(conversion: Conversion, tolerance: float, seed: int = 0) -> float:
    """Compare a conversion with its source framework.

    Args:
        conversion: The model and its reference.
        tolerance: Largest relative error allowed.
        seed: Seed of the random feeds.

    Returns:
        The largest relative error seen over all outputs and feeds.

    Raises:
        ParityError: The error is over ``tolerance``, or no feed gave an informative reference.
        ConversionError: There is no source framework to compare with, or the converted model does not run.
    """
    if conversion.reference is None:
        raise ConversionError(f"nothing to compare with: {conversion.reference_name}; or pass --no-verify")
    model = conversion.model
    rng = np.random.default_rng(seed)
    session = Session(model)
    worst = 0.0
    pending = {(name, batch) for name in model.output_names() for batch in conversion.batch_sizes}
    for scale in SCALES:
        for batch in sorted({batch for _, batch in pending}):
            feed = random_feed(model, batch, rng, conversion.ranges, scale)
            expected = conversion.reference(feed)
            actual = session.run(feed)
            for name in model.output_names():
                measure = row_error if name in conversion.rows else relative_error
                error = measure(actual[name], expected[name])
                if not informative(expected[name]) and error <= tolerance:
                    continue
                pending.discard((name, batch))
                worst = max(worst, error)
                if error > tolerance:
                    raise ParityError(
                        _explain(conversion, name, actual[name], expected[name], error, tolerance)
                    )
        if not pending:
            return worst
    names = ", ".join(sorted({name for name, _ in pending}))
    raise ParityError(
        f"{conversion.reference_name} gives no informative values for output {names} on random inputs "
        f"(constant, or a saturated softmax), so nothing is proven; give real weights, or --no-verify"
    )


def _explain(
    conversion: Conversion,
    name: str,
    actual: npt.NDArray[np.generic],
    expected: npt.NDArray[np.generic],
    error: float,
    tolerance: float,
) -> str:
    producer = next(v for v in conversion.model.outputs if v.name == name).producer()
    where = f"output {name!r}" + (f" (from {producer.op_type} node {producer.name!r})" if producer else "")
    if actual.shape != expected.shape:
        what = (
            f"has shape {list(actual.shape)} where {conversion.reference_name} gives {list(expected.shape)}"
        )
    else:
        what = f"differs from {conversion.reference_name} by {error:.2g} (relative), more than {tolerance:g}"
    return (
        f"{where} {what}; nothing was written. --tolerance sets the bound, --no-verify skips the comparison"
    )
