"""Sequence to sequence on two processes of this machine: two GRUs with attention learn to reverse, beside torch alone.

    pip install 'deepdist-p2p[torch]'
    python examples/torch_seq2seq.py [--peers 2] [--combine mean]

A sequence has six symbols of ten. Its target is the same one backwards, with every tenth symbol drawn anew. So the best
that can be learned is a loss of about 0.50, to which both come near. The decoder is given the right symbol
before the one to tell (teacher forcing): a row is ((source, target shifted by one), target).
"""

import argparse
import math
import time

import numpy as np
import torch
from torch import nn

from p2p.models.torch import train

SYMBOLS, LENGTH, NEW = 10, 6, 0.1
BEGIN = SYMBOLS  # stands before the first symbol
ROWS, TEST_ROWS, PARTITIONS, EPOCHS, BATCH = 8_000, 4_000, 8, 4, 25


class Translator(nn.Module):
    """An encoder, and a decoder that attends to its states (Luong et al., arXiv:1508.04025)."""

    def __init__(self, width=32):
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS + 1, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.mix = nn.Linear(2 * width, width)
        self.scores = nn.Linear(width, SYMBOLS)

    def forward(self, source, target):
        """(rows, length) of each -> scores (rows, length, symbols)."""
        keys, state = self.encoder(self.symbols(source) + self.position)
        queries, _ = self.decoder(self.symbols(target) + self.position, state)
        weights = torch.softmax(queries @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1]), dim=-1)
        return self.scores(torch.tanh(self.mix(torch.cat([queries, weights @ keys], dim=-1))))


def sequences(rows, seed):
    """A block of ((source, shifted target), target), each (rows, length)."""
    random = np.random.default_rng(seed)
    source = random.integers(SYMBOLS, size=(rows, LENGTH))
    anew = random.random(source.shape) < NEW
    target = np.where(anew, random.integers(SYMBOLS, size=source.shape), source[:, ::-1])
    shifted = np.hstack([np.full((rows, 1), BEGIN), target[:, :-1]])
    return (source, shifted), target


def loss(scores, target):
    """Cross entropy of a symbol."""
    return nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())


def adam(parameters):
    """Made on each worker, where its moments stay."""
    return torch.optim.Adam(parameters, lr=1e-2)


def new_loss(module):
    """Of sequences that nobody has trained on."""
    (source, shifted), target = sequences(TEST_ROWS, seed=99)
    module.eval()
    with torch.no_grad():
        return float(loss(module(torch.from_numpy(source), torch.from_numpy(shifted)), torch.from_numpy(target)))


def alone(module, data):
    """The loop of torch that everybody knows, in this process."""
    optimizer = adam(module.parameters())
    source, shifted, target = (
        torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*((x[0], x[1], y) for [(x, y)] in data), strict=True)
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(source)).split(BATCH):
            optimizer.zero_grad()
            loss(module(source[rows], shifted[rows]), target[rows]).backward()
            optimizer.step()
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--combine", choices=("mean", "sum", "adasum", "damp", "outer"))
    arguments = parser.parse_args()
    data = [[sequences(ROWS // PARTITIONS, seed=part)] for part in range(PARTITIONS)]

    begin = time.perf_counter()
    torch.manual_seed(0)
    by_one = new_loss(alone(Translator(), data))
    print(f"torch alone: loss {by_one:.4f} on new sequences, {time.perf_counter() - begin:.1f} s")

    begin = time.perf_counter()
    torch.manual_seed(0)
    module = train(
        Translator(),
        data,
        blocks=True,
        loss=loss,
        optimizer=adam,
        batch_size=BATCH,
        epochs=EPOCHS,
        peers=arguments.peers,
        combine=arguments.combine,
        on_report=print,
    )
    by_peers = new_loss(module)
    seconds = time.perf_counter() - begin
    print(f"{arguments.peers} peers: loss {by_peers:.4f} on new sequences, {seconds:.1f} s with their start")
    print(f"difference: {by_peers / by_one - 1:+.1%}")
    return {"alone": by_one, "peers": by_peers}


if __name__ == "__main__":
    main()
