"""Logistic regression by peers of this machine: no gradient to write, and no rate to choose.

    python examples/linear.py
    python examples/linear.py --input s3://bucket/a9a        a libsvm file with two labels, by path or URL

The data are like a9a (UCI Adult): 14 questions of each person, each with one answer of several, as 0 and 1. A block of
rows is one element of a partition; its features are a sparse matrix.
"""

import argparse

import numpy as np
from scipy import sparse

from p2p.data import read_libsvm
from p2p.models.linear import LogisticRegression, fit

ANSWERS, ROWS = 9, 4000  # of each question; of each partition
FEATURES = 14 * ANSWERS


def people(number):
    """A block of rows: features (ROWS, FEATURES) and labels -1 or 1, (ROWS,)."""
    chance = np.random.default_rng(number)
    answers = np.minimum(chance.geometric(0.3, size=(ROWS, 14)), ANSWERS) - 1 + ANSWERS * np.arange(14)
    x = sparse.csr_array((np.ones(answers.size), answers.ravel(), np.arange(ROWS + 1) * 14), (ROWS, FEATURES))
    weights = np.random.default_rng(99).normal(size=FEATURES)
    return x, np.where(x @ weights + chance.logistic(size=ROWS) > 0, 1, -1)


def train_on_people():
    partitions = [[people(number)] for number in range(8)]
    model = LogisticRegression(FEATURES, labels=(-1, 1), l2=1 / (8 * ROWS))
    report = fit(model, partitions, peers=2)
    x, y = people(100)
    print(report)
    print(f"objective {model.objective(x, y):.4f}, {model.accuracy(x, y):.1%} of new people told right")


def train_on(url):
    partitions = read_libsvm(url, partitions=8)
    blocks = [block for partition in partitions for block in partition()]
    x, y = sparse.vstack([x for x, _ in blocks]), np.concatenate([y for _, y in blocks])
    model = LogisticRegression(x.shape[1], labels=tuple(np.unique(y).tolist()), l2=1 / len(y))
    print(fit(model, partitions, peers=2))
    print(f"objective {model.objective(x, y):.4f}, {model.accuracy(x, y):.1%} of these rows told right")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", metavar="URL", help="a libsvm file with two labels; default: people made here")
    url = parser.parse_args().input
    if url is None:
        train_on_people()
    else:
        train_on(url)


if __name__ == "__main__":
    main()
