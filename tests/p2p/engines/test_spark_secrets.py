"""Keys of a run that Spark would carry over the network as they are: who is warned, of what, and how often."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from p2p import DeepDist, DeepDistWarning
from p2p.engines import spark, spark_secrets
from p2p.engines.local import LocalEngine
from p2p.engines.spark_secrets import cautions, lacking

AUTHENTICATE = "spark.authenticate"
CRYPTO = "spark.network.crypto.enabled"


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ({}, [AUTHENTICATE, CRYPTO]),
        ({AUTHENTICATE: "true"}, [CRYPTO]),
        ({AUTHENTICATE: " TRUE", CRYPTO: "false"}, [CRYPTO]),
        ({CRYPTO: "true"}, [AUTHENTICATE]),
        ({"spark.ssl.rpc.enabled": "true"}, [AUTHENTICATE]),
        ({AUTHENTICATE: "true", CRYPTO: "true"}, []),
        ({AUTHENTICATE: "true", "spark.ssl.rpc.enabled": "true"}, []),
        ({AUTHENTICATE: "true", "spark.authenticate.enableSaslEncryption": "true"}, []),
        ({"spark.io.encryption.enabled": "true", "spark.ssl.enabled": "true"}, [AUTHENTICATE, CRYPTO]),
    ],
    ids=lambda value: None if isinstance(value, list) else " ".join(value) or "nothing",
)
def test_what_is_to_be_switched_on_is_named(conf: dict[str, str], expected: list[str]) -> None:
    assert lacking(conf.get) == expected
    said = cautions(conf.get)
    assert bool(said) == bool(expected)
    for name in expected:
        assert f"{name}=true" in said["keys in the clear"]


class Context:
    """What is asked of a SparkContext."""

    def __init__(self, master: str, **settings: str) -> None:
        self.master = master
        found = {f"spark.{name.replace('_', '.')}": value for name, value in settings.items()}
        self.getConf = lambda: SimpleNamespace(get=found.get)


@pytest.mark.parametrize("master", ["local", "local[*]", "local-cluster[2,1,1024]"])
def test_what_stays_on_this_machine_is_no_danger(master: str) -> None:
    assert spark.cautions_of_secrets(Context(master)) == {}  # type: ignore[arg-type]


def test_executors_that_reach_the_driver_program_by_loopback_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark, "driver_address", lambda context: context.getConf().get("spark.driver.host"))
    here = Context("spark://127.0.0.1:7077", driver_host="127.0.0.1")
    assert spark.cautions_of_secrets(here) == {}  # type: ignore[arg-type]
    for master in ("spark://10.1.2.3:7077", "yarn", "k8s://https://10.1.2.3"):
        far = Context(master, driver_host="10.1.2.3")
        assert list(spark.cautions_of_secrets(far)) == ["keys in the clear"]  # type: ignore[arg-type]
        guarded = Context(master, driver_host="10.1.2.3", authenticate="true", network_crypto_enabled="true")
        assert spark.cautions_of_secrets(guarded) == {}  # type: ignore[arg-type]


def test_an_engine_of_spark_tells_it_beside_what_else_is_at_odds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark, "driver_address", lambda context: "10.1.2.3")
    engine = spark.SparkEngine(Context("yarn", speculation="true"))  # type: ignore[arg-type]
    assert set(engine.cautions(object())) == {"speculation", "keys in the clear"}  # type: ignore[arg-type]


class OnAPublicNetwork(LocalEngine):
    """Processes of this machine, whose engine says what Spark's would."""

    def cautions(self, data: Any) -> Mapping[str, str]:
        return spark_secrets.cautions({}.get)


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_a_session_warns_of_it_once() -> None:
    def gradient(model: Any, rows: Any) -> dict[str, Any]:
        return {"w": np.full(3, float(len(list(rows))))}

    with DeepDist({"w": np.zeros(3)}, "master", engine=OnAPublicNetwork(1), progress=False) as dd:
        with pytest.warns(DeepDistWarning, match="carry its keys"):
            dd.train([[1, 2]], gradient)
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeepDistWarning)
            dd.train([[1, 2]], gradient)
