"""All peers at once, in rounds: what happens to consensus if ...

The same strategies as with messages, in their vectorized form: one row of X per peer, one sparse product per round.

    result = simulate(topology.ring(16), DPsgd(), parameters=10, rounds=200, seed=1)
    result.records[-1].distance

Each round: `delta` (a training step, if there is one) at every peer, then the strategy mixes, then a record is taken.
Bias and mass of a record are not to be left out: by the distance alone, an algorithm that agrees on the wrong value
looks perfect.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sparse

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.mixing.strategy import Bools, Exchange, Integers, Strategy
from gossip.topology import Floats, Matrix, Needs, Topology

Gradient = Callable[[Array, int], Array]
"""(parameters of all peers, (peers, parameters); round) -> what a training step adds to them, of the same shape."""
Observe = Callable[[int, Array], None]
"""(round, parameters of all peers after it, (peers, parameters), not to be written to)."""


@dataclass(frozen=True)
class Record:
    """What is seen after one round."""

    round: int
    distance: float
    """S: the sum of squares of all differences to the mean of now, over peers and parameters."""
    bias: float
    """Length of the difference between the mean of now and the true mean: that of the start plus all deltas.

    Of some strategies this says nothing, nor does mass: `Strategy.says_nothing` gives the reason."""
    mass: Floats
    """(parameters,) sum of x over peers, what is in flight included."""
    weight: float
    """Sum of push-sum weights, in flight included; the number of peers for everything else."""
    links: int
    """How many packets were sent."""
    nbytes: int
    """Bytes in these packets."""
    ages: Mapping[int, int]
    """How many of these packets are used how many rounds after they were sent; those lost count under -1."""
    true_mean: Floats
    """(parameters,) the mean of the start plus the means of all deltas so far."""

    @property
    def nbytes_per_link(self) -> float:
        """Mean size of a packet."""
        return self.nbytes / self.links if self.links else 0.0


@dataclass(frozen=True)
class Result:
    """A whole simulation."""

    records: tuple[Record, ...]
    """One per round; `start` holds what was before the first."""
    start: Record
    params: Array
    """(peers, parameters) at the end."""
    mean: Floats
    """(parameters,) the true mean at the end."""
    staleness: Mapping[int, int]
    """How many packets were used how many rounds after they were sent; those lost count under -1."""

    @property
    def distances(self) -> Floats:
        """S at the start and after each round, (rounds + 1,)."""
        return np.array([self.start.distance, *(record.distance for record in self.records)])


def simulate(
    topology: Topology,
    strategy: Strategy[Any],
    *,
    parameters: int = 1,
    rounds: int = 100,
    seed: int = 0,
    start: Array | None = None,
    gradient: Gradient | None = None,
    loss: float = 0.0,
    delay: int = 0,
    staleness: int = 0,
    churn: float = 0.0,
    in_turn: bool = False,
    check: bool = True,
    observe: Observe | None = None,
) -> Result:
    """Run `strategy` on `topology`.

    Args:
        topology: who mixes with whom.
        strategy: how; bad examples too.
        parameters: of one peer.
        rounds: how many.
        seed: of everything drawn: the start, losses, delays, absences, and what the strategy draws.
        start: (peers, parameters); standard normal numbers by default.
        gradient: the training step, with its rate and sign: what it gives is added.
        loss: probability that a packet never arrives.
        delay: each packet takes 0 to this many rounds more, equally likely. Only for strategies that do not wait for
            their packets: with the others, delay costs time and nothing else.
        staleness: `gradient` is given the parameters of this many rounds ago.
        churn: probability that a peer is absent in a round: it neither trains nor mixes, and the others know.
        in_turn: within a round peers step and speak one after the other, in an order that is drawn, as those do that go
            by clocks of their own; else all at once. For strategies whose peers answer each other, `PairwiseExchange`.
        check: refuse a topology that is not what the strategy needs. Without, one can see what happens.
        observe: called after each round, for what a record does not hold.

    Raises:
        UsageError: what was asked cannot be; the text says why.
    """
    conditions = _Conditions(loss=loss, delay=delay, staleness=staleness, churn=churn, in_turn=in_turn)
    _check(topology, strategy, conditions, start=start, parameters=parameters, rounds=rounds)
    if check:
        strategy.check(topology)
    x = np.random.default_rng([seed, 0, 1]).standard_normal((topology.peers, parameters)) if start is None else start
    run = _Run(topology, strategy, conditions, x, gradient=gradient, seed=seed)
    first = run.record(-1, 0, {})
    records = []
    for round in range(rounds):
        records.append(run.round(round))
        if observe is not None:
            observe(round, run.params())
    ages: Counter[int] = Counter()
    for record in records:
        ages.update(record.ages)
    return Result(tuple(records), first, run.params(), run.mean, dict(sorted(ages.items())))


@dataclass(frozen=True)
class _Conditions:
    """How packets and peers fare."""

    loss: float
    delay: int
    staleness: int
    churn: float
    in_turn: bool


class _Run:
    """All peers, between two rounds."""

    def __init__(
        self,
        topology: Topology,
        strategy: Strategy[Any],
        conditions: _Conditions,
        x: Array,
        *,
        gradient: Gradient | None,
        seed: int,
    ) -> None:
        self._topology = topology
        self._strategy = strategy
        self._conditions = conditions
        self._gradient = gradient
        # Topologies draw from [seed, round]; a third number keeps these apart from them under the same seed.
        self._chance = np.random.default_rng([seed, 1, 1])
        self._state = strategy.start(x)
        self.mean = np.asarray(x, np.float64).mean(axis=0)
        """(parameters,) the true mean."""
        self._past = [self.params()]
        """As many parameters as a gradient is late, and the newest; the oldest first."""

    def params(self) -> Array:
        """(peers, parameters)"""
        return self._strategy.params(self._state)

    def round(self, round: int) -> Record:
        """Let all train and mix once, and see what came of it."""
        peers, chance, conditions = self._topology.peers, self._chance, self._conditions
        present = chance.random(peers) >= conditions.churn if conditions.churn else None
        nbytes = 0
        lags: Counter[int] = Counter()
        for speaker in chance.permutation(peers).tolist() if conditions.in_turn else (None,):
            self._train(round, present, speaker)
            exchange = self._exchange(round, present, speaker)
            if exchange is None:
                self._state = self._strategy.rest(self._state)
                continue
            self._state, sent = self._strategy.mix(self._state, exchange)
            if sent:
                nbytes += sent
                lags.update(self._strategy.ages(self._state, exchange))
        record = self.record(round, nbytes, lags)
        late = conditions.staleness
        self._past = [*self._past[-late:], self.params()] if late else [self.params()]
        return record

    def record(self, round: int, nbytes: int, ages: Mapping[int, int]) -> Record:
        """What is seen now, with so many bytes sent in packets of these ages."""
        x = self.params()
        mean = x.mean(axis=0, dtype=np.float64)
        apart = x - mean
        mass, weight = self._strategy.mass(self._state)
        bias = math.sqrt(float(np.sum((mean - self.mean) ** 2)))
        distance, links = float(np.sum(np.square(apart))), sum(ages.values())
        return Record(round, distance, bias, mass, weight, links, nbytes, ages, self.mean)

    def _train(self, round: int, present: Bools | None, speaker: int | None) -> None:
        """Add what the peers that are present learn, or only the one that speaks."""
        if self._gradient is None:
            return
        seen = self.params() if self._conditions.in_turn and not self._conditions.staleness else self._past[0]
        delta = np.asarray(self._gradient(seen, round))
        if delta.shape != seen.shape:
            raise UsageError(f"gradient of round {round} gave shape {delta.shape}, expected {seen.shape}")
        if present is not None:
            delta = delta * present[:, None]
        if speaker is not None:
            delta = delta * (np.arange(len(delta)) == speaker)[:, None]
        self.mean = self.mean + delta.mean(axis=0)
        self._state = self._strategy.local(self._state, delta, round)

    def _exchange(self, round: int, present: Bools | None, speaker: int | None) -> Exchange | None:
        """Among those that are present; None in a round without mixing."""
        mixing = self._strategy.mixing_round(round)
        if mixing is None:
            return None
        weights = self._topology.weights(mixing)
        if present is not None:
            weights = without(weights, ~present, self._strategy.needs)
        exchange = Exchange(mixing, weights, self._chance, speaker=speaker)
        loss, delay = self._conditions.loss, self._conditions.delay
        if loss or delay:
            drawn = partial(_lags, chance=self._chance, loss=loss, delay=delay)
            exchange = exchange.delayed(drawn(len(exchange.values)), drawn)
        return exchange


def _check(
    topology: Topology,
    strategy: Strategy[Any],
    conditions: _Conditions,
    *,
    start: Array | None,
    parameters: int,
    rounds: int,
) -> None:
    loss, delay, staleness, churn = conditions.loss, conditions.delay, conditions.staleness, conditions.churn
    for name, share in (("loss", loss), ("churn", churn)):
        if not 0.0 <= share < 1.0:
            raise UsageError(f"{name} {share}, expected a probability from 0 to less than 1")
    for name, count in (("delay", delay), ("staleness", staleness), ("rounds", rounds)):
        if count < 0:
            raise UsageError(f"{name} {count}, expected a number of rounds from 0")
    if parameters < 1:
        raise UsageError(f"{parameters} parameters, expected at least 1")
    strategy.check_network(loss=loss, delay=delay, churn=churn)
    if start is not None and (start.ndim != 2 or len(start) != topology.peers):
        raise UsageError(f"start of shape {start.shape}, expected ({topology.peers}, parameters)")
    if conditions.in_turn and (delay or not strategy.answers):
        what = f"delay {delay}" if delay else repr(strategy)
        raise UsageError(f"in_turn with {what}; it is for strategies whose peers answer each other at once")


def _lags(links: int, chance: np.random.Generator, loss: float, delay: int) -> Integers:
    lags = chance.integers(0, delay + 1, links) if delay else np.zeros(links, np.int64)
    lags[chance.random(links) < loss] = -1
    return lags


def without(weights: Matrix, absent: Bools, needs: Needs) -> Matrix:
    """`weights` with no link to or from the `absent`; both ends know, and keep the weight to themselves.

    Rows still sum to one, or columns where that is all that is needed; both where the matrix is symmetric.
    """
    entries = weights.tocoo()
    receivers, senders = entries.coords
    cut = (absent[receivers] | absent[senders]) & (receivers != senders)
    keeper = receivers if Needs.ROWS in needs else senders
    coords = (np.where(cut, keeper, receivers), np.where(cut, keeper, senders))
    return sparse.coo_array((entries.data, coords), shape=weights.shape).tocsr()
