"""Word2vec with AdaGrad, as DeepDist has published it: what `descent` puts on the model is the model's."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.long]

PROGRAM_TIMEOUT_S = 300.0
UPDATES = 16
"""Of each training: four partitions of 100 rows, in chunks of 25."""


@pytest.fixture(scope="module")
def found(make_place: Any, start_program: Callable[..., Any], spark_environment: Any) -> Iterator[Any]:
    place = make_place()
    try:
        found = start_program(place, "spark_published_adagrad", spark_environment(place)).results(PROGRAM_TIMEOUT_S)
    finally:
        left = place.close()
    yield found
    assert left == {}


def test_every_update_is_taken_once(found: Any) -> None:
    assert [(each["updates"], each["rows"], each["lost"]) for each in found["trainings"]] == [(UPDATES, 400, 0)] * 3
    assert found["agents"] == 0


def test_attributes_that_descent_makes_live_from_call_to_call_and_over_trainings(found: Any) -> None:
    assert sorted(map(int, found["history"])) == list(range(1, 3 * UPDATES + 1)), "each update finds the count before"
    for updates, (count, version, scores, *_) in found["history"].items():
        assert (count, version) == (int(updates), f"of {updates} updates")
        assert scores == int(updates) // 5
    assert found["history"][str(3 * UPDATES)][3] == pytest.approx(found["squares"], rel=1e-4), "sums of all updates"
    assert [updates for updates, _ in found["scores"]] == list(range(5, 3 * UPDATES + 1, 5))


def test_they_reach_the_user_s_model(found: Any) -> None:
    assert found["its own"]
    for number, training in enumerate(found["trainings"], 1):
        assert training["model"] == found["history"][str(number * UPDATES)]
        assert training["shapes"] == [[10, 16], [10, 16]]
    assert found["after"] == found["history"][str(3 * UPDATES)], "after the session as well"


def test_the_copy_of_the_next_gradient_has_them_all_of_one_moment(found: Any) -> None:
    """Counter, version, sums and weights of a copy are those after one and the same update."""
    for number, training in enumerate(found["trainings"]):
        for position, seen in enumerate(training["seen"]):
            if seen is None:
                assert number == 0, "a later training begins with what the one before has left"
                continue
            assert number * UPDATES <= seen[0] <= number * UPDATES + position
            count, version, scores, *sums = found["history"][str(seen[0])]
            assert seen[:3] == [count, version, scores]
            assert seen[3:] == pytest.approx(sums, rel=1e-6, abs=1e-6)
    assert any(found["trainings"][0]["seen"]), "they come to workers while a training runs"


def test_it_tells_words_of_two_topics_apart(found: Any) -> None:
    assert [score > 0.5 for _, score in found["scores"]] == [True] * (3 * UPDATES // 5)
