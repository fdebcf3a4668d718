"""The programs that DeepDist has published run here, on Spark, with another import line."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.long]

PROGRAM_TIMEOUT_S = 300.0


def test_the_published_word2vec_trains_by_peers_and_with_a_master(
    place: Any, start_program: Callable[..., Any], spark_environment: Any
) -> None:
    found = start_program(place, "spark_published", spark_environment(place)).results(PROGRAM_TIMEOUT_S)
    for mode in ("p2p", "master"):
        trained = found[mode]
        assert trained["updates"] == [4, 4, 4], mode  # one for each partition
        assert trained["rows"] == [400, 400, 400], mode
        assert trained["lost"] == [0, 0, 0], mode
        assert trained["moved"] > 0.01, mode
        assert trained["its own"], mode
        assert min(trained["margins"]) > 0.5, mode  # gensim has trained the model when it made it, too
        assert set(trained["similar"]) <= {"cow", "hen", "pig"}, mode
    assert "descent added 'ssyn0' of the model (ndarray), which would be lost" in found["AdaGrad by peers"]
    assert "Have it in the model as an array before training begins" in found["AdaGrad by peers"]
    assert found["agents"] == 0
