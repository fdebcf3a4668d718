"""The line search: what it returns holds both conditions, whatever the function; else it says that there is none."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from p2p.lbfgs.method.line_search import Sample, Wolfe, cubic_minimum, search

Function = Callable[[float], tuple[float, float]]


def run(
    function: Function, first: float = 1.0, evaluations: int = 60, c1: float = 1e-4, c2: float = 0.9
) -> tuple[Wolfe, Sample | None, list[Sample]]:
    """(conditions, the step taken, all samples)."""
    start = Sample(0.0, *function(0.0))
    searching = search(wolfe := Wolfe(start, c1, c2), first, evaluations)
    samples: list[Sample] = []
    step = next(searching)
    while True:
        samples.append(Sample(step, *function(step)))
        try:
            step = searching.send(samples[-1])
        except StopIteration as end:
            return wolfe, end.value, samples


def parabola(minimum: float, curvature: float) -> Function:
    return lambda a: (curvature / 2 * (a - minimum) ** 2, curvature * (a - minimum))


@st.composite
def wavy(draw: st.DrawFn) -> Function:
    """A parabola with waves on it: many minima, and bounded below."""
    minimum = draw(st.floats(0.01, 100))
    waves = draw(st.lists(st.tuples(st.floats(-0.5, 0.5), st.floats(0.1, 20), st.floats(0, 6)), max_size=4))

    def function(a: float) -> tuple[float, float]:
        value, slope = (a - minimum) ** 2 / (2 * minimum), (a - minimum) / minimum
        for height, rate, phase in waves:
            value += height / rate * math.sin(rate * a + phase)
            slope += height * math.cos(rate * a + phase)
        return value, slope

    assume(function(0.0)[1] < -1e-3)
    return function


@given(wavy(), st.floats(1e-3, 1e3), st.sampled_from([(1e-4, 0.9), (1e-4, 0.1), (0.2, 0.3)]))
def test_a_step_that_is_returned_holds_both_conditions_and_was_the_last_one(
    function: Function, first: float, conditions: tuple[float, float]
) -> None:
    wolfe, taken, samples = run(function, first, 60, *conditions)
    assert taken is not None
    assert taken.value <= function(0.0)[0] + conditions[0] * taken.step * function(0.0)[1]
    assert abs(taken.slope) <= conditions[1] * abs(function(0.0)[1])
    assert taken is samples[-1]
    assert wolfe.hold(taken)


@given(st.floats(0.01, 100), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_a_parabola_takes_few_evaluations(minimum: float, curvature: float, first: float) -> None:
    _, taken, samples = run(parabola(minimum, curvature), first)
    assert taken is not None
    assert len(samples) <= 3 + abs(math.log10(first / minimum))


@pytest.mark.parametrize("first", [0.5, 3.0])
def test_a_parabolas_minimum_is_found_by_the_second_evaluation(first: float) -> None:
    _, taken, samples = run(parabola(1.5, 2.0), first, c2=1e-3)
    assert taken is not None
    assert taken.step == pytest.approx(1.5, rel=1e-12)
    assert len(samples) == 2


@given(st.floats(0.01, 10), st.floats(0.1, 100), st.sampled_from([math.inf, math.nan]))
def test_what_is_no_number_beyond_some_step_is_not_stepped_into(edge: float, first: float, no_number: float) -> None:
    def function(a: float) -> tuple[float, float]:
        return (-math.log(edge - a) - 2 * a / edge, 1 / (edge - a) - 2 / edge) if a < edge else (no_number, no_number)

    _, taken, _ = run(function, first)
    assert taken is not None
    assert taken.step < edge
    assert math.isfinite(taken.value)


def test_where_nothing_goes_down_there_is_no_step() -> None:
    _, taken, samples = run(lambda a: (abs(a), -1.0 if a == 0 else 1.0), evaluations=12)
    assert taken is None
    assert len(samples) == 12


def test_rounding_is_no_descent_and_is_not_searched_for_long() -> None:
    """The value does not move beside a large constant."""
    _, taken, samples = run(lambda a: (1e9, -1e-9), evaluations=30)
    assert taken is None
    assert len(samples) <= 2


def test_the_lowest_step_is_evaluated_again_where_the_search_is_cut_short() -> None:
    def function(a: float) -> tuple[float, float]:  # a kink at 1, so that no slope is ever flat
        return (-a, -1.0) if a < 1 else (-1 + 5 * (a - 1), 5.0)

    _, taken, samples = run(function, first=0.9, evaluations=2, c2=0.01)
    assert taken is not None
    assert [sample.step for sample in samples][::2] == [0.9, 0.9]
    assert taken.step == 0.9


@given(*[st.floats(-3, 3)] * 4, st.floats(-5, 5), st.floats(-5, 5))
def test_the_cubics_minimum_is_that_of_the_cubic(
    a: float, b: float, c: float, d: float, one: float, other: float
) -> None:
    assume(abs(one - other) > 0.1)
    assume(abs(a) > 0.1)
    cubic, slope = np.polynomial.Polynomial([d, c, b, a]), np.polynomial.Polynomial([c, 2 * b, 3 * a])
    found = cubic_minimum(*(Sample(x, float(cubic(x)), float(slope(x))) for x in (one, other)))
    square = b * b - 3 * a * c
    if square < -1e-6:
        assert found is None
    elif square > 1e-3:
        assert found is not None
        assert found == pytest.approx((-b + math.sqrt(square)) / (3 * a), rel=1e-4, abs=1e-4)
