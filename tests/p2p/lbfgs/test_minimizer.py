"""The whole method, on shards in this process: against L-BFGS with vectors, and against minima that are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.lbfgs.method.line_search import Sample, Wolfe, search
from p2p.lbfgs.method.minimizer import Minimizer
from p2p.lbfgs.method.options import LBFGS


def quadratic(size: int, condition: float = 100.0, seed: int = 0):
    """(function, its minimum): curvatures from 1 to `condition`."""
    rng = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(rng.normal(size=(size, size)))
    a = turned @ np.diag(np.geomspace(1, condition, size)) @ turned.T
    b = rng.normal(size=size)
    return (lambda x: (float(x @ a @ x / 2 - b @ x), a @ x - b)), np.linalg.solve(a, b)


def rosenbrock(x: Array):
    a, b = x[:-1], x[1:]
    gradient = np.zeros_like(x)
    gradient[:-1] = -400 * a * (b - a * a) - 2 * (1 - a)
    gradient[1:] += 200 * (b - a * a)
    return float((100 * (b - a * a) ** 2 + (1 - a) ** 2).sum()), gradient


def plain(function, x: Array, history: int, steps: int, c2: float = 0.9) -> list[Array]:
    """L-BFGS by Nocedal and Wright, algorithms 7.4 and 7.5, with vectors: its iterates."""
    pairs: list[tuple[Array, Array]] = []
    value, gradient = function(x)
    iterates = [x]
    for _ in range(steps):
        q, alphas = gradient.copy(), []
        for s, y in reversed(pairs):
            alphas.append(s @ q / (y @ s))
            q = q - alphas[-1] * y
        if pairs:
            q = q * (pairs[-1][0] @ pairs[-1][1]) / (pairs[-1][1] @ pairs[-1][1])
        for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
            q = q + s * (alpha - y @ q / (y @ s))
        d = -q
        searching = search(Wolfe(Sample(0, value, gradient @ d), 1e-4, c2), 1.0 if pairs else 1 / np.linalg.norm(d), 10)
        step = next(searching)
        while True:
            there, slope = function(x + step * d)
            try:
                step = searching.send(Sample(step, there, slope @ d))
            except StopIteration as end:
                step = end.value.step
                break
        new_x = x + step * d
        value, new_gradient = function(new_x)
        pairs = [*pairs, (new_x - x, new_gradient - gradient)][-history:]
        x, gradient = new_x, new_gradient
        iterates.append(x)
    return iterates


def never(**options) -> LBFGS:
    """It does not end by itself."""
    return LBFGS(gradient_tolerance=0.0, decrease_tolerance=0.0, **options)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("history", [2, 10])
def test_its_iterates_are_those_of_l_bfgs_with_vectors(in_process, history: int, shards: int) -> None:
    function, _ = quadratic(20)
    space = in_process(function, np.ones(20), shards=shards, history=history)
    course = Minimizer(space, never(history=history), 15).run()
    assert course.ended == "all 15 passes"
    expected = plain(function, np.ones(20), history, course.iterations)
    assert course.iterations >= 10
    for found, wanted in zip(space.iterates, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1, 5, 12])
def test_a_quadratic_takes_as_many_steps_as_it_has_dimensions(in_process, size: int) -> None:
    """With all pairs and an exact line search L-BFGS is the method of conjugate gradients (Nazareth 1979)."""
    function, minimum = quadratic(size)
    space = in_process(function, np.ones(size), shards=min(3, size), history=size)
    course = Minimizer(
        space, LBFGS(history=size, curvature=1e-3, gradient_tolerance=1e-8, decrease_tolerance=0), 100
    ).run()
    assert course.ended == "gradient below 1e-08"
    assert course.iterations <= size
    np.testing.assert_allclose(space.x, minimum, atol=1e-7)


def test_a_curved_valley_is_followed_to_its_end(in_process) -> None:
    space = in_process(rosenbrock, np.full(10, -1.0))
    course = Minimizer(space, LBFGS(decrease_tolerance=0), 300).run()
    assert course.ended == "gradient below 1e-05"
    np.testing.assert_allclose(space.x, 1.0, atol=1e-5)
    assert course.passes <= 1.3 * course.iterations + 10, "a step usually costs one pass"
    assert all(later < earlier for earlier, later in pairwise(course.values))
    assert len(course.by_pass) == course.passes
    assert list(dict.fromkeys(course.by_pass)) == course.values, "a pass that leads to no step leaves all as it was"


def test_it_ends_where_a_step_hardly_lowers_the_objective(in_process) -> None:
    function, _ = quadratic(20, 1e4)
    course = Minimizer(
        in_process(function, np.ones(20)), LBFGS(gradient_tolerance=0, decrease_tolerance=1e-3), 300
    ).run()
    assert course.ended == "decrease below 0.001 of the objective"
    assert course.values[-2] - course.values[-1] <= 1e-3 * abs(course.values[-2])


def test_it_ends_where_numbers_tell_no_more(in_process) -> None:
    function, minimum = quadratic(6)
    space = in_process(lambda x: (function(x)[0] + 1e6, function(x)[1]), np.ones(6))
    course = Minimizer(space, never(), 500).run()
    assert course.ended == "no step goes down any more, as far as numbers tell"
    assert course.passes < 120
    np.testing.assert_allclose(space.x, minimum, atol=1e-4)


def test_a_start_at_the_minimum_is_the_end(in_process) -> None:
    function, minimum = quadratic(4)
    course = Minimizer(in_process(function, minimum), LBFGS(), 50).run()
    assert (course.passes, course.iterations) == (1, 0)


def test_a_start_that_is_no_number_is_refused(in_process) -> None:
    space = in_process(lambda x: (float("nan"), x), np.ones(4))
    with pytest.raises(UsageError, match=r"loss nan .* expected finite numbers"):
        Minimizer(space, LBFGS(), 50).run()


def test_all_passes_leave_the_lowest_point(in_process) -> None:
    function, _ = quadratic(20, 1e4)
    for passes in range(1, 12):
        space = in_process(lambda x: tuple(1e-3 * each for each in function(x)), np.full(20, 50.0))
        course = Minimizer(space, never(), passes).run()
        assert course.passes == passes == len(space.points)
        low = min(space.function(x)[0] for x in space.points)
        assert course.value == space.function(space.x)[0] <= low


def test_l2_is_of_all_numbers_and_counts_once(in_process) -> None:
    function, _ = quadratic(8)
    space = in_process(function, np.ones(8), l2=3.0)
    course = Minimizer(space, LBFGS(gradient_tolerance=1e-7, decrease_tolerance=0), 100).run()
    gradient = function(space.x)[1] + 3.0 * space.x
    assert np.linalg.norm(gradient) <= 1e-7 * max(1.0, np.linalg.norm(space.x))
    assert course.value == pytest.approx(function(space.x)[0] + 1.5 * space.x @ space.x, rel=1e-14)


@pytest.mark.parametrize("dies_at", [{1}, {2}, {9}, {5, 6, 14}])
def test_a_lost_history_begins_anew_from_the_last_iterate(in_process, dies_at: set[int]) -> None:
    function, minimum = quadratic(12)
    space = in_process(function, np.ones(12))
    space.dies_at = dies_at
    course = Minimizer(space, LBFGS(gradient_tolerance=1e-8, decrease_tolerance=0), 300).run()
    assert course.restarts == len(dies_at)
    np.testing.assert_allclose(space.x, minimum, atol=1e-7)
    for death in dies_at - {1}:
        after = space.points[death] if death < len(space.points) else None
        assert after is not None
        assert any(np.array_equal(after, iterate) for iterate in space.iterates), "x itself is evaluated first"
        if death + 1 not in dies_at:
            following = space.points[death + 1]
            gradient = function(after)[1]
            along = (following - after) @ -gradient / np.linalg.norm(following - after) / np.linalg.norm(gradient)
            assert along == pytest.approx(1.0), "then a step of steepest descent"


def test_a_history_that_is_lost_again_and_again_is_an_error(in_process) -> None:
    function, _ = quadratic(12)
    space = in_process(function, np.ones(12))
    space.dies_at = set(range(4, 100))
    with pytest.raises(UsageError, match="lost 5 times without a step between: shard 1"):
        Minimizer(space, LBFGS(), 300).run()


def test_float32_is_summed_in_float64(in_process) -> None:
    function, minimum = quadratic(30, 10.0)

    def rounded(x: Array):
        value, gradient = function(x.astype(np.float64))
        return value, gradient.astype(np.float32)

    space = in_process(rounded, np.ones(30, np.float32))
    course = Minimizer(space, LBFGS(decrease_tolerance=1e-12), 100).run()
    assert space.x.dtype == np.float32
    assert course.ended
    np.testing.assert_allclose(space.x, minimum, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"history": 0}, "history=0, expected at least 1"),
        ({"max_passes": 1.5}, "max_passes=1.5, expected an integer"),
        ({"gradient_tolerance": -1e-3}, "gradient_tolerance=-0.001, expected a number, at least 0"),
        ({"curvature": 1.0}, "expected 0 < sufficient_decrease < curvature < 1"),
        ({"sufficient_decrease": 0.95}, "expected 0 < sufficient_decrease < curvature < 1"),
        ({"shards": 0}, "shards=0, expected at least 1"),
        ({"backup_after": 0.0}, "backup_after=0.0, expected a number above 0, or None"),
        ({"l2": float("inf")}, "l2=inf, expected a finite number"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, words: str) -> None:
    with pytest.raises(UsageError) as error:
        LBFGS(**options)
    assert words in str(error.value)
