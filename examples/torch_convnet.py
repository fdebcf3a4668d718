"""A convolutional network of torch on two processes of this machine, beside torch alone with the same work.

    pip install 'deepdist-p2p[torch]'
    python examples/torch_convnet.py [--peers 2] [--combine mean]

The images are digits of 7 x 5 points, moved, faded and full of noise on 9 x 9 points; they are drawn, and nothing is
downloaded. Each peer takes eight steps of Adam on its replica, then takes in what the others learned.
Torch alone takes as many steps of the same size on the same images.
"""

import argparse
import time

import numpy as np
import torch
from torch import nn

from p2p.lab.workloads.images import drawn
from p2p.models.torch import train

ROWS, TEST_ROWS, PARTITIONS, EPOCHS, BATCH = 8_000, 4_000, 8, 3, 32


def network(seed):
    """Two convolutions with batch norms, and two layers on top."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 9, 9)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def adam(parameters):
    """Made on each worker, where its moments stay."""
    return torch.optim.Adam(parameters, lr=5e-4)


def accuracy(module):
    """The share of new images that are told right."""
    images, labels = drawn(TEST_ROWS, seed=2)
    module.eval()
    with torch.no_grad():
        found = module(torch.from_numpy(images).float()).argmax(1)
    return float((found.numpy() == labels).mean())


def alone(module, images, labels):
    """The loop of torch that everybody knows, in this process."""
    optimizer = adam(module.parameters())
    x, y = torch.from_numpy(images).float(), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--combine", choices=("mean", "sum", "adasum", "damp", "outer"))
    arguments = parser.parse_args()
    images, labels = drawn(ROWS, seed=1)
    data = [[(images[part::PARTITIONS], labels[part::PARTITIONS])] for part in range(PARTITIONS)]

    begin = time.perf_counter()
    by_one = accuracy(alone(network(seed=0), images, labels))
    print(f"torch alone: {by_one:.2%} of new images right, {time.perf_counter() - begin:.1f} s")

    begin = time.perf_counter()
    module = train(
        network(seed=0),
        data,
        blocks=True,
        loss=nn.functional.cross_entropy,
        optimizer=adam,
        batch_size=BATCH,
        epochs=EPOCHS,
        peers=arguments.peers,
        combine=arguments.combine,
        on_report=print,
    )
    by_peers = accuracy(module)
    seconds = time.perf_counter() - begin
    print(f"{arguments.peers} peers: {by_peers:.2%} of new images right, {seconds:.1f} s with their start")
    print(f"difference: {100 * (by_peers - by_one):+.2f} points")
    return {"alone": by_one, "peers": by_peers}


if __name__ == "__main__":
    np.set_printoptions(precision=3)
    main()
