"""Two executors of one core: a module of this program by one call, and executors without torch."""

import os
from pathlib import Path

import numpy as np
import torch
from spark_context import agents_go, spark_context, write_results
from torch import nn

from p2p import UsageError
from p2p.models.torch import train

CLASSES, FEATURES = 5, 8


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.scores = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.scores(self.norm(x))


def points(count, seed):
    centers = np.random.default_rng(0).normal(size=(CLASSES, FEATURES))
    random = np.random.default_rng([1, seed])
    labels = random.integers(CLASSES, size=count)
    return centers[labels] + 0.5 * random.normal(size=(count, FEATURES)), labels


def loss(output, y):
    assert torch.get_num_threads() == 1
    return nn.functional.cross_entropy(output, y)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.2)


def accuracy(module):
    x, y = points(500, seed=99)
    with torch.no_grad():
        return float((module.eval()(torch.from_numpy(x).float()).argmax(1).numpy() == y).mean())


def tell(name, data, **options):
    reports = []
    module = Own()
    train(module, data, loss=loss, optimizer=sgd, batch_size=10, epochs=3, on_report=reports.append, **options)
    results[name] = {
        "accuracy": accuracy(module),
        "batches": int(module.norm.num_batches_tracked),
        "peers": len([peer for peer in reports[0].peers if peer.role == "peer"]),
        "lost": reports[0].updates_lost,
    }


results = {}
sc = spark_context("local-cluster[2,1,1024]")
rows = [(x.tolist(), int(label)) for seed in range(4) for x, label in zip(*points(300, seed), strict=True)]
tell("rows", sc.parallelize(rows, 4))
tell("blocks", sc.parallelize(range(4), 4).map(lambda seed: points(300, seed)), blocks=True)
sc.stop()
results["agents"] = agents_go(0)

hidden = Path(os.environ["TMPDIR"]) / "hidden" / "torch"
hidden.mkdir(parents=True)
(hidden / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
path = os.pathsep.join([str(hidden.parent), os.environ.get("PYTHONPATH", "")])
sc = spark_context("local-cluster[1,1,1024]", **{"spark.executorEnv.PYTHONPATH": path})
try:
    tell("without", sc.parallelize(rows, 1))
except UsageError as error:
    results["without"] = str(error)
sc.stop()
write_results(results)
