"""Two executors of one core: an estimator of scikit-learn by one call, and one that goes on."""

import numpy as np
from sklearn.linear_model import SGDClassifier
from spark_context import agents_go, spark_context, write_results

from p2p import DeepDist
from p2p.models.sklearn import fit, gradient

x = np.random.default_rng(0).normal(size=(600, 4))
y = np.where(x @ np.arange(1.0, 5.0) > 0, "above", "below")

sc = spark_context("local-cluster[2,1,1024]")
rows = sc.parallelize([(row.tolist(), label) for row, label in zip(x, y.tolist(), strict=True)], 4)
estimator = SGDClassifier(loss="log_loss")
report = fit(estimator, rows, classes=["above", "below"], epochs=3, chunk_rows=30, progress=False)
with DeepDist(estimator, progress=False) as dd:
    dd.train(rows, gradient, epochs=2, chunk_rows=30)
    score = dd.model.score(x, y)
results = {
    "score": score,
    "rows": report.rows,
    "seen": float(estimator.t_),
    "peers": len([peer for peer in report.peers if peer.role == "peer"]),
}
sc.stop()
results["agents"] = agents_go(0)
write_results(results)
