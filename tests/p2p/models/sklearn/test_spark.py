"""Estimators of scikit-learn on Spark."""

from __future__ import annotations

from typing import Any

import pytest

PROGRAM_TIMEOUT_S = 300.0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.spark
def test_executors_train_an_estimator(place: Any, start_program: Any, spark_environment: Any) -> None:
    results = start_program(place, "spark_sklearn", spark_environment(place)).results(PROGRAM_TIMEOUT_S)
    assert results["score"] > 0.9
    assert results["rows"] == 3 * 600
    assert results["seen"] == 1 + 5 * 600, "the counter starts at 1"
    assert results["peers"] == 2
    assert results["agents"] == 0
