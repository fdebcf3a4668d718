"""Gradients that train in place, on a simulated cluster: nothing is lost, and replicas stay equal whatever the rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gossip.sim.simulator import Network
from p2p import DeepDist
from p2p.adapters.adapter import ByPath
from p2p.sessions.cluster import SimulatedCluster
from p2p.worker.task import in_place

ROWS, WIDTH = 3000, 100


def gradient(model: dict[str, Any], rows: Iterator[int]) -> Any:
    """Add 0.01 to each row that is named."""
    copy = in_place(model)
    assert copy is not None
    for row in rows:
        model["w"][row] += np.float32(0.01)
    return copy.trained({})


def partitions() -> list[list[int]]:
    """Few rows often, the others now and then."""
    chance = np.random.default_rng(0)
    return [((ROWS ** chance.random(2000)).astype(int) - 1).tolist() for _ in range(6)]


def train(cluster: SimulatedCluster, **settings: Any) -> tuple[Any, Any]:
    with DeepDist({"w": np.ones((ROWS, WIDTH), np.float32)}, engine=cluster, progress=False) as dd:
        report = dd.train(partitions(), gradient, chunk_rows=100, **settings)
        return report, dd.model["w"].copy()


def test_all_that_was_trained_arrives() -> None:
    report, w = train(SimulatedCluster(peers=3, seed=1, network=Network(loss=0.1, duplication=0.1)))
    times = np.bincount(np.concatenate(partitions()), minlength=ROWS)
    np.testing.assert_allclose(w[:, 0], 1 + 0.01 * times, rtol=1e-4)  # as rounding goes
    assert np.corrcoef(w[:, 0], times)[0, 1] > 0.999
    assert report.updates_lost == 0
    assert report.consensus_distance < 1e-5
    assert report.missing == ()


@pytest.mark.parametrize("rule", ["damp", "adasum", "mean", "outer"])
def test_replicas_are_equal_under_every_rule_and_retries(rule: str) -> None:
    cluster = SimulatedCluster(peers=4, seed=2, fail=0.2, speculate=0.2, network=Network(loss=0.1))
    report, w = train(cluster, combine=rule)
    assert report.consensus_distance < 1e-5
    assert w[0, 0] > 1.05


def test_a_gradient_may_look_at_the_change() -> None:
    def halved(model: dict[str, Any], rows: Iterator[int]) -> Any:
        return {name: change / 2 for name, change in gradient(model, rows).items()}

    with DeepDist({"w": np.ones((ROWS, WIDTH))}, engine=SimulatedCluster(peers=2), progress=False) as dd:
        dd.train([[0, 0, 5]], halved)
        assert dd.model["w"][[0, 5, 6], 0].tolist() == pytest.approx([1.01, 1.005, 1.0])


def test_a_plain_update_is_combined_too() -> None:
    def plain(model: dict[str, Any], rows: Iterator[int]) -> dict[str, Any]:
        list(rows)
        return {"w": np.ones((2, 3))}

    with DeepDist({"w": np.zeros((2, 3))}, engine=SimulatedCluster(peers=4), progress=False) as dd:
        dd.train([[1]] * 8, plain, combine="mean")
        np.testing.assert_allclose(dd.model["w"], np.full((2, 3), 2.0))


@dataclass(frozen=True)
class Mixed(ByPath):
    """Of a model whose array "b" is averaged, whatever the rule of the others."""

    def rule(self, model: Any, key: Any) -> str | None:
        return "mean" if key == ("b",) else None


@pytest.mark.parametrize("adapter", [None, Mixed()], ids=["one rule", "two rules"])
@pytest.mark.parametrize("codec", [None, "int8"])
def test_outer_steps_are_the_momentum_of_the_mean_whether_trained_in_place_or_not(
    codec: str | None, adapter: Any
) -> None:
    """One partition a peer, an update of ones by each: what arrives is what one optimizer of the mean would do.

    Gradients are of a model ahead of the replica, and that is no part of their updates.
    """

    def plain(model: dict[str, Any], rows: Iterator[int]) -> dict[str, Any]:
        list(rows)
        return {"w": np.ones((20, 5)), "b": np.ones((20, 5)), "n": np.ones(3, np.int64)}

    def trained(model: dict[str, Any], rows: Iterator[int]) -> Any:
        copy = in_place(model)
        assert copy is not None
        step = len(list(rows))
        for array in model.values():
            array += step
        return copy.trained({})

    velocity = moved = 0.0
    for _ in range(6):
        velocity = 0.75 * velocity + 1.0
        moved += 1.0 + 0.75 * velocity
    for gradient in (plain, trained):
        model = {"w": np.zeros((20, 5)), "b": np.zeros((20, 5)), "n": np.zeros(3, np.int64)}
        engine = SimulatedCluster(peers=4, seed=3)
        with DeepDist(model, adapter=adapter, engine=engine, codec=codec, progress=False) as dd:
            report = dd.train([[1] * 6] * 4, gradient, chunk_rows=1, combine="outer")
        np.testing.assert_allclose(model["w"], moved, rtol=1e-12)
        np.testing.assert_allclose(model["b"], 6 if adapter else moved, rtol=1e-12)
        np.testing.assert_array_equal(model["n"], 24)
        assert report.consensus_distance < 1e-12


def test_a_gradient_is_of_the_model_that_the_momentum_leads_to() -> None:
    """One of two peers has all the work, so what it sees is the replica, which its updates made, and its own share."""
    seen: list[float] = []

    def gradient(model: dict[str, Any], rows: Iterator[int]) -> dict[str, Any]:
        list(rows)
        seen.append(float(model["w"][0]))
        return {"w": np.ones(2)}

    velocity = replica = 0.0
    expected = []
    for _ in range(4):
        expected.append(replica + 2 * 0.5 * velocity)
        velocity = 0.5 * velocity + 0.5
        replica += 0.5 + 0.5 * velocity
    with DeepDist({"w": np.zeros(2)}, engine=SimulatedCluster(peers=2, seed=1), progress=False) as dd:
        dd.train([[1] * 4], gradient, chunk_rows=1, combine="outer")
    assert seen == pytest.approx(expected)
