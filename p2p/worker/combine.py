"""How the updates of peers that train at the same time add up: an origin corrects its own before it publishes.

At the end of a chunk an origin has its own update d and sees m, the sum that others added to its replica meanwhile. It
publishes d' = own * d + others * m, and every peer, itself included, just adds d': so replicas stay equal whatever the
rule. Each pair of concurrent updates is corrected once, by whichever is published second.

    sum      d' = d                                                one SGD with as many times the step: right where
                                                                   updates touch different rows, or peers are few
    adasum   d' = (1 - d.m / 2|d|^2) d - (d.m / 2|m|^2) m          the sum of what is orthogonal, the mean of what is
                                                                   the same (Maleki et al., Adasum, arXiv:2006.02924)
    damp     d' = d / (1 + b max(0, d.m) / |d|^2)                  the more others went the same way already, the less
                                                                   it adds; b is 1 for up to eight peers, then more
    mean     d' = d / peers                                        peers that start level and publish once each average
    outer    d' = d / peers + mu v, v <- mu v + d / peers          the mean with momentum: for models that are trained
                                                                   step by step

Products are taken row by row of an array with rows (embeddings: each row is a word), over the whole of any other.

An outer step is one of Nesterov's optimizer on the mean of all peers' updates (DiLoCo, arXiv:2311.08105). It is linear
in them, so each origin keeps the part v that its own updates have in the momentum, and publishes its own part of the
step. What peers agree on moves the model as far as one peer with all their steps would, but over the next updates and
not at once: mu = 1 - 1 / peers. Whole steps overshoot as soon as peers are some steps apart. A row that an update
leaves as it was rests, and keeps its momentum: so updates of sparse features stay sparse.

A gradient is computed while others publish, so it is of a model some steps old. Its worker begins where the momentum
will have led by then: at the replica and peers * mu * v, as if all peers' momentum were its own. So Nesterov's method
looks ahead as far as the exchange is behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arrays import Array, Arrays
from gossip.errors import UsageError

Floats = NDArray[Any]
Products = tuple[Floats, Floats, Floats]
"""(d.d, d.m, m.m), each (rows,)."""
Rule = Callable[[Products, int], tuple[Floats, Floats]]
"""(products, peers) -> (own, others), the coefficients of d and m, each (rows,)."""

AGREEMENT_MAX = 2.5
"""Times an update that all peers agree on counts under "damp"."""
MOMENTUM_MAX = 0.97
"""Of outer steps. That of 32 peers is below it."""
OPPOSED = 0.5
"""A cosine, of what was learned and of momentum: below minus this the momentum of an array is halved."""
RECOVERY = 0.1
"""Of the largest momentum, with each update that goes its way."""
SUM_PEERS_MAX = 2
"""Of 17 million words, three times, exchanged whole every 62,000 words (one peer: 33.6 % of analogies): two peers reach
34.4 % by sum, 29.9 % by damp; eight 0.3 % by sum, 28.4 % by damp. Four were only tried on 5 million words, where both
rules do; damp is the one that cannot diverge. The benchmark of their quality measures it (`--combine sum`)."""


def by_sum(products: Products, peers: int) -> tuple[Floats, Floats]:
    """d' = d."""
    dd, _, _ = products
    return np.ones_like(dd), np.zeros_like(dd)


def by_mean(products: Products, peers: int) -> tuple[Floats, Floats]:
    """d' = d / peers."""
    dd, _, _ = products
    return np.full_like(dd, 1 / peers), np.zeros_like(dd)


def by_damp(products: Products, peers: int) -> tuple[Floats, Floats]:
    """d' = d / (1 + b max(0, d.m) / |d|^2), b = `damp_weight(peers)`."""
    dd, dm, _ = products
    return _ratio(dd, dd + damp_weight(peers) * np.maximum(dm, 0), 1.0), np.zeros_like(dd)


def damp_weight(peers: int) -> float:
    """The b of "damp": peers that publish the same update in turn move a row by `AGREEMENT_MAX` of it together.

    Each of n publishes c d after n - 1 others did: c (1 + b (n - 1) c) = 1, and n c is to be no more than that. With
    b = 1 eight peers reach it; n c grows like the root of n, and from about two on frequent rows swing.
    """
    own = min(1.0, AGREEMENT_MAX / peers)
    return 1.0 if own == 1.0 else max(1.0, (1 / own - 1) / ((peers - 1) * own))


def by_adasum(products: Products, peers: int) -> tuple[Floats, Floats]:
    """d' = (1 - d.m / 2|d|^2) d - (d.m / 2|m|^2) m."""
    dd, dm, mm = products
    return 1 - _ratio(dm, 2 * dd, 0.0), -_ratio(dm, 2 * mm, 0.0)


OUTER = "outer"
RULES: dict[str, Rule] = {"sum": by_sum, "mean": by_mean, "damp": by_damp, "adasum": by_adasum}


def products(d: Array, m: Array) -> Products:
    """The products that the rules are made of, for d and m (rows, ...) of the same shape."""
    a, b = d.reshape(len(d), -1), m.reshape(len(m), -1)
    exact = np.promote_types(a.dtype, np.float32)  # the square of a float16 above 256 is none
    aa, ab, bb = (np.einsum("ij,ij->i", one, other, dtype=exact) for one, other in ((a, a), (a, b), (b, b)))
    return aa, ab, bb


NAMES = (*RULES, OUTER)
"""Of all rules. The last has a memory, and is no function of products."""


def combined(rule: str, d: Array, m: Array, peers: int) -> Array:
    """d' of one array; by "sum" d itself, and so for integers. Arrays of one dimension or none are one row."""
    if rule == "sum" or d.dtype.kind != "f":
        return d
    if d.ndim < 2:
        return combined(rule, d.reshape(1, -1), m.reshape(1, -1), peers).reshape(d.shape)
    shape = (-1, *[1] * (d.ndim - 1))
    own, others = RULES[rule](products(d, m), peers)
    return np.asarray(own.reshape(shape) * d + others.reshape(shape) * m, d.dtype)


@dataclass
class _Momentum:
    """Of one array: what it is, and how much of it the next step takes."""

    velocity: Array
    share: float


class OuterSteps:
    """Of one worker. An update counts when it is published; until then the momentum is what it was.

    Where what is learned turns back much of where the momentum of an array leads, the model is beyond where it was to
    go, and this update is a plain share of the mean; the array has half the momentum from then on. It grows again with
    each update that goes on in its direction. So at rates at which one process is about to overshoot, steps become
    those of "mean".
    """

    def __init__(self, peers: int) -> None:
        self._peers = peers
        self.part = 1 / peers
        self.momentum_max = min(MOMENTUM_MAX, 1 - self.part)
        self._kept: dict[str, _Momentum] = {}
        self._next: dict[str, _Momentum] = {}

    def drop(self) -> None:
        """Another training begins without momentum."""
        self._kept, self._next = {}, {}

    def look_ahead(self, arrays: Arrays) -> None:
        """Bring a copy of the replica, before a gradient, to where the momentum leads, in place."""
        for name, array in arrays.items():
            if name in self._kept:
                momentum = self._kept[name]
                array += np.asarray(self._peers * momentum.share * momentum.velocity, array.dtype)

    def take(self, delta: Arrays, counters: Collection[str]) -> None:
        """Make the own part of the outer step of an update, in place. Counters and integers are summed as they are."""
        self._next = {}
        for name, change in delta.items():
            if name in counters or change.dtype.kind != "f":
                continue
            change *= self.part
            if self.momentum_max:
                self._next[name] = self._step(change, self._kept.get(name))

    def counted(self) -> None:
        """The update of the last step was published."""
        self._kept |= self._next
        self._next = {}

    def _step(self, change: Array, before: _Momentum | None) -> _Momentum:
        """Add momentum to an array's part of the mean, in place; returns what it is for the next time."""
        if before is None:
            before = _Momentum(np.zeros_like(change), self.momentum_max)
        cosine = _cosine(change, before.velocity)
        if cosine < -OPPOSED:
            return _Momentum(np.zeros_like(change), before.share / 2)
        share = before.share
        if cosine > 0:
            share = min(self.momentum_max, share + RECOVERY * self.momentum_max)
        velocity = np.asarray(share * before.velocity + change, change.dtype)
        step = np.asarray(share * velocity, change.dtype)
        if change.ndim > 1 and (resting := ~change.any(axis=tuple(range(1, change.ndim)))).any():
            velocity[resting] = before.velocity[resting]
            step[resting] = 0
        change += step
        return _Momentum(velocity, share)


def for_embeddings(peers: int) -> str:
    """The rule for models of rows that few updates share: summed by two peers, and damped by more."""
    return "damp" if peers > SUM_PEERS_MAX else "sum"


def check_rule(rule: str | None) -> None:
    """Raise `UsageError` for a rule that there is not."""
    if rule is not None and (not isinstance(rule, str) or rule not in NAMES):
        raise UsageError(f"combine={rule!r}, expected {', '.join(map(repr, NAMES))}, or None to have one chosen")


def _cosine(one: Array, other: Array) -> float:
    a, b = one.reshape(-1), other.reshape(-1)
    scale = np.promote_types(a.dtype, np.float32)
    aa, ab, bb = (float(np.einsum("i,i->", x, y, dtype=scale)) for x, y in ((a, a), (a, b), (b, b)))
    product = math.sqrt(aa) * math.sqrt(bb)
    return ab / product if 0 < product < math.inf else 0.0


def _ratio(numerator: Floats, denominator: Floats, otherwise: float) -> Floats:
    """The quotient; `otherwise` where it is not a number: nothing was changed there."""
    quotient = np.full_like(numerator, otherwise)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient
