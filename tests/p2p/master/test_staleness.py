"""Weights of updates by their staleness, on a master of two numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.adapters.model import Model
from p2p.master.coordinator import Coordinator
from p2p.master.served import Served
from p2p.master.staleness import Weighing, inverse, weight_of

SOON_S = 60.0


class World:
    """What `descent` is given of updates that are as old as `submit` says."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.served = Served(Model({"w": np.zeros(2)}))
        self.ended = threading.Event()

    def begin(self, weight: Any, **options: Any) -> Coordinator:
        return Coordinator(self.served, self.descent, self.ended.set, weight=weight, **options)

    def descent(self, model: Any, update: Any) -> None:
        self.given.append(update)
        model["w"] += update["w"]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.served.close()


def ones() -> dict[str, Any]:
    return {"w": np.ones(2)}


def test_the_weight_is_one_over_the_staleness_and_one_where_that_is_nothing() -> None:
    """Zhang et al. 2016: the rate of an update of staleness 0 is as it is."""
    assert [inverse(staleness) for staleness in range(5)] == [1, 1, 1 / 2, 1 / 3, 1 / 4]


def test_updates_of_known_age_are_multiplied_before_descent_gets_them(world: World) -> None:
    coordinator = world.begin(weight_of("inverse"))
    first = coordinator.version
    for _ in range(4):
        coordinator.submit(ones(), merged_at=first)
    coordinator.submit(ones(), merged_at=first + 3)
    coordinator.submit(ones(), merged_at=first + 99)
    coordinator.submit(ones())
    weights = [1, 1, 1 / 2, 1 / 3, 1, 1, 1]
    np.testing.assert_allclose([update["w"][0] for update in world.given], weights)
    assert coordinator.weighing is not None
    assert coordinator.weighing.mean == pytest.approx(np.mean(weights))


def test_a_function_says_what_each_staleness_weighs(world: World) -> None:
    coordinator = world.begin(weight_of(lambda staleness: np.float32(0.5) ** staleness))
    for _ in range(3):
        coordinator.submit(ones(), merged_at=0)
    assert [update["w"].tolist() for update in world.given] == [[1, 1], [0.5, 0.5], [0.25, 0.25]]


def test_without_a_weight_updates_are_as_they_came(world: World) -> None:
    coordinator = world.begin(None)
    update = {"w": np.ones(2), "count": 3}
    for _ in range(3):
        coordinator.submit(update, merged_at=0)
    assert all(each is update for each in world.given)
    assert coordinator.weighing is None


def test_an_update_that_is_not_applied_has_no_weight(world: World) -> None:
    coordinator = world.begin(lambda staleness: 0.5, drops_bad=True)
    coordinator.submit(ones(), "one", merged_at=0)
    coordinator.submit(ones(), "one", merged_at=0)
    coordinator.submit({"w": np.full(2, np.nan)}, merged_at=0)
    coordinator.submit(ones())
    assert coordinator.weighing is not None
    assert coordinator.weighing.mean == 0.75
    assert Weighing(inverse).mean == 1


def test_a_fresh_update_with_an_integer_is_refused_like_a_stale_one(world: World) -> None:
    coordinator = world.begin(inverse)
    with pytest.raises(UsageError, match=r"staleness_weight and update\['count'\], which is a int: expected floating"):
        coordinator.submit({"w": np.ones(2), "count": 3}, merged_at=0)
    assert world.ended.wait(SOON_S)
    assert world.given == []


@pytest.mark.parametrize("weight", [-1, np.nan, np.inf, "1", None, True])
def test_a_weight_that_is_none_ends_the_training(world: World, weight: Any) -> None:
    coordinator = world.begin(lambda staleness: weight)
    with pytest.raises(UsageError, match=r"staleness_weight\(0\)=.*expected a finite number, at least 0"):
        coordinator.submit(ones(), merged_at=99)
    assert world.ended.wait(SOON_S)


def test_what_is_no_weight_is_refused() -> None:
    with pytest.raises(UsageError, match="staleness_weight='root', expected one of 'inverse', a function"):
        weight_of("root")
    with pytest.raises(UsageError, match="staleness_weight is a float, expected a function"):
        weight_of(0.5)
    assert weight_of(None) is None
