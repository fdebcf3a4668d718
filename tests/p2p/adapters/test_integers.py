"""Sums of integers, which the model's own arrays may not hold: they are exact, or an error says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

import p2p
from gossip.errors import UsageError
from p2p import DeepDist, SimulatedCluster
from p2p.adapters.model import Model
from p2p.codecs import named
from p2p.testing import train_partition


def trained(model: Any, gradient: Any, partitions: int, descent: Any = None, peers: int = 3) -> Any:
    with DeepDist(model, engine=SimulatedCluster(peers, seed=1)) as dd:
        dd.train([[i] for i in range(partitions)], gradient, descent)
    return model


def add(value: Any, dtype: Any) -> Any:
    def gradient(model: Any, rows: Any) -> Any:
        list(rows)
        return {"w": np.array([value, 1], dtype)}

    return gradient


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32])
def test_a_sum_of_integers_that_does_not_fit_is_told_and_does_not_wrap_around(dtype: Any) -> None:
    most = int(np.iinfo(dtype).max)
    model = {"w": np.zeros(2, dtype)}
    with pytest.raises(UsageError, match=rf"'w': sums of updates from .* to {most // 2 * 3}, expected such as fit"):
        trained(model, add(most // 2, dtype), 3)
    if model["w"][1] == 3:  # all had come in before a worker saw it
        assert model["w"][0] == most


def test_the_error_comes_from_replicas_on_agents_too() -> None:
    model = {"w": np.zeros(2, np.int8)}
    with pytest.raises(UsageError, match="expected such as fit into int8"), DeepDist(model, peers=2) as dd:
        dd.train([[1], [1]], add(100, np.int8))
    assert model["w"][0] in (100, 127)


def test_a_sum_that_fits_in_the_end_is_right_whatever_it_was_on_the_way() -> None:
    def gradient(model: Any, rows: Any) -> Any:
        return {"w": np.array([90 if next(rows) % 2 else -90, 1], np.int8)}

    partitions = [[i] for i in range(8)]
    model = {"w": np.zeros(2, np.int8)}
    with DeepDist(model, engine=SimulatedCluster(8, seed=1)) as dd:
        dd.train(partitions, gradient)
    assert model["w"].tolist() == [0, 8]


def test_unsigned_numbers_are_counted_down() -> None:
    def descent(model: Any, update: Any) -> None:
        model["w"] -= update["w"]

    model = trained({"w": np.array([250, 250], np.uint8)}, add(60, np.uint8), 4, descent)
    assert model["w"].tolist() == [10, 246]


def test_a_model_that_trains_in_place_is_exchanged_so_too() -> None:
    def gradient(model: Any, rows: Any) -> Any:
        copy = p2p.in_place(model)
        for _ in rows:
            model["w"][0] += 100
        return copy.trained({})

    found = train_partition({"w": np.full(1, -100, np.int8)}, gradient, [1, 2])
    assert found.model["w"].tolist() == [100]
    assert found.updates[0]["w"].tolist() == [200]


ONE = sparse.coo_array(([-200], ([1], [0])), shape=(3, 2))


@pytest.mark.parametrize("update", [ONE.toarray(), {1: [-200, 0]}, ONE], ids=["whole", "rows", "entries"])
@pytest.mark.parametrize(("dtype", "begin"), [(np.uint8, 250), (np.int8, 100)])
def test_an_update_is_any_difference_between_two_numbers(update: Any, dtype: Any, begin: int) -> None:
    model = {"w": np.full((3, 2), begin, dtype)}
    found = train_partition(model, lambda model, rows: {"w": update}, [1])
    expected = model["w"].copy()
    expected[1, 0] = begin - 200
    assert found.model["w"].tolist() == expected.tolist()
    assert found.model["w"].dtype == dtype


@pytest.mark.parametrize("options", [{}, {"combine": "outer"}, {"codec": named("int8")}], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_whoever_trains_in_place_may_count_down(dtype: Any, options: Any) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        copy = p2p.in_place(model)
        for _ in rows:
            model["w"][0] -= 50
        return copy.trained({})

    model = {"w": np.full(1, 120, dtype), "x": np.zeros(1)}
    assert train_partition(model, gradient, [1, 2], chunk_rows=1, **options).model["w"].tolist() == [20]

    def descent(model: Any, update: Any) -> None:
        model["w"] += update["w"]

    if not options:
        assert train_partition(model, gradient, [1, 2], descent, chunk_rows=1).model["w"].tolist() == [20]


def test_integers_beside_coded_floats_stay_exact() -> None:
    def gradient(model: Any, rows: Any) -> Any:
        list(rows)
        return {"w": np.linspace(0, 1, 100), "n": np.array([40, 1], np.uint8)}

    model = {"w": np.zeros(100), "n": np.zeros(2, np.uint8)}
    found = train_partition(model, gradient, [1, 2, 3], chunk_rows=1, codec=named("int8"))
    assert found.model["n"].tolist() == [120, 3]


def test_wide_integers_are_told_of_before_they_wrap_around() -> None:
    with pytest.raises(UsageError, match="beyond half of the numbers of int64"):
        trained({"w": np.zeros(2, np.int64)}, add(1 << 61, np.int64), 3)
    keys = np.array([1 << 63, 5], np.uint64)  # these count nothing
    assert trained({"w": keys}, add(0, np.uint64), 3)["w"].tolist() == [1 << 63, 8]


def test_a_worker_that_cannot_hold_a_sum_says_so() -> None:
    model = Model.from_skeleton(Model({"w": np.zeros(2, np.int8)}).skeleton())
    with pytest.raises(UsageError, match=r"'w': sums of updates from -200 to 3, expected such as fit into int8"):
        model.load({"w": np.array([3, -200])})
    model.load({"w": np.array([3, -128])})
    assert model.arrays()["w"].dtype == np.int8


def test_numbers_that_come_back_into_range_are_no_error() -> None:
    own = {"w": np.zeros(1, np.int8)}
    model = Model(own)
    model.load({"w": np.array([200])})
    with pytest.raises(UsageError, match="It has the nearest that fit"):
        model.check_numbers(trained=True)
    assert own["w"].tolist() == [127]
    model.load({"w": np.array([20])})
    model.check_numbers(trained=True)


def test_arrays_of_floats_are_summed_as_they_are() -> None:
    model = Model({"w": np.zeros(2, np.float32), "n": np.zeros(1, np.int64)})
    assert model.layout == model.own
