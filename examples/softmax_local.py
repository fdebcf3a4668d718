"""Softmax regression with the local engine: numpy only, no Spark, no Java.

    python examples/softmax_local.py [--peers 2] [--mode p2p]

The data are ten classes of points around ten random centers. Every peer trains on the partitions that it gets, and
merges the updates of the others.
"""

import argparse

import numpy as np

from p2p import DeepDist

CLASSES, FEATURES, RATE = 10, 20, 0.05


def partition(index):
    """5,000 points of partition `index`: rows (features, label). Made where it is used, so that nothing is sent."""
    centers = np.random.default_rng(0).normal(size=(CLASSES, FEATURES))
    random = np.random.default_rng([1, index])
    labels = random.integers(CLASSES, size=5_000)
    return list(zip(centers[labels] + random.normal(size=(5_000, FEATURES)), labels, strict=True))


def probabilities(model, x):
    """Class probabilities, (rows, classes)."""
    scores = x @ model["w"] + model["b"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def gradient(model, rows):
    """The gradient of the cross entropy over these rows; runs on the peers."""
    x, y = (np.array(column) for column in zip(*rows, strict=True))
    error = probabilities(model, x) - np.eye(CLASSES)[y]
    return {"w": x.T @ error / len(x), "b": error.mean(axis=0)}


def descent(model, update):
    """One step down; runs where the gradient was computed, and all replicas add what it changed."""
    model["w"] -= RATE * update["w"]
    model["b"] -= RATE * update["b"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--mode", choices=("p2p", "master"), default="p2p")
    arguments = parser.parse_args()
    model = {"w": np.zeros((FEATURES, CLASSES)), "b": np.zeros(CLASSES)}
    data = [lambda index=index: partition(index) for index in range(8)]
    with DeepDist(model, mode=arguments.mode, peers=arguments.peers) as dd:
        report = dd.train(data, gradient, descent, epochs=10, chunk_rows=250)
    x, y = (np.array(column) for column in zip(*partition(99), strict=True))
    print(report)
    print(f"accuracy on new points: {np.mean(probabilities(model, x).argmax(axis=1) == y):.1%}")


if __name__ == "__main__":
    main()
