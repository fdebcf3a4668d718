"""A group of masters in virtual time, on a network that loses, repeats and delays, whose members are killed and stand
still. It is a test of `p2p.standby.member`, and of what is built on it: what was acknowledged is there, once.

    clients -> who leads, as they believe -> Member ... Commit -> applied, a little later -> acknowledged
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal

from p2p.standby.member import Commit, Effect, GiveCopy, Leads, Member, Send, TakeCopy
from p2p.standby.messages import House, Place, decode, encode

Fault = Literal["kill", "stand still", "cut off", "deaf"]

TICK_S = 0.05
GONE_S = 1e9
CLIENT_PATIENCE_S = 1.0
APPLY_S = 0.004
PAUSE_S = 0.05
"""Of a client, between two updates."""


@dataclass
class Bad:
    """How bad the network is."""

    delay_s: float = 0.01
    loss: float = 0.0
    repeats: float = 0.0
    overtakes: float = 0.0
    """Of what is sent, so much is not held behind what was sent before on the same way."""


class WrongError(AssertionError):
    """The group has broken its promise."""


@dataclass(eq=False)
class Host:
    """One member, and what stands for its model: the list of what was applied."""

    member: Member
    life: int = 0
    """How often it was begun."""
    still_until: float = 0.0
    alone_until: float = 0.0
    deaf_until: float = 0.0
    state: list[str] = field(default_factory=list)
    applied: int = 0
    todo: list[Commit | GiveCopy | TakeCopy] = field(default_factory=list)
    busy: bool = False
    waits: dict[str, int] = field(default_factory=dict)
    """Clients by what they wait for, while this one leads."""


class Group:
    """Run it, then look at `acknowledged`, `gaps` and the hosts' `state`."""

    def __init__(self, members: int, clients: int, seed: int, bad: Bad | None = None) -> None:
        self.now = 0.0
        self.bad = bad or Bad()
        self.random = random.Random(seed)
        self.hosts = [Host(Member(me, members, seed)) for me in range(members)]
        self.acknowledged: dict[str, float] = {}
        """When, by update."""
        self.agreed: dict[int, bytes] = {}
        """What was committed under each number, by anybody."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._ways: dict[tuple[int, int], float] = {}
        """When the last message on each arrives."""
        self._stops_at = 0.0
        for me in range(members):
            self._after(self.random.random() * TICK_S, partial(self._tick, me))
        for client in range(clients):
            self._next_update(client, 0)

    def fault(self, at: float, kind: Fault, whom: int | None, seconds: float) -> None:
        """At that time a member, or None: whoever leads, is killed and begun again, stands still, is cut off, or hears
        nobody and is heard, for so long. Where so many have lost what they had that one more would be most, it stands
        still, and is not killed.
        """
        self._after(at - self.now, lambda: self._strike(kind, whom, seconds))

    def run(self, until: float) -> None:
        """Clients send until then; what is under way comes to its end."""
        self._stops_at = until
        while self._events and self._events[0][0] < until + 60:
            self.now, _, happen = heapq.heappop(self._events)
            happen()

    def check(self) -> None:
        """Raise `WrongError` unless every member has everything that was acknowledged, once, in one order."""
        longest = max((host.state for host in self.hosts), key=len)
        for host in self.hosts:
            if host.state != longest:
                raise WrongError(f"member {host.member.me} has {len(host.state)} updates, another {len(longest)}")
        if len(set(longest)) < len(longest):
            raise WrongError("an update was applied twice")
        if missing := set(self.acknowledged) - set(longest):
            raise WrongError(f"{len(missing)} updates that were acknowledged are lost, {min(missing)} among them")

    def longest_wait(self) -> float:
        """The longest time in which nothing was acknowledged."""
        times = [0.0, *sorted(self.acknowledged.values())]
        return max((after - before for before, after in pairwise(times)), default=0.0)

    # ------------------------------------------------------------------------------------------------------ clients

    def _next_update(self, client: int, number: int) -> None:
        if self.now <= self._stops_at or number == 0:
            self._after(
                PAUSE_S * 2 * self.random.random(), lambda: self._send(client, number, client % len(self.hosts))
            )

    def _send(self, client: int, number: int, to: int) -> None:
        """Until it is acknowledged, to one member after the other; each says who leads."""
        update = f"{client}:{number}"
        if update in self.acknowledged:
            return
        host = self.hosts[to]
        if self._reachable(host):
            if host.member.leads:
                self._after(self._delay(), lambda: self._propose(to, host.life, client, update))
            elif (leader := host.member.leader) is not None:
                self._after(self._delay(), lambda: self._send(client, number, leader))
                return
        again = (to + 1) % len(self.hosts)
        self._after(CLIENT_PATIENCE_S * (1 + self.random.random()) / 2, lambda: self._send(client, number, again))

    def _propose(self, to: int, life: int, client: int, update: str) -> None:
        host = self.hosts[to]
        if host.life == life and host.member.leads and self.now >= host.still_until:
            host.waits[update] = client
            self._carry_out(to, host.member.propose(update.encode(), self.now))

    # ------------------------------------------------------------------------------------------------------ members

    def _tick(self, me: int) -> None:
        host = self.hosts[me]
        if self.now >= host.still_until:
            self._carry_out(me, host.member.tick(self.now))
            self._after(TICK_S, lambda: self._tick(me))
        else:
            self._after(host.still_until - self.now + 1e-3, lambda: self._tick(me))

    def _carry_out(self, me: int, effects: list[Effect]) -> None:
        host = self.hosts[me]
        for effect in effects:
            match effect:
                case Send(to=to, message=message, data=data):
                    self._transmit(me, to, encode(message), data)
                case Leads(leader=leader):
                    if leader != me:
                        host.waits.clear()
                case Commit(number=number, data=data):
                    if self.agreed.setdefault(number, data) != data:
                        raise WrongError(f"entry {number} is one thing here, and another there")
                    host.todo.append(effect)
                case _:
                    host.todo.append(effect)
        self._apply_next(me)

    def _transmit(self, me: int, to: int, said: bytes, data: bytes | None) -> None:
        if self.now < self.hosts[me].alone_until:
            return
        for _ in range(2 if self.random.random() < self.bad.repeats else 1):
            if self.random.random() >= self.bad.loss:
                life = self.hosts[to].life
                at = self.now + self._delay()
                if self.random.random() >= self.bad.overtakes:
                    at = self._ways[me, to] = max(at, self._ways.get((me, to), 0.0))
                self._after(at - self.now, partial(self._deliver, me, to, life, said, data))

    def _deliver(self, me: int, to: int, life: int, said: bytes, data: bytes | None) -> None:
        host = self.hosts[to]
        if host.life != life or self.now < max(host.deaf_until, self.hosts[me].alone_until, host.alone_until):
            return
        if self.now < host.still_until:
            self._after(host.still_until - self.now, lambda: self._deliver(me, to, life, said, data))
            return
        message = decode(said)
        assert not isinstance(message, House)
        self._carry_out(to, host.member.receive(me, message, data, self.now))

    def _apply_next(self, me: int) -> None:
        host = self.hosts[me]
        if not host.busy and host.todo:
            host.busy = True
            life = host.life
            self._after(APPLY_S * self.random.random() * 2, lambda: self._applied(me, life))

    def _applied(self, me: int, life: int) -> None:
        host = self.hosts[me]
        if host.life != life:
            return
        if self.now < host.still_until:
            self._after(host.still_until - self.now + 1e-4, lambda: self._applied(me, life))
            return
        host.busy, effect = False, host.todo.pop(0)
        match effect:
            case Commit(number=number, data=data):
                if number != host.applied + 1:
                    raise WrongError(f"member {me} applies entry {number} after {host.applied}")
                host.applied = number
                update = data.decode()
                if update not in host.state:
                    host.state.append(update)
                host.member.applied(number)
                if update in host.waits:
                    client = host.waits.pop(update)
                    self.acknowledged.setdefault(update, self.now)
                    self._next_update(client, int(update.split(":")[1]) + 1)
            case GiveCopy(to=to, view=view):
                data = json.dumps(host.state).encode()
                self._carry_out(me, host.member.copied(to, view, host.applied, data))
            case TakeCopy(number=number, data=data):
                host.state, host.applied = json.loads(data), number
        self._apply_next(me)

    def _strike(self, kind: Fault, whom: int | None, seconds: float) -> None:
        if whom is None:
            whom = next((host.member.me for host in self.hosts if host.member.leads and self._reachable(host)), 0)
        host = self.hosts[whom]
        if host.still_until > GONE_S:
            return  # it is dead already
        lost = sum(other.member.status == "recovering" or other.still_until > GONE_S for other in self.hosts)
        if kind == "kill" and lost >= len(self.hosts) // 2:
            kind = "stand still"  # no group survives the loss of most of its members
        if kind == "stand still":
            host.still_until = self.now + seconds
        elif kind == "cut off":
            host.alone_until = self.now + seconds
        elif kind == "deaf":
            host.deaf_until = self.now + seconds
        else:
            host.life += 1
            host.still_until = host.alone_until = 2 * GONE_S
            self._after(seconds, lambda: self._begin_again(whom))

    def _begin_again(self, me: int) -> None:
        host = self.hosts[me]
        member = Member(me, len(self.hosts), self.random.randrange(1 << 30))
        self.hosts[me] = Host(member, host.life + 1)
        self._carry_out(me, member.recover(self.random.randrange(1, 1 << 30), Place(f"tcp://member:{me}"), self.now))
        self._tick(me)

    # -------------------------------------------------------------------------------------------------------- parts

    def _reachable(self, host: Host) -> bool:
        return self.now >= max(host.still_until, host.alone_until)

    def _delay(self) -> float:
        return self.bad.delay_s * self.random.random() * 2

    def _after(self, seconds: float, happen: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, happen))
