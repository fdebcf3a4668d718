"""Stops Spark inside of the session: the executors' agents go with their executors, and the model stays."""

import numpy as np
from spark_context import agents, agents_go, spark_context, write_results

from p2p import DeepDist, UsageError


def gradient(model, rows):
    return {"sum": np.array([float(sum(rows))])}


sc = spark_context("local-cluster[2,1,1024]")
data = sc.parallelize(range(10), 4)
model = {"sum": np.zeros(1)}
results = {}
with DeepDist(model) as dd:
    dd.train(data, gradient)
    results["agents before"] = len(agents())
    sc.stop()
    results["agents after stop"] = agents_go(1)
    results["model after stop"] = dd.model["sum"].tolist()
    try:
        dd.train(data, gradient)
    except UsageError as error:
        results["error"] = str(error)
results["model"] = model["sum"].tolist()
results["agents after"] = agents_go(0)
write_results(results)
