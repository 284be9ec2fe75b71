"""Axes: where a value lies, in percent of the way, and which values are written at the axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

WIDE = 8
"""Values that lie this many times apart are shown on a logarithmic axis."""


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        low: The value at 0 %.
        high: The value at 100 %.
        ticks: The values written at it.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    ticks: list[float]
    log: bool = False

    def unit(self, name: str) -> str:
        """What is written at the axis: what it counts, and whether it is logarithmic."""
        return f"{name}, logarithmic" if self.log else name

    def at(self, value: float) -> float:
        """Percent of the way, held within the axis."""
        if not self.log:
            share = (value - self.low) / (self.high - self.low)
        elif value <= 0:
            return 0.0
        else:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return 100 * min(1.0, max(0.0, share))


def scale(values: Iterable[float], *, zero: bool = False, even: bool = False, span: float = 0.0) -> Scale:
    """The axis that values need: logarithmic where they lie far apart, else linear.

    Args:
        values: What is shown; what is not finite is left out.
        zero: Begin at 0, as bars must; such an axis is linear.
        even: Linear, however far the values lie apart, and from the first value to the last.
        span: The least distance of a linear axis's ends, so that noise does not look like a difference.
    """
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    if not (zero or even) and low > 0 and high / low > WIDE:
        return logarithmic(low, high)
    low = min(low, 0.0) if zero else low
    wanted = max(span, high - low, abs(high) * 1e-3) or 1.0
    if high - low < wanted and not zero:
        low -= (wanted - (high - low)) / 2
    high = max(high, low + wanted)
    step = _nice((high - low) / 4)
    if even:
        first, last = math.ceil(low / step), math.floor(high / step)
        return Scale(low, high, [tick * step for tick in range(first, last + 1)])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [tick * step for tick in range(first, last + 1)]
    return Scale(ticks[0], ticks[-1], ticks)


def logarithmic(low: float, high: float) -> Scale:
    """The logarithmic axis from ``low`` to ``high``, with four round values or more where there are some."""
    low, high = max(low, 1e-30) / 1.12, max(high, 1e-30) * 1.12
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        every = max(1, math.ceil(len(decades) / 7)) if digits == (1,) else 1
        ticks = [digit * 10.0**decade for decade in decades[::every] for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            break
    return Scale(low, high, ticks, log=True)


def label(value: float) -> str:
    """A tick's value, short: 0.05, 250, 20k, 5M, 1e-7."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if letter == "k" else 1):
            return f"{value / size:.3g}{letter}"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= step * 0.999), 10 * power)
