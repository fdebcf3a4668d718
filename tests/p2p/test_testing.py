"""What a user's own test sees of a gradient: one partition, as a worker trains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Packed
from gossip.errors import UsageError
from p2p import ByPath, DeepDist
from p2p.testing import Neighbor, train_partition
from p2p.worker.errors import PartitionError
from p2p.worker.task import in_place


def count(model: Any, rows: Iterable[float]) -> dict[str, Any]:
    return {"w": np.array([sum(rows)])}


def test_updates_and_the_model_that_they_lead_to() -> None:
    model = {"w": np.zeros(1)}
    trained = train_partition(model, count, [1.0, 2.0, 4.0], chunk_rows=2)
    assert [float(update["w"][0]) for update in trained.updates] == [3.0, 4.0]
    assert trained.model["w"] == [7.0]
    assert model["w"] == [0.0], "the own one is as it was"
    assert (trained.result.rows, trained.result.updates, trained.result.units) == (3, 2, 2)
    assert trained.neighbor.units == {(0, 0, 0): 0, (0, 0, 1): 0}


def test_a_partition_comes_to_what_a_training_comes_to() -> None:
    def descent(model: Any, update: Any) -> None:
        model["w"] -= 0.5 * update["w"]

    rows = [1.0, 2.0, 4.0, 8.0]
    model = {"w": np.ones(1)}
    trained = train_partition(model, count, rows, descent, chunk_rows=3)
    with DeepDist(model) as dd:
        dd.train([rows], count, descent, chunk_rows=3)
    np.testing.assert_array_equal(trained.model["w"], model["w"])


class Halves:
    """A codec that sends half of what there is, and leaves the other half."""

    kinds = ()

    def encode(self, delta: Any, residual: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        half = {name: (array + residual[name]) / 2 for name, array in delta.items()}
        return half, {name: array.copy() for name, array in half.items()}


def test_what_a_codec_leaves_is_seen() -> None:
    trained = train_partition({"w": np.zeros(1)}, count, [1.0, 2.0], codec=Halves(), chunk_rows=1)
    assert [float(update["w"][0]) for update in trained.updates] == [0.5, 1.25]
    assert float(trained.neighbor.left[-1].arrays["w"][0]) == 1.25  # type: ignore[index]


class Ledger:
    def __init__(self) -> None:
        self.debit = np.zeros(1)


def test_a_model_with_an_adapter_of_its_own() -> None:
    class OfLedger(ByPath):
        def names(self, model: Any) -> list[str]:
            return ["debit"]

    trained = train_partition(Ledger(), lambda model, rows: {"debit": np.ones(1)}, [1], adapter=OfLedger())
    assert trained.model.debit == [1.0]


def test_errors_of_the_user_are_those_of_a_worker() -> None:
    def wrong(model: Any, rows: Iterable[float]) -> None:
        raise ZeroDivisionError("one over nothing")

    with pytest.raises(PartitionError) as raised:
        train_partition({"w": np.zeros(1)}, wrong, [1.0])
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with pytest.raises(UsageError, match="sometimes"):
        train_partition({"w": np.zeros(1)}, count, [1.0], exchange="sometimes")


def test_a_unit_counts_once() -> None:
    neighbor = Neighbor({"w": np.zeros(1)})
    assert neighbor.publish(Packed.of({"w": np.ones(1)}), unit=(0, 0, 0))
    assert not neighbor.publish(Packed.of({"w": np.ones(1)}), unit=(0, 0, 0), attempt=1)
    assert neighbor.replica.arrays()["w"] == [1.0]
    assert (len(neighbor.published), neighbor.furthest(0, 0), neighbor.furthest(0, 1)) == (1, 0, -1)


def test_what_was_trained_in_place_says_what_it_was_computed_on() -> None:
    def gradient(model: Any, rows: Iterator[float]) -> Any:
        copy = in_place(model)
        assert copy is not None
        for row in rows:
            model["w"] += row
        return copy.trained({})

    trained = train_partition({"w": np.zeros(1)}, gradient, [1.0, 2.0, 4.0], chunk_rows=1)
    assert trained.neighbor.merged_at == [0, 1, 2], "its own updates are none that it has not seen"
    assert (trained.result.rows, trained.result.updates, trained.result.units) == (3, 3, 3)
    assert trained.model["w"] == [7.0]
