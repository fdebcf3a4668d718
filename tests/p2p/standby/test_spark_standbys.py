"""Masters beside executors of Spark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.long]

PROGRAM_TIMEOUT_S = 240.0


def test_a_master_beside_an_executor_may_be_killed(
    place: Any, start_program: Callable[..., Any], spark_environment: Any
) -> None:
    found = start_program(place, "spark_standbys", spark_environment(place)).results(PROGRAM_TIMEOUT_S)
    for number, (updates, failovers, sums, count) in enumerate(found["trainings"], 1):
        assert updates == 1200
        assert failovers >= 1
        assert sums == [number * found["sum"]] * 3
        assert count == number * 1200
