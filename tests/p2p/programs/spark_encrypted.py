"""Trains on executors whose traffic Spark encrypts, as the warning of keys in the clear has it, with an event log."""

import os
import secrets
import warnings
from pathlib import Path

import numpy as np
import zmq
from spark_context import spark_context, write_results

from p2p import DeepDist, DeepDistWarning
from p2p.engines.spark_secrets import cautions

LOGS = Path(os.environ["TMPDIR"]) / "events"
SETTINGS = {
    "spark.authenticate": "true",
    "spark.authenticate.secret": secrets.token_hex(16),
    "spark.network.crypto.enabled": "true",
    "spark.io.encryption.enabled": "true",
    "spark.eventLog.enabled": "true",
    "spark.eventLog.compress": "false",
    "spark.eventLog.dir": LOGS.as_uri(),
}


def gradient(model, rows):
    return {"sum": np.array([float(sum(rows))])}


drawn = []
draw = zmq.curve_keypair
zmq.curve_keypair = lambda: drawn.extend(pair := draw()) or pair
LOGS.mkdir()
sc = spark_context("local-cluster[2,1,1024]", **SETTINGS)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with DeepDist({"sum": np.zeros(1)}, progress=False) as dd:
        report = dd.train(sc.parallelize(range(10), 4), gradient)
    words = [str(warning.message) for warning in caught if warning.category is DeepDistWarning]
conf = sc.getConf()
sc.stop()
events = b"".join(path.read_bytes() for path in LOGS.rglob("*") if path.is_file())
write_results(
    {
        "sum": dd.model["sum"].tolist(),
        "peers": sum(peer.role == "peer" for peer in report.peers),
        "warnings": words,
        "cautions": cautions(conf.get),
        "events": len(events),
        "keys": len(drawn),
        "keys in events": sum(events.count(key) for key in drawn),
    }
)
