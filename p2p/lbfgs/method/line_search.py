"""A line search for the strong Wolfe conditions, one evaluation after the other.

    f(a) <= f(0) + c1 a f'(0)       the step goes down by enough
    |f'(a)| <= c2 |f'(0)|           and the slope is nearly gone

`search` is a generator: it yields steps, is sent their values, and returns a step that holds both. The last value that
it was sent is that of the step which it returns. A step is bracketed first, then the bracket is narrowed by cubics
through values and slopes. Source: Nocedal and Wright, Numerical Optimization (2006), algorithms 3.5 and 3.6, equation
3.59. A value that is no number counts as one that is too high, and its bracket is halved.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

EXPANSION = (2.0, 10.0)
"""A step that is too short is followed by one that is so many times as long, by its cubic."""
MARGIN = 0.1
"""A new step keeps so much of the bracket from both of its ends."""
ROUNDING = 4 * float(np.finfo(float).eps)
"""Of the objective: changes by less than this part of it say nothing."""


@dataclass(frozen=True)
class Sample:
    """A step, its value, and the slope there."""

    step: float
    value: float
    slope: float

    @property
    def is_number(self) -> bool:
        """Value and slope are finite."""
        return math.isfinite(self.value) and math.isfinite(self.slope)


@dataclass(frozen=True)
class Wolfe:
    """The conditions, from the point where the search begins."""

    start: Sample
    sufficient_decrease: float
    curvature: float

    def is_low(self, sample: Sample) -> bool:
        """The value is lower by enough, as far as rounding shows it."""
        limit = self.start.value + self.sufficient_decrease * sample.step * self.start.slope
        return sample.is_number and sample.value <= limit and sample.value < self.start.value

    def is_flat(self, sample: Sample) -> bool:
        """The slope is nearly gone."""
        return abs(sample.slope) <= -self.curvature * self.start.slope

    def hold(self, sample: Sample) -> bool:
        """Both are true."""
        return self.is_low(sample) and self.is_flat(sample)


def search(wolfe: Wolfe, first: float, evaluations_max: int) -> Generator[float, Sample, Sample | None]:
    """Yields steps, the first of them `first`, and is sent their samples; returns the one to take.

    Where `evaluations_max` evaluations find none that holds both conditions, it is the lowest that goes down by enough;
    if that is not the last one evaluated, it is evaluated again. None: nothing goes down, as far as numbers tell.
    """
    start = wolfe.start
    assert start.slope < 0, "the direction of a line search goes down"
    before, step = start, first
    for count in range(1, evaluations_max + 1):
        sample = yield step
        if not wolfe.is_low(sample) or (count > 1 and sample.value >= before.value):
            return (yield from _zoom(wolfe, before, sample, sample, evaluations_max - count))
        if wolfe.is_flat(sample):
            return sample
        if sample.slope >= 0:
            return (yield from _zoom(wolfe, sample, before, sample, evaluations_max - count))
        least, most = (sample.step * factor for factor in EXPANSION)
        guess = cubic_minimum(before, sample)
        before, step = sample, least if guess is None else min(max(guess, least), most)
    return before


def _zoom(
    wolfe: Wolfe, low: Sample, high: Sample, last: Sample, evaluations: int
) -> Generator[float, Sample, Sample | None]:
    """Narrow a bracket: `low` is the lowest step that goes down by enough, and the slope there leads to `high`.

    `last` is that of both which was evaluated last.
    """
    for _ in range(evaluations):
        if abs(high.step - low.step) * -wolfe.start.slope <= ROUNDING * abs(wolfe.start.value):
            break
        last = sample = yield _between(low, high)
        if not wolfe.is_low(sample) or sample.value >= low.value:
            high = sample
            continue
        if wolfe.is_flat(sample):
            return sample
        if sample.slope * (high.step - low.step) >= 0:
            high = low
        low = sample
    if low.step == 0:
        return None
    return low if low is last else (yield low.step)


def _between(low: Sample, high: Sample) -> float:
    """A step within the bracket: where the cubic is lowest, but not at an end; the middle where there is no cubic."""
    width = high.step - low.step
    guess = cubic_minimum(low, high) if high.is_number else None
    if guess is None:
        return low.step + width / 2
    ends = sorted((low.step + MARGIN * width, high.step - MARGIN * width))
    return min(max(guess, ends[0]), ends[1])


def cubic_minimum(one: Sample, other: Sample) -> float | None:
    """Where the cubic through both values and slopes has its minimum; None if it has none."""
    if one.step == other.step or not (one.is_number and other.is_number):
        return None
    d1 = one.slope + other.slope - 3 * (one.value - other.value) / (one.step - other.step)
    square = d1 * d1 - one.slope * other.slope
    if not (math.isfinite(square) and square >= 0):
        return None
    d2 = math.copysign(math.sqrt(square), other.step - one.step)
    divisor = other.slope - one.slope + 2 * d2
    if divisor == 0:
        return None
    guess = other.step - (other.step - one.step) * (other.slope + d2 - d1) / divisor
    return guess if math.isfinite(guess) else None
