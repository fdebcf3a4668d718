"""A deep belief network over peers: stacked machines, trained one after the other, then all of it as a classifier.

    python examples/dbn.py [--plot stack.png]
    spark-submit examples/dbn.py --spark

Two processes of this machine are the peers, or with --spark the executors of Spark. Each peer publishes what it has
learned when its partition is done. The data are ten pictures of 12 by 12 points, each in many shifted and noisy copies.
"""

import argparse

import numpy as np

from p2p.models.rbm import CD, FineTuning, StackedRBM

CLASSES, SIDE, ROWS = 10, 12, 400  # ROWS of each partition


def pictures(number):
    """Block `number`: rows (ROWS, SIDE * SIDE) of 0 and 1, and labels (ROWS,). Made where it is used."""
    strokes = np.random.default_rng(0).random((CLASSES, SIDE // 2, SIDE // 2)) < 0.4
    chance = np.random.default_rng([1, number])
    labels = chance.integers(CLASSES, size=ROWS)
    large = strokes.repeat(2, axis=1).repeat(2, axis=2)[labels]
    shifted = [
        np.roll(picture, shift, axis=1) for picture, shift in zip(large, chance.integers(-1, 2, ROWS), strict=True)
    ]
    rows = np.stack(shifted).reshape(ROWS, -1) ^ (chance.random((ROWS, SIDE * SIDE)) < 0.05)
    return rows.astype(np.float32), labels


def blocks(number):
    """A partition: one block."""
    return [pictures(number)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spark", action="store_true", help="train on the executors of Spark")
    parser.add_argument("--plot", metavar="FILE", help="write a picture of filters and reconstructions")
    parser.add_argument("--checkpoint", metavar="PATH", help="write checkpoints there, a folder or a URL")
    parser.add_argument("--resume", action="store_true", help="go on with the checkpoints that are there")
    arguments = parser.parse_args()
    where = {"peers": 2}
    data = [lambda number=number: blocks(number) for number in range(8)]
    if arguments.spark:
        from pyspark import SparkContext

        where = {}
        data = SparkContext.getOrCreate().parallelize(range(8), 8).flatMap(blocks)
    others = pictures(100)
    stack = StackedRBM([SIDE * SIDE, 64, 64])
    fitted = stack.fit(
        data,
        classes=CLASSES,
        exchange="partition",
        epochs=10,
        fine_tuning_epochs=25,
        pretraining=CD(rate=0.1, momentum=0.8),
        fine_tuning=FineTuning(rate=0.3),
        block_rows=20,
        held_out=others,
        checkpoint=arguments.checkpoint,
        resume=arguments.resume,
        **where,
    )
    print(fitted)
    if arguments.plot:
        stack.plot(others[0], filters=64).savefig(arguments.plot)
    print(f"{np.mean(fitted.network.predict(others[0]) == others[1]):.1%} of new pictures told right")


if __name__ == "__main__":
    main()
