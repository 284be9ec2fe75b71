"""Dropout's masks: the generator that was published, and the statistics of fair coins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnxaccel.graph.builder import Builder
from onnxaccel.graph.dropout import DRAWS, Masks
from onnxaccel.graph.model import Model
from onnxaccel.runtime.session import Session

Draw = Callable[[int, int, tuple[int, ...]], list[npt.NDArray[np.bool_]]]


def masks(ratio: float, seed: int, nodes: int, rest: tuple[int | str, ...]) -> Draw:
    """Draws the masks of several Dropout nodes over [N, *rest] at a step: (step, N, sizes of the rest)."""
    x = ir.val("x", ir.DataType.FLOAT, ir.Shape(["N", *rest]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="masks")
    op = Builder(graph)
    written = Masks(op, seed)
    for number in range(nodes):
        keep = written.keep(x, ratio)
        keep.name, keep.type, keep.shape = f"keep{number}", ir.TensorType(ir.DataType.BOOL), x.shape
        graph.outputs.append(keep)
    assert written.draws is not None
    graph.inputs.append(written.draws)
    session = Session(Model(ir.Model(graph, ir_version=10)))

    def draw(step: int, rows: int, sizes: tuple[int, ...]) -> list[Any]:
        feed = {"x": np.zeros((rows, *sizes), np.float32), DRAWS: np.array(step, np.uint64)}
        return list(session.run(feed).values())

    return draw


def squares32(counter: int, key: int) -> int:
    """Widynski's generator in Python's integers, from the paper's own listing."""
    word, swap = 2**64 - 1, lambda v: (v >> 32) | (v << 32) & (2**64 - 1)
    x = y = counter * key & word
    z = y + key & word
    for addend in (y, z, y):
        x = swap(x * x + addend & word)
    return (x * x + z & word) >> 32


@pytest.mark.parametrize("rest", [(3, 5), ("S", 5)], ids=["static", "dynamic"])
def test_masks_follow_their_formula(rest: tuple[int | str, ...]) -> None:
    step, rows, sizes, ratio = 41, 4, (3, 5), 0.3
    (found,) = masks(ratio, 7, 1, rest)(step, rows, sizes)
    row_key, column_key = (
        int(k) | 1 for k in np.random.SeedSequence(7).spawn(1)[0].generate_state(2, np.uint64)
    )
    for i in range(rows):
        for j, kept in enumerate(found[i].flat):
            word = 2 * squares32(step * 2**32 + i, row_key) + 1 + 2 * squares32(j, column_key)
            assert kept == (word * word % 2**32 >= round(ratio * 2**32))


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.8])
def test_masks_are_fair_and_independent(ratio: float) -> None:
    """Each number below is standard normal for fair coins; with about 20 of them, none passes 5 by chance."""
    steps, rows, columns = 80, 64, 800
    draw = masks(ratio, 3, 2, (columns,))
    both = np.array([draw(step, rows, (columns,)) for step in range(steps)])
    coins = (both - (1 - ratio)) / np.sqrt(ratio * (1 - ratio))  # mean 0, variance 1
    first, second = coins[:, 0], coins[:, 1]
    other_seed = (masks(ratio, 4, 1, (columns,))(0, rows, (columns,))[0] - (1 - ratio)) / np.sqrt(
        ratio * (1 - ratio)
    )

    def normal(values: Any) -> float:
        """The sum of independent values of mean 0 and variance 1, as a standard normal number."""
        return float(values.sum() / np.sqrt(values.size))

    def spread(axis: int) -> float:
        """How the counts along an axis vary (a chi-square over all of them), as a standard normal number."""
        sums = first.sum(axis) / np.sqrt(first.shape[axis])
        variance = 2 + (np.mean(first**4) - 3) / first.shape[axis]  # of a squared sum
        return float(((sums**2).mean() - 1) * np.sqrt(sums.size / variance))

    found = {
        "share kept": normal(first),
        "nodes": normal(first * second),
        "seeds": normal(first[0] * other_seed),
        "rows' counts": spread(2),
        "columns' counts": spread(1),
        "elements' counts over steps": spread(0),
        "squares of a step": normal(
            first[:, :-1, :-1] * first[:, 1:, :-1] * first[:, :-1, 1:] * first[:, 1:, 1:]
        ),
        "squares over steps": normal(
            first[:-1, :, :-1] * first[1:, :, :-1] * first[:-1, :, 1:] * first[1:, :, 1:]
        ),
    }
    for lag in (1, 2, 32):
        found |= {
            f"steps {lag} apart": normal(first[:-lag] * first[lag:]),
            f"rows {lag} apart": normal(first[:, :-lag] * first[:, lag:]),
            f"columns {lag} apart": normal(first[:, :, :-lag] * first[:, :, lag:]),
        }
    assert max(map(abs, found.values())) < 5, found


def test_all_pairs_of_columns_are_uncorrelated() -> None:
    """Words of a column are the same in all steps; what they are compared with must hide that."""
    draw = masks(0.5, 0, 1, (300,))
    coins = np.concatenate([draw(step, 128, (300,))[0] for step in range(40)]) * 2.0 - 1
    correlations = (coins.T @ coins / np.sqrt(len(coins)))[np.triu_indices(300, 1)]
    assert correlations.var() == pytest.approx(1, abs=5 * np.sqrt(2 / correlations.size))
    assert np.abs(correlations).max() < 6


def test_masks_repeat_by_step_and_by_nothing_else() -> None:
    draw = masks(0.5, 0, 1, (50,))
    again = masks(0.5, 0, 1, (50,))
    np.testing.assert_array_equal(draw(9, 8, (50,))[0], again(9, 8, (50,))[0])
    np.testing.assert_array_equal(
        draw(9, 8, (50,))[0], draw(9, 20, (50,))[0][:8]
    )  # the batch's size is no matter
    assert not np.array_equal(draw(9, 8, (50,))[0], draw(10, 8, (50,))[0])
