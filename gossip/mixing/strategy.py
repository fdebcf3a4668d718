"""The vocabulary of mixing: the methods of a strategy, for a driver of messages and for the vectorized simulator.

A strategy is a frozen dataclass without a state of its own. The state is a value that goes in and comes out.

    per peer, x of shape (parameters,)                      all peers at once, X of shape (peers, parameters)
    ---------------------------------------------------     -------------------------------------------------
    state = s.start(x)                                      state = s.start(X)
    each round:
      state = s.local(state, delta, round)                  state = s.local(state, deltas, round)
      m = s.mixing_round(round)                             m = s.mixing_round(round)
      if m is None: state = s.rest(state)                   if m is None: state = s.rest(state)
      else:                                                 else:
        state, outbox = s.send(state, m, links, chance)       state, nbytes = s.mix(state, exchange)
        for each packet that comes, at any time:
          state, replies = s.receive(state, sender, packet)
        state = s.finish(state, m, links)
    s.params(state)                                         s.params(state)

`local` takes what a training step adds to the parameters. `links` and `exchange` are those of round m of the topology:
a strategy that mixes in every fourth round only must still go through all graphs of a topology that changes.

In a training a round of a strategy that goes `by_step` is one local step, as in the papers; the others have rounds when
it suits the driver. Once the training is over, `consensus` brings the peers together, without steps.

A strategy with `synchronous = True` needs all packets of round m, and none of another round, between `send` and
`finish` of round m: the driver waits, holds back packets of a neighbor that is ahead, and drops those of a round that
is over. If it gives up waiting, `finish` gives the weight of what is missing to the own value: a consensus stays one,
but the mean moves. When somebody comes, goes or comes back it calls `regroup`, and the links of the next round are
those of the topology of however many there are then; peers know of it one by one, some of them rounds after others.

The other strategies take packets at any time, in any order, twice or never; what that does to the mean stands in their
docstrings.

Outboxes and replies are `{neighbor: Packet}`, neighbors being the topology's peer numbers. Nothing that a state or a
packet holds is written to afterwards, so both may share memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.literal import Literal
from gossip.topology import Links, Matrix, Needs, Topology, check_topology, entries, from_entries

if TYPE_CHECKING:
    from gossip.compression import Codec

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]
S = TypeVar("S")


@dataclass(frozen=True)
class Packet:
    """What one peer sends to another in one go."""

    arrays: Mapping[str, Array]
    """Flat arrays, of the dtypes that `gossip.arrays` lets travel."""
    scalars: Mapping[str, float] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, and 8 for each scalar."""
        return sum(array.nbytes for array in self.arrays.values()) + 8 * len(self.scalars)


Outbox = Mapping[int, Packet]
NOTHING: Outbox = {}


@dataclass(frozen=True)
class Exchange:
    """One round of the vectorized form: the mixing matrix, and what becomes of each packet.

    Links are the entries of W off the diagonal, in the order of `receivers` and `senders`.
    """

    round: int
    weights: Matrix
    chance: np.random.Generator
    lag: Integers | None = None
    """(links,) after how many rounds the packet sent now arrives; -1 for never. None: all arrive at once."""
    later: Callable[[int], Integers] | None = None
    """(count) -> the same of so many packets that are no link's of this round, such as answers. None: at once."""
    speaker: int | None = None
    """Only this peer speaks, and is answered at once; None: all speak at once."""

    def delayed(self, lag: Integers, later: Callable[[int], Integers] | None = None) -> Exchange:
        """The same with packets that are late or lost."""
        other = replace(self, lag=lag, later=later)
        vars(other)["_links"] = self._links  # of the same matrix
        return other

    @cached_property
    def _links(self) -> tuple[Integers, Integers, NDArray[np.float64]]:
        receivers, senders, values = entries(self.weights)
        apart = receivers != senders
        return receivers[apart], senders[apart], values[apart]

    @property
    def receivers(self) -> Integers:
        """(links,) peer numbers."""
        return self._links[0]

    @property
    def senders(self) -> Integers:
        """(links,) peer numbers."""
        return self._links[1]

    @property
    def values(self) -> NDArray[np.float64]:
        """(links,) weights."""
        return self._links[2]

    @property
    def own(self) -> NDArray[np.float64]:
        """(peers, 1) weights that peers give to themselves."""
        own: NDArray[np.float64] = self.weights.diagonal()[:, None]
        return own

    @property
    def arrived(self) -> Bools:
        """(links,) whether the packet arrives within its round."""
        return np.ones(len(self.values), bool) if self.lag is None else self.lag == 0

    @property
    def is_whole(self) -> bool:
        """Every packet arrives within its round."""
        return self.lag is None or not self.lag.any()

    @cached_property
    def mixing(self) -> Matrix:
        """W as it works on what arrived: a lost packet's weight goes to the receiver's own value."""
        if self.is_whole:
            return self.weights
        return self.matrix(self.values[self.arrived], self.arrived, keep_rows=True)

    def only(self, links: Bools) -> Matrix:
        """W with the `links` that are chosen, and the others' weight gone."""
        values = self.weights.data.copy()
        receivers, senders, _ = entries(self.weights)
        values[np.flatnonzero(receivers != senders)[~links]] = 0.0
        return sparse.csr_array((values, self.weights.indices, self.weights.indptr), shape=self.weights.shape)

    def matrix(self, values: Array, chosen: Bools, *, keep_rows: bool) -> Matrix:
        """The matrix of `values` on the `chosen` links, its diagonal filled so that rows (or columns) sum to one."""
        peers = self.weights.shape[0]
        receivers, senders = self.receivers[chosen], self.senders[chosen]
        diagonal = 1.0 - np.bincount(receivers if keep_rows else senders, values, minlength=peers)
        everyone = np.arange(peers)
        receivers, senders = np.concatenate([receivers, everyone]), np.concatenate([senders, everyone])
        return from_entries(peers, receivers, senders, np.concatenate([values, diagonal]))


class Strategy(Literal, ABC, Generic[S]):
    """One way of mixing. Subclasses are frozen dataclasses; `repr` is how one writes them."""

    needs: Needs
    """What the mixing matrix must be."""
    synchronous: bool
    """It needs all packets of a round before it ends."""
    answers = False
    """Peers answer each other, so that it matters who speaks first."""
    every_round = False
    """Its correction is wrong unless it mixes after each local step, so that `Every` does not compose with it."""
    is_bad_example = False
    """It is known not to keep what it seems to promise, and is here to be measured."""

    def check(self, topology: Topology) -> None:
        """Raise `UsageError` if the promise does not hold on `topology`."""
        try:
            check_topology(topology, self.needs)
        except UsageError as error:
            raise UsageError(f"{self!r} does not fit: {error}") from None

    def check_network(self, *, loss: float = 0.0, delay: int = 0, churn: float = 0.0, crash: float = 0.0) -> None:
        """Raise `UsageError` if the vectorized form cannot bear what goes wrong; arguments as `vectorized.simulate`."""
        if delay and self.synchronous:
            raise UsageError(
                f"delay {delay} with {self!r}, which waits for the packets of its round: delay costs it time and "
                f"changes no value; use loss, or a strategy that does not wait such as PushSum()"
            )
        if churn and self.every_round:
            raise UsageError(f"churn {churn} with {self!r}, which takes a step left out for one of length zero")

    def says_nothing(self, is_trained: bool) -> str:
        """Why bias and mass error say nothing of it; empty where they do."""
        return ""

    def compressed(self, codec: Codec) -> Strategy[Any]:
        """This strategy with packets that `codec` makes smaller.

        Raises:
            UsageError: what it sends cannot be cut down without breaking its promise.
        """
        raise UsageError(
            f"Compressed({codec!r}, {self!r}) does not compose: {type(self).__name__} {self._sends}. "
            f"What composes: Choco(), whose packets are differences, and DiLoCo(), whose packets are updates; "
            f"Every goes outside: Every(k, Compressed(codec, ...))"
        )

    _sends = "sends whole replicas, and what a codec drops of a replica is lost, not late"

    @abstractmethod
    def start(self, x: Array) -> S:
        """The state of a peer (or of all peers) with the parameters x, which are not copied if they are floats."""

    @abstractmethod
    def params(self, state: S) -> Array:
        """The parameters to train with and to read; like x. Do not write to them."""

    @abstractmethod
    def local(self, state: S, delta: Array, round: int) -> S:
        """A training step adds `delta`, like x."""

    @abstractmethod
    def send(self, state: S, round: int, links: Links, chance: np.random.Generator) -> tuple[S, Outbox]:
        """The round begins: what goes out."""

    @abstractmethod
    def receive(self, state: S, sender: int, packet: Packet) -> tuple[S, Outbox]:
        """A packet has come; what goes out at once."""

    def finish(self, state: S, round: int, links: Links) -> S:
        """The round is over."""
        return state

    def mixing_round(self, round: int) -> int | None:
        """Which round of mixing this is, counted from 0; None where there is none."""
        return round

    def rest(self, state: S) -> S:
        """A round without mixing."""
        return state

    @property
    def by_step(self) -> bool:
        """One round is one local step: without a step there is none, but for who follows others that have one."""
        return self.synchronous

    @property
    def interval(self) -> int:
        """Rounds from one with mixing to the next."""
        return 1

    def consensus(self, state: S) -> tuple[Strategy[Any], Any]:
        """What brings peers together once all steps are taken, with its state: it keeps the mean if this one does.

        By default that is this strategy, which goes on without steps. One that moves the mean, or that remembers
        steps, hands over to plain averaging.
        """
        return self, state

    @abstractmethod
    def mix(self, state: S, exchange: Exchange) -> tuple[S, int]:
        """Send, receive and finish of all peers; (state, bytes sent)."""

    def ages(self, state: S, exchange: Exchange) -> Mapping[int, int]:
        """How many of the packets that `mix` has just sent come how many rounds later; those lost count under -1."""
        if exchange.lag is None:
            return {0: len(exchange.values)} if len(exchange.values) else {}
        return dict(sorted(Counter(exchange.lag.tolist()).items()))

    def weight(self, state: S) -> float:
        """What the replica of one peer weighs in the mean that all can agree on."""
        return 1.0

    def give_up(self, state: S, neighbor: int, taken: Packet | None = None) -> tuple[S, Outbox]:
        """`neighbor` is dead or out of reach, and has taken what was sent to it up to `taken`; what goes out at once.

        It may come back, and may have taken more than it could tell.
        """
        return state, {}

    def regroup(self, state: S) -> S:
        """Somebody has come, gone or come back, or a round has ended without all that it needed.

        Others hear of it sooner or later, or not at all. Whoever goes is given up besides, with `give_up`.
        """
        return state

    def mass(self, state: S) -> tuple[Array, float]:
        """(sum of x over peers, sum of weights) of the vectorized state, what is in flight included.

        Divided, they are the mean that the peers can still agree on.
        """
        x = self.params(state)
        return x.sum(axis=0), float(x.shape[0])


GRID = 2.0**-24
"""Of weights in float32: up to one, every multiple of it is a float32."""


def averaged(weights: Matrix, x: Array) -> Array:
    """W X, in the precision of X.

    In float32 weights are rounded to multiples of `GRID`, and what that takes from a row goes to its diagonal: rows sum
    to one exactly, or a consensus would grow by a few 1e-8 in every round.
    """
    if x.dtype != np.float32 or weights.dtype == np.float32:
        product: Array = (weights @ x).astype(x.dtype, copy=False)
        return product
    receivers, senders, values = entries(weights)
    short = np.round(values / GRID) * GRID
    rest = np.bincount(receivers, values - short, minlength=weights.shape[0])
    own = receivers == senders
    short[own] += np.round(rest[receivers[own]] / GRID) * GRID
    rounded = sparse.csr_array((short.astype(np.float32), weights.indices, weights.indptr), shape=weights.shape)
    product = rounded @ x
    return product


def summed(rows: Integers, values: Array, count: int) -> Array:
    """(count, columns): `values`, (links, columns), added up by the number in `rows`. np.add.at, many times faster."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])
    ones = np.ones(len(rows), values.dtype)
    total: Array = sparse.csr_array((ones, np.argsort(rows, kind="stable"), starts), shape=(count, len(rows))) @ values
    return total


def floats(x: Array) -> Array:
    """`x` as floats of its own precision; integers become float64.

    Raises:
        UsageError: it is neither (parameters,) nor (peers, parameters), or holds no numbers.
    """
    x = np.asarray(x)
    if x.ndim not in (1, 2) or x.dtype.kind not in "fiu":
        raise UsageError(
            f"parameters of shape {x.shape} and dtype {x.dtype}, expected numbers of shape (parameters,) for one peer "
            f"or (peers, parameters) for all"
        )
    return x if x.dtype.kind == "f" else x.astype(np.float64)
