"""A deep belief network over peers: stacked machines, trained one after the other, then all of it as a classifier.

    python examples/dbn.py [--plot stack.png]
    spark-submit examples/dbn.py --spark
    python examples/dbn.py --input train-images-idx3-ubyte.gz --labels train-labels-idx1-ubyte.gz    MNIST, path or URL

Two processes of this machine are the peers, or with --spark the executors of Spark. Each peer publishes what it has
learned when its partition is done. The data are ten pictures of 12 by 12 points, each in many shifted and noisy copies;
of files, the last of nine partitions is not trained on.
"""

import argparse

import numpy as np

from p2p.data import read_idx
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


def read(partition):
    """The blocks of a partition of files."""
    return partition()


def data(arguments):
    """What is trained on, and the rows and labels that are not."""
    if arguments.input:
        *parts, last = read_idx(arguments.input, arguments.labels, classes=CLASSES, partitions=9)
        others = tuple(np.concatenate(each) for each in zip(*last(), strict=True))
    else:
        parts, others = [lambda number=number: blocks(number) for number in range(8)], pictures(100)
    if not arguments.spark:
        return parts, others
    from pyspark import SparkContext

    sc = SparkContext.getOrCreate()
    if arguments.input:
        return sc.parallelize(parts, len(parts)).flatMap(read), others
    return sc.parallelize(range(8), 8).flatMap(blocks), others


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", metavar="URL", help="an idx file of pictures; default: pictures made here")
    parser.add_argument("--labels", metavar="URL", help="the idx file of their labels, 0 to 9")
    parser.add_argument("--spark", action="store_true", help="train on the executors of Spark")
    parser.add_argument("--plot", metavar="FILE", help="write a picture of filters and reconstructions")
    parser.add_argument("--checkpoint", metavar="PATH", help="write checkpoints there, a folder or a URL")
    parser.add_argument("--resume", action="store_true", help="go on with the checkpoints that are there")
    arguments = parser.parse_args()
    if (arguments.input is None) != (arguments.labels is None):
        parser.error("--input and --labels go together: pictures and what they show")
    trained, others = data(arguments)
    stack = StackedRBM([others[0].shape[1], 64, 64])
    fitted = stack.fit(
        trained,
        classes=CLASSES,
        exchange="partition",
        epochs=10,
        fine_tuning_epochs=25,
        pretraining=CD(rate=0.1, momentum=0.8),
        fine_tuning=FineTuning(rate=0.3),
        block_rows=20,
        held_out=others,
        peers=None if arguments.spark else 2,
        checkpoint=arguments.checkpoint,
        resume=arguments.resume,
    )
    print(fitted)
    if arguments.plot:
        stack.plot(others[0], filters=64).savefig(arguments.plot)
    print(f"{np.mean(fitted.network.predict(others[0]) == others[1]):.1%} of new pictures told right")


if __name__ == "__main__":
    main()
