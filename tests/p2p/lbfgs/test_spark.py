"""L-BFGS on Spark: a program as users write it, on two executors of this machine."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.long]

PROGRAM_TIMEOUT_S = 500.0


@pytest.fixture(scope="module")
def results(start_program: Any, make_place: Any, spark_environment: Any) -> Any:
    place = make_place()
    found = start_program(place, "spark_lbfgs", spark_environment(place)).results(PROGRAM_TIMEOUT_S)
    left = place.close()
    assert left == {}
    return found


def test_executors_find_the_minimum_and_count_each_portion_once(results: Any) -> None:
    found = results["plain"]
    assert found["off"] < 1e-5
    assert found["ended"] == "gradient below 1e-05"
    assert found["rows"] == 40 * found["passes"]
    assert found["portions"] == 12 * found["passes"]
    assert found["shards"] == 2
    assert 1 <= found["workers"] <= 2


def test_the_user_s_error_is_raised_in_the_driver_program(results: Any) -> None:
    assert (results["wrong"]["error"], results["wrong"]["words"]) == ("KeyError", "'mine'")
    assert "epoch 2" in results["wrong"]["notes"][0]


def test_rows_behind_a_shuffle_are_portions_by_partitions_only(results: Any) -> None:
    assert results["shuffled"]["off"] < 1e-5
    assert results["shuffled"]["portions"] == 3 * results["shuffled"]["passes"]
    assert results["shuffled chunks"]["error"] == "UsageError"
    assert "chunk_rows=4 with rows that come in another order" in results["shuffled chunks"]["words"]


def test_peers_are_refused(results: Any) -> None:
    assert "peers= is for lists of partitions" in results["peers"]["words"]


def test_a_shard_that_is_killed_costs_the_history_and_nothing_else(results: Any) -> None:
    assert results["killed"]["restarts"] == 1
    assert results["killed"]["off"] < 1e-5
    assert results["killed"]["shards"] == 3


def test_a_late_task_is_computed_again_by_another_executor(results: Any) -> None:
    assert results["late"]["backups"] >= 1
    assert results["late"]["off"] < 1e-5
    assert results["late"]["portions"] == 12 * results["late"]["passes"]
