"""Two executors of one core read files by themselves: rows of each format, and a line that is damaged."""

import os
from pathlib import Path

import numpy as np
from spark_context import agents_go, spark_context, write_results

from p2p import UsageError
from p2p.data import read_csv, read_libsvm, read_text
from p2p.models.linear import LogisticRegression, fit

folder = Path(os.environ["TMPDIR"])
chance = np.random.default_rng(0)
x = np.round(chance.normal(size=(400, 3)), 3)
y = np.where(x @ [1, -2, 1] + chance.logistic(size=400) > 0, 1, 0)
lines = ["a,b,c,y", *(",".join([*map(str, row), str(label)]) for row, label in zip(x.tolist(), y, strict=True))]
(folder / "rows.csv").write_text("\n".join(lines))
sparse = [f"{label} 1:{a} 2:{b} 3:{c}" for (a, b, c), label in zip(x.tolist(), y, strict=True)]
(folder / "rows.libsvm").write_text("\n".join(sparse))

sc = spark_context("local-cluster[2,1,1024]")
results = {}
data = {
    "csv": read_csv(folder / "rows.csv", "y", partitions=5, sc=sc),
    "libsvm": read_libsvm(f"file://{folder}/rows.libsvm", partitions=5, sc=sc),
}
for name, rdd in data.items():
    model = LogisticRegression(3, l2=0.01)
    report = fit(model, rdd)
    results[name] = {
        "partitions": rdd.getNumPartitions(),
        "objective": model.objective(x, y),
        "passes": report.rows / 400,
        "peers": len([peer for peer in report.peers if peer.role == "peer"]),
    }
results["lines"] = read_text(folder / "rows.csv", partitions=5, sc=sc).collect() == lines
damaged = [*sparse]
damaged[300] = "1 3:1 2:1"
(folder / "damaged.libsvm").write_text("\n".join(damaged))
errors = results["errors"] = []
for features in (3, None):
    try:
        fit(LogisticRegression(3), read_libsvm(folder / "damaged.libsvm", features, partitions=5, sc=sc))
    except UsageError as error:
        errors.append(str(error))
sc.stop()
try:
    read_text(folder / "rows.csv", sc=sc)
except UsageError as error:
    errors.append(str(error))
results["agents"] = agents_go(0)
write_results(results)
