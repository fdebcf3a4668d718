"""The model that the user sees, filled from replicas in memory, and what the user writes into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Layout
from gossip.errors import UsageError
from p2p.adapters.model import Model
from p2p.agent.replica import Replica
from p2p.driver.shown import Shown, fingerprint

INITIAL = {"w": np.zeros(2), "b": np.zeros(1)}


class Agent:
    """It merges what is handed in."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.out = Replica(replica.layout)
        self.published: list[int] = []

    def hand_over(self) -> Replica:
        return self.out

    def publish(self, update: Replica, merged_at: int) -> bool:
        for name, array in self.replica.arrays().items():
            array += update.arrays()[name]
        self.replica.merged += 1
        self.published.append(merged_at)
        return True


@pytest.fixture
def replica() -> Iterator[Replica]:
    replica = Replica(Layout.of(INITIAL))
    yield replica
    replica.close()


@pytest.fixture
def model() -> dict[str, Any]:
    return {name: array.copy() for name, array in INITIAL.items()}


@pytest.fixture
def shown(model: dict[str, Any]) -> Shown:
    return Shown(Model(model))


def test_the_model_is_filled_where_there_is_something_new(shown: Shown, model: Any, replica: Replica) -> None:
    assert not shown.holds(replica)
    replica.arrays()["w"][:] = 1
    shown.fill(replica)
    assert model["w"].tolist() == [1, 1]
    assert shown.holds(replica)
    assert not shown.is_written()
    model["w"][0] = 5
    shown.fill(replica)
    assert model["w"].tolist() == [5, 1], "nothing is new, so what the user wrote stays"
    replica.arrays()["w"][:] = 2
    replica.merged += 1
    shown.fill(replica)
    assert model["w"].tolist() == [2, 2]
    assert not shown.is_written()


def test_another_replica_is_something_new(shown: Shown, model: Any, replica: Replica) -> None:
    shown.fill(replica)
    other = Replica(replica.layout)
    other.arrays()["w"][:] = 3
    shown.fill(other)
    assert model["w"].tolist() == [3, 3]
    assert shown.holds(other)
    assert not shown.holds(replica)
    other.close()


def test_what_is_written_is_seen_whatever_it_is(shown: Shown, model: Any) -> None:
    assert not shown.is_written()
    model["b"][0] = 1
    assert shown.is_written()
    model["b"][0] = 0
    assert not shown.is_written(), "it is as it was"
    model["b"] = [0.0]
    assert shown.is_written()
    model["b"] = np.array([None])
    assert shown.is_written()


def test_what_was_written_is_published_as_its_difference(shown: Shown, model: Any, replica: Replica) -> None:
    replica.arrays()["w"][:] = 1
    replica.merged = 4
    shown.fill(replica)
    model["w"][:] = [1, 3]
    agent: Any = Agent(replica)
    assert shown.hand_in(agent)
    assert agent.published == [4]
    assert agent.out.arrays()["w"].tolist() == [0, 2]
    assert replica.arrays()["w"].tolist() == [1, 3]
    assert shown.is_written(), "until it is seen that all have it to the last bit"
    assert not shown.hand_in(agent)
    assert not shown.is_written()
    assert shown.holds(replica)
    shown.fill(replica)
    model["w"][:] = 7
    shown.fill(replica)
    assert model["w"].tolist() == [7, 7], "the replica is the one that the model was made from"
    assert replica.acquire(), "nobody reads it any more"
    replica.release()
    agent.out.close()


def test_numbers_that_are_not_finite_are_not_published(shown: Shown, model: Any, replica: Replica) -> None:
    model["w"][0] = np.inf
    agent: Any = Agent(replica)
    with pytest.raises(UsageError, match=r"the model was given numbers that cannot be published: .*'w'"):
        shown.hand_in(agent)
    assert agent.published == []
    agent.out.close()


def test_a_model_of_another_shape_is_not_published(shown: Shown, model: Any, replica: Replica) -> None:
    model["w"] = np.zeros(3)
    agent: Any = Agent(replica)
    with pytest.raises(UsageError, match="w"):
        shown.hand_in(agent)
    agent.out.close()


def test_a_fingerprint_is_of_all_numbers_in_the_order_of_names() -> None:
    arrays = {"a": np.arange(3.0), "b": np.arange(4.0)}
    assert fingerprint(arrays) == fingerprint(dict(reversed(arrays.items())))
    assert fingerprint(arrays) == fingerprint({**arrays, "b": np.arange(8.0).reshape(4, 2)[:, 0] / 2})
    assert fingerprint(arrays) != fingerprint({"a": arrays["a"]})
    assert fingerprint(arrays) != fingerprint({**arrays, "b": arrays["b"] + 1})
