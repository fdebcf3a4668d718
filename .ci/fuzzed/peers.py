"""Peers that hear well-formed messages in any order, of members and of strangers: none raises, and all invariants hold.

What a peer wants done is not done: nobody answers but by chance.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from gossip import messages as gossip
from gossip.arrays import Packed
from gossip.errors import MismatchError
from gossip.events import (
    Closed,
    Computed,
    Disconnected,
    Exhausted,
    Initialized,
    Joined,
    Progressed,
    Received,
    Resumed,
    Send,
    Settling,
    Started,
    Tasked,
    Ticked,
)
from gossip.lanes.peer import Peer, Settings
from gossip.marks import Mark, Series, Unit
from gossip.marks import packed as packed_marks
from gossip.membership import Detection
from gossip.messages import PeerId, Rumor, Standing
from gossip.mixing import DPsgd
from gossip.mixing.neighbors import Plan
from gossip.mixing.peer import MixPeer, MixSettings
from gossip.story import Witness
from gossip.topology import complete

ME, MEMBERS, STRANGER = PeerId("me"), tuple(map(PeerId, "abz")), PeerId("stranger")
WEIGHTS = Packed.of({"w": np.zeros(3, np.float32)})
UPDATES = (
    WEIGHTS,
    Packed.of({"w": np.ones(3, np.float32)}),
    Packed.of({"w": np.full(3, np.nan, np.float32)}),
    Packed.of({"v": np.ones(2)}),
    Packed.of({"w[rows]": np.array([0, 9], np.int32), "w[values]": np.ones(2, np.float32)}),
)
COUNTS = (0, 1, 2, 3, 4, 7, 1000, 1 << 40, (1 << 63) - 1)
STEPS = 60
"""Events of one peer."""


class Sequence:
    """One peer, and what it hears."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._now = 0.0
        detection = Detection() if chance.random() < 0.5 else None
        mixes = chance.random() < 0.3
        peer: Any
        if mixes:
            plan = Plan(complete, DPsgd())
            generator = np.random.default_rng(chance.getrandbits(32))
            peer = MixPeer(ME, WEIGHTS.layout, plan, generator, MixSettings(detection=detection))
        else:
            peer = Peer(ME, WEIGHTS.layout, Settings(detection=detection), chance=random.Random(chance.getrandbits(32)))
        self.witness = Witness(peer, checks=True)
        self._asked: list[gossip.Message] = []
        """Of what it asked for lately: answers to that get further."""
        self._mixes = mixes
        self._era = 0
        self.happen(Initialized(WEIGHTS) if mixes else Started({}))
        for member in MEMBERS[: chance.randrange(4)]:
            self.happen(Joined(member))

    def run(self) -> int:
        """Let it happen; how many events there were."""
        for _ in range(STEPS):
            self._now += self._chance.choice((0.0, 0.01, 0.3, 3.0))
            self.happen(self._event())
        return STEPS

    def happen(self, event: Any) -> None:
        if isinstance(event, Received) and isinstance(event.message, gossip.Bulk):
            try:
                if not self.witness.peer.expects(event.message):
                    return
            except MismatchError:
                return
        for effect in self.witness.handle(event, self._now):
            if isinstance(effect, Send):
                self._asked = [*self._asked[-7:], effect.message]
        self.witness.peer.deadline()

    def _event(self) -> Any:
        chance = self._chance
        kind = chance.random()
        if kind < 0.7:
            return Received(self._message())
        own: list[Any] = [
            Ticked(),
            Computed(UPDATES[1], None if chance.random() < 0.3 else self._unit(), chance.randrange(2)),
            Progressed(self._who()),
            Disconnected(self._who()),
            Exhausted(chance.choice((0.0, 1.0))),
            Closed(chance.randrange(3)),
        ]
        if self._mixes:
            self._era += chance.random() < 0.2  # the driver program counts them
            own += [Tasked(chance.randrange(3)), Resumed(self._era), Settling(self._era, chance.randrange(4))]
        return chance.choice(own)

    def _who(self) -> PeerId:
        return self._chance.choice((*MEMBERS, *MEMBERS, STRANGER))

    def _anybody(self) -> PeerId:
        return self._chance.choice((*MEMBERS, ME, STRANGER))

    def _count(self) -> int:
        return self._chance.choice(COUNTS) if self._chance.random() < 0.7 else self._chance.randrange(8)

    def _unit(self) -> Unit:
        return Unit(self._chance.randrange(3), self._chance.randrange(2), self._chance.randrange(6))

    def _frontiers(self) -> dict[PeerId, int]:
        return {self._anybody(): self._count() for _ in range(self._chance.randrange(4))}

    def _rumors(self) -> tuple[Rumor, ...]:
        standing = self._chance.choice(list(Standing))
        return tuple(
            Rumor(self._anybody(), standing, self._count(), self._anybody()) for _ in range(self._chance.randrange(3))
        )

    def _marks(self) -> tuple[Series, ...]:
        chance = self._chance
        few = [Mark(self._unit(), chance.randrange(2), chance.random() < 0.2) for _ in range(chance.randrange(4))]
        if few or chance.random() < 0.5:
            return packed_marks(few)
        last = chance.choice((5, 1000, 1 << 40, 1 << 62))
        runs = np.array([0, last, chance.choice((1, last))], np.int64).tobytes()
        return (Series(chance.randrange(3), 0, chance.randrange(2), chance.random() < 0.3, runs),)

    def _k(self) -> int:
        """Mostly that of a question."""
        ks = [message.k for message in self._asked if hasattr(message, "k")]
        return self._chance.choice(ks) if ks and self._chance.random() < 0.8 else self._count()

    def _refused(self) -> tuple[gossip.PeerId, ...]:
        return (self._anybody(),) if self._chance.random() < 0.2 else ()

    def _message(self) -> gossip.Message:
        chance, who, count, k = self._chance, self._who(), self._count, self._k()
        update = chance.choice(UPDATES)
        lo = chance.choice((1, 1, 1, 2, 3, max(1, count())))
        lane = chance.choice((None, None, self._anybody()))
        made: list[Any] = [
            lambda: gossip.Advert(
                who,
                count(),
                self._frontiers(),
                chance.random() < 0.9,
                k,
                self._rumors(),
                self._refused(),
                9.0 * chance.random(),
            ),
            lambda: gossip.Pull(who, count(), k, lane),
            lambda: gossip.Range(who, lo, max(lo, count()), k, self._marks(), update.layout, update, lane=lane),
            lambda: gossip.Unknown(who, count(), k, lane),
            lambda: gossip.StateRequest(who, k, self._frontiers(), tuple({self._anybody()})),
            lambda: gossip.State(
                who, self._frontiers(), k, {self._anybody(): self._marks()}, update.layout, update, count(), count()
            ),
            lambda: gossip.Credit(who, k, count()),
            lambda: gossip.Here(who),
            lambda: gossip.Pin(who, self._anybody(), k),
            lambda: gossip.Pinned(who, k),
            lambda: gossip.Unpin(who, k),
            lambda: gossip.Ping(who, k, self._rumors()),
            lambda: gossip.PingRequest(who, k, self._anybody()),
            lambda: gossip.Ack(who, k, self._anybody(), self._rumors()),
            lambda: gossip.Nack(who, k, self._anybody()),
            lambda: gossip.Offer(who, count(), self._frontiers(), self._rumors()),
            lambda: gossip.PacketRequest(who, count(), k),
            lambda: gossip.PacketReply(who, count(), count(), count(), k, {"n": 1.0}, update.layout, update),
        ]
        return chance.choice(made)()
