"""One executor, which is the driver program's own JVM: linear models from RDDs of rows and of sparse blocks."""

import numpy as np
from scipy import sparse
from spark_context import agents_go, spark_context, write_results

from p2p.models.linear import LogisticRegression, fit

chance = np.random.default_rng(0)
x = chance.normal(size=(400, 5))
y = (x @ np.arange(-2, 3) + chance.logistic(size=400) > 0).astype(int)
blocks = [(sparse.csr_array(x[part]), y[part]) for part in np.array_split(np.arange(400), 8)]

sc = spark_context("local[2]")
results = {}
for name, rdd in (("rows", sc.parallelize(list(zip(x, y, strict=True)), 4)), ("blocks", sc.parallelize(blocks, 4))):
    model = LogisticRegression(5, l2=0.01)
    report = fit(model, rdd)
    results[name] = {
        "objective": model.objective(x, y),
        "passes": report.rows / 400,
        "roles": [peer.role for peer in report.peers],
    }
sc.stop()
results["agents"] = agents_go(0)
write_results(results)
