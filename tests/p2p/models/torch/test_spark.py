"""Torch modules on Spark: a module of the user's program, and executors without torch."""

from __future__ import annotations

from typing import Any

import pytest

PROGRAM_TIMEOUT_S = 300.0


@pytest.mark.slow
@pytest.mark.spark
def test_executors_train_a_module_of_the_program_and_say_so_if_they_have_no_torch(
    place: Any, start_program: Any, spark_environment: Any
) -> None:
    results = start_program(place, "spark_torch", spark_environment(place)).results(PROGRAM_TIMEOUT_S)
    for name in ("rows", "blocks"):
        assert results[name]["accuracy"] > 0.9
        assert results[name]["batches"] == 3 * 4 * 30
        assert results[name]["peers"] == 2
        assert results[name]["lost"] == 0
    assert results["agents"] == 0
    assert "this process has no package torch: expected it wherever peers train" in results["without"]
