"""Two executors of one core that mix: a linear model, and what the report says."""

import numpy as np
from spark_context import spark_context, write_results

from p2p import DeepDist

WANTED = np.array([1.0, -2.0, 3.0])


def gradient(model, rows):
    x, y = (np.array(each) for each in zip(*rows, strict=True))
    return {"w": x.T @ (x @ model["w"] - y) / len(x)}


def descent(model, update):
    model["w"] -= 0.2 * update["w"]


x = np.random.default_rng(0).standard_normal((400, 3))
sc = spark_context("local-cluster[2,1,1024]")
data = sc.parallelize([(row, float(row @ WANTED)) for row in x], 8)
model = {"w": np.zeros(3)}
with DeepDist(model, discipline="mix", topology="exponential") as dd:
    report = dd.train(data, gradient, descent, epochs=4, chunk_rows=25)
sc.stop()
write_results(
    {
        "peers": [[peer.role, peer.rounds, dict(peer.edges)] for peer in report.peers],
        "updates": report.updates,
        "updates_lost": report.updates_lost,
        "missing": report.missing,
        "consensus_distance": report.consensus_distance,
        "error": float(np.abs(model["w"] - WANTED).max()),
    }
)
