"""The parity gate: a converted model computes what its source framework computes, or it is refused.

The error of an output is ``max|y - r| / max|r|`` over the whole tensor, y from ONNX Runtime and r from the
source framework. It is measured on several random feeds of different size and magnitude. A reference that is
constant (all zeros, a softmax saturated on one class for every sample) proves nothing and does not count.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from onnxaccel.converters.contract import Arrays, Conversion
from onnxaccel.errors import ConversionError, ParityError
from onnxaccel.graph.feeds import BATCH, random_feed, relative_error
from onnxaccel.runtime.session import Session

SCALES = (1.0, 0.25, 4.0, 0.02, 64.0)
"""Standard deviations tried in turn, until each output was informative at both batch sizes."""


GROWTHS = (2.0, 0.5, 1.0)
"""Sizes tried for dynamic dimensions besides the batch, in multiples of those of the example."""


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


def within(actual: npt.NDArray[np.generic], expected: npt.NDArray[np.generic], steps: int) -> bool:
    """Whether integers differ by at most ``steps``; False for other types and shapes."""
    if actual.shape != expected.shape or not np.issubdtype(expected.dtype, np.integer):
        return False
    return bool(np.abs(actual.astype(np.int64) - expected.astype(np.int64)).max(initial=0) <= steps)


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
    tolerance = max(tolerance, conversion.step)
    rng = np.random.default_rng(seed)
    session = Session(model)
    worst = 0.0
    pending = {(name, batch) for name in model.output_names() for batch in conversion.batch_sizes}
    branches = any(node.op_type == "If" for node in model.graph)
    for scale in SCALES:
        if not pending and not branches:
            break
        # a graph that branches on its input's values is fed all scales, both signs and mixed ones
        signs = (None, 1, -1) if branches else (None,)
        batches = conversion.batch_sizes if branches else sorted({batch for _, batch in pending})
        for batch, sign in itertools.product(batches, signs):
            feed, expected = _reference_at(conversion, batch, rng, scale, sign)
            actual = session.run(feed)
            for name in model.output_names():
                measure = row_error if name in conversion.rows else relative_error
                error = measure(actual[name], expected[name])
                if not informative(expected[name]) and error <= tolerance:
                    continue
                pending.discard((name, batch))
                worst = max(worst, error)
                if error > tolerance and not within(actual[name], expected[name], conversion.steps):
                    if relative_error(conversion.reference(feed)[name], expected[name]) > tolerance:
                        raise ParityError(
                            f"{conversion.reference_name} gives another output {name!r} each time, on the "
                            f"same input in inference mode: the model draws random numbers or keeps a state"
                        )
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


def _reference_at(
    conversion: Conversion, batch: int, rng: np.random.Generator, scale: float, sign: int | None
) -> tuple[Arrays, Arrays]:
    """A feed and what the source framework computes of it.

    Sizes that the source does not take are replaced by others, and integers that it does not take by those of
    the example.

    Raises:
        ConversionError: The source does not run at any of these sizes.
    """
    assert conversion.reference is not None
    failure: ConversionError | None = None
    model, ranges, example = conversion.model, conversion.ranges, conversion.example
    for growth in GROWTHS if example else (1.0,):
        feed = random_feed(model, batch, rng, ranges, scale, example, growth)
        feed = {name: x if sign is None else _signed(x, sign) for name, x in feed.items()}
        try:
            return feed, conversion.reference(feed)
        except ConversionError as error:
            failure = failure or error
    if any(not np.issubdtype(x.dtype, np.floating) for x in example.values()):
        feed = random_feed(model, _batch_of(conversion) * (batch - 1), rng, ranges, scale, example)
        for name, x in example.items():
            if not np.issubdtype(x.dtype, np.floating):
                for axis, size in enumerate(feed[name].shape):
                    x = x.take(range(size), axis, mode="wrap")
                feed[name] = x
        try:
            return feed, conversion.reference(feed)
        except ConversionError:
            pass
    assert failure is not None
    raise failure


def _signed(x: npt.NDArray[np.generic], sign: int) -> npt.NDArray[np.generic]:
    return sign * np.abs(x) if np.issubdtype(x.dtype, np.floating) else x


def _batch_of(conversion: Conversion) -> int:
    """Size of the batch in the example."""
    for value in conversion.model.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int) and dim.value == BATCH and value.name in conversion.example:
                return int(conversion.example[value.name].shape[axis])
    return 1


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
