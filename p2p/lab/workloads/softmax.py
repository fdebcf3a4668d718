"""Softmax regression: convex, so that every algorithm heads for one and the same optimum."""

from __future__ import annotations

from copy import copy

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.topology import Floats
from p2p.lab.recording import Parts
from p2p.lab.workloads.workload import deal


class Softmax:
    """Cross entropy of labels given images, with weight decay; all peers' gradients in one product."""

    measure = "cross entropy in nats, with weight decay"

    def __init__(
        self,
        images: Array,
        labels: Array,
        peers: int,
        shards: str,
        rate: float,
        batch: int,
        seed: int,
        decay: float = 1e-3,
    ) -> None:
        """`images` is (rows, features) from 0 to 1, `labels` (rows,); `batch` rows per step, 0 for all.

        Raises:
            UsageError: the rows cannot be dealt, or a batch is larger than a peer's rows.
        """
        rows = deal(labels, peers, shards, np.random.default_rng([seed, 5]))
        if batch > rows.shape[1]:
            raise UsageError(f"batch {batch}, expected at most the {rows.shape[1]} rows that each of {peers} peers has")
        self._images, self._labels = images[rows], labels[rows]
        self._classes = int(labels.max()) + 1
        self._features = images.shape[1]
        self._rate, self._batch, self._seed, self._decay = rate, batch, seed, decay
        self.start: Array = np.zeros((self._features + 1) * self._classes)
        shapes = {"w": (self._features, self._classes), "b": (self._classes,)}
        self.parts = Parts.of(shapes, {"w": self._images.reshape(-1, self._features).mean(axis=0)})

    def at(self, rate: float) -> Softmax:
        other = copy(self)
        other._rate = rate
        return other

    def _split(self, x: Array) -> tuple[Array, Array]:
        cut = self._features * self._classes
        return x[..., :cut].reshape(*x.shape[:-1], self._features, self._classes), x[..., cut:]

    def delta(self, x: Array, round: int) -> Array:
        images, labels = self._images, self._labels
        if self._batch:
            random = np.random.default_rng([self._seed, 6, round])
            chosen = random.random(labels.shape).argpartition(self._batch - 1, axis=1)[:, : self._batch]
            images = np.take_along_axis(images, chosen[..., None], axis=1)
            labels = np.take_along_axis(labels, chosen, axis=1)
        w, b = self._split(x)
        error = _probabilities(images @ w + b[:, None, :])
        np.put_along_axis(error, labels[..., None], np.take_along_axis(error, labels[..., None], 2) - 1.0, 2)
        gradient_w = images.transpose(0, 2, 1) @ error / labels.shape[1] + self._decay * w
        gradient_b = error.mean(axis=1)
        return -self._rate * np.concatenate([gradient_w.reshape(len(x), -1), gradient_b], axis=1)

    def loss(self, x: Floats) -> float:
        w, b = self._split(x)
        scores = self._images.reshape(-1, self._features) @ w + b
        scores -= scores.max(axis=1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        right = np.take_along_axis(logs, self._labels.reshape(-1, 1), axis=1)
        return float(-right.mean() + self._decay / 2 * np.sum(w * w))


def _probabilities(scores: Array) -> Array:
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: Array = scores / scores.sum(axis=-1, keepdims=True)
    return probabilities
