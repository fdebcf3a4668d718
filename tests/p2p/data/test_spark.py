"""Executors of Spark read the files, each its own range, and tell a damaged line as it is."""

from __future__ import annotations

import re
from typing import Any

import pytest

PROGRAM_TIMEOUT_S = 300.0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.spark
def test_executors_read_files_and_tell_a_damaged_line(place: Any, start_program: Any, spark_environment: Any) -> None:
    results = start_program(place, "spark_data", spark_environment(place)).results(PROGRAM_TIMEOUT_S)
    assert results["csv"] == pytest.approx(results["libsvm"], rel=1e-4)
    assert results["csv"]["partitions"] == 5
    assert results["csv"]["passes"] == int(results["csv"]["passes"]) > 1
    assert results["csv"]["peers"] == 2
    assert results["lines"]
    damaged = r"damaged\.libsvm', line 301 \(byte \d+\): index 2 after 3, expected indices that rise$"
    assert [bool(re.search(damaged, error)) for error in results["errors"]] == [True, True, False], results["errors"]
    assert "the SparkContext has been stopped" in results["errors"][2]
    assert results["agents"] == 0
