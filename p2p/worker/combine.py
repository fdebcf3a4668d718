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

Products are taken row by row of an array with rows (embeddings: each row is a word), over the whole of any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arrays import Array
from gossip.errors import UsageError

Floats = NDArray[Any]
Products = tuple[Floats, Floats, Floats]
"""(d.d, d.m, m.m), each (rows,)."""
Rule = Callable[[Products, int], tuple[Floats, Floats]]
"""(products, peers) -> (own, others), the coefficients of d and m, each (rows,)."""

AGREEMENT_MAX = 2.5
"""Times an update that all peers agree on counts under "damp"."""
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


RULES: dict[str, Rule] = {"sum": by_sum, "mean": by_mean, "damp": by_damp, "adasum": by_adasum}


def products(d: Array, m: Array) -> Products:
    """The products that the rules are made of, for d and m (rows, ...) of the same shape."""
    a, b = d.reshape(len(d), -1), m.reshape(len(m), -1)
    return np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->i", a, b), np.einsum("ij,ij->i", b, b)


def combined(rule: str, d: Array, m: Array, peers: int) -> Array:
    """d' of one array; by "sum" d itself. Arrays of one dimension or none are one row."""
    if rule == "sum":
        return d
    if d.ndim < 2:
        return combined(rule, d.reshape(1, -1), m.reshape(1, -1), peers).reshape(d.shape)
    shape = (-1, *[1] * (d.ndim - 1))
    own, others = RULES[rule](products(d, m), peers)
    return np.asarray(own.reshape(shape) * d + others.reshape(shape) * m, d.dtype)


def for_embeddings(peers: int) -> str:
    """The rule for models of rows that few updates share: summed by two peers, and damped by more."""
    return "damp" if peers > SUM_PEERS_MAX else "sum"


def check_rule(rule: str | None) -> None:
    """Raise `UsageError` for a rule that there is not."""
    if rule is not None and (not isinstance(rule, str) or rule not in RULES):
        raise UsageError(f"combine={rule!r}, expected {', '.join(map(repr, RULES))}, or None to have one chosen")


def _ratio(numerator: Floats, denominator: Floats, otherwise: float) -> Floats:
    """The quotient; `otherwise` where it is not a number: nothing was changed there."""
    quotient = np.full_like(numerator, otherwise)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient
