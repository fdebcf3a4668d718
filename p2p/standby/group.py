"""A member of a group of masters, at work: the protocol, its sockets, and the thread in which `descent` runs.

    propose -> Member -> Ties -> the others                    p2p.master.serving
               Commit -> Applier: descent -> Settled        -> the worker's answer

All but the applier is of the one thread that calls `turn`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue

import zmq

from gossip.arrays import Bytes
from gossip.errors import UsageError
from p2p.master.serving import Settled
from p2p.server.messages import Dropped, Push
from p2p.standby.coordinator import GroupCoordinator, Outcome
from p2p.standby.entries import Fed, Mark, NoNumber, Update, packed, unpacked
from p2p.standby.member import Commit, Effect, GiveCopy, Leads, Member, Send, TakeCopy
from p2p.standby.messages import Entry, House, Offer, OfHouse, Place, Prepare, Recover, Said
from p2p.standby.ties import Ties

log = logging.getLogger("p2p")

BACKLOG_MAX = 64
"""Entries that wait for `descent` in a member that does not lead, and"""
BACKLOG_BYTES = 256 << 20
"""their bytes, about; it takes no more then."""
OFFER_AGAIN_S = 1.0
LOOK_S = 0.2
"""How soon who waits for an offer sees that it is in vain."""
ERROR_S = 5.0
"""So long an error of a task waits for that of `descent`."""
GIVE_UP_S = 60.0
"""Without anybody who leads for so long, whoever waits is told."""


@dataclass(frozen=True)
class Ask:
    """The state, for a member."""

    to: int
    view: int


class Applier:
    """The thread in which entries are applied, one after the other."""

    def __init__(self, coordinator: GroupCoordinator, wake: Callable[[], None]) -> None:
        self._coordinator = coordinator
        self._wake = wake
        self.todo: SimpleQueue[Commit | TakeCopy | Ask | None] = SimpleQueue()
        self.done: deque[tuple[Commit | TakeCopy | Ask, int, Outcome | bytes | None]] = deque()
        """With the number of the last entry that was applied then."""
        self.broken: Exception | None = None
        """Why nothing is applied any more."""
        self._number = 0
        self._thread = threading.Thread(target=self._run, name="deepdist-applier", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when nothing is applied any more."""
        self.todo.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self.todo.get()) is not None:
            result: Outcome | bytes | None = None
            try:
                match item:
                    case Commit():
                        self._number, result = item.number, self._coordinator.take(item.data)
                    case TakeCopy():
                        self._coordinator.become(item.data)
                        self._number = item.number
                    case Ask():
                        result = self._state()
            except Exception as error:  # noqa: BLE001 - without what was applied before, nothing can be
                self.broken = error
                self._coordinator.fail(error)
                return
            self.done.append((item, self._number, result))
            self._wake()

    def _state(self) -> bytes | None:
        try:
            return self._coordinator.state()
        except Exception as error:  # noqa: BLE001 - of a model that cannot be sent; this master goes on
            log.warning("the state cannot be sent to another master: %s", error)
            return None


class Group:
    """One member's side of it, for one training."""

    def __init__(
        self,
        ties: Ties,
        member: Member,
        places: Iterable[Place],
        coordinator: GroupCoordinator,
        wake: Callable[[], None],
        recover: bool = False,
    ) -> None:
        """`wake` has the thread of `turn` come round."""
        self._ties = ties
        self._member = member
        self._places = dict(enumerate(places))
        self._wake = wake
        self._coordinator = coordinator
        self._applier = Applier(coordinator, wake)
        self._tokens: dict[int, Hashable] = {}
        """Of entries that this one proposed, by their numbers."""
        self._offers: dict[str, _Offered] = {}
        self._asked: set[int] = set()
        """Who is to get the state."""
        self.failovers = 0
        """How often somebody came to lead after the first one, as far as this member knows."""
        self._led_at = time.monotonic()
        """Somebody led then."""
        self.house: deque[tuple[int, OfHouse, bytes | None]] = deque()
        """What came that is not of the protocol."""
        self._outbox: deque[tuple[int, Place | None, OfHouse, bytes | None]] = deque()
        for index, place in self._places.items():
            ties.connect(index, place.endpoint)
        coordinator.offer = self.offer
        if recover:
            nonce = int.from_bytes(os.urandom(6), "big") + 1
            self._carry_out(member.recover(nonce, self._places[member.me], time.monotonic()))

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """Where the others are heard: `turn` is due when something comes there."""
        return self._ties.inbox

    @property
    def leads(self) -> bool:
        """Workers are answered here."""
        return self._member.leads

    @property
    def leader_face(self) -> str:
        """Where workers find who leads; empty if that is not known."""
        leader = self._member.leader
        return "" if leader is None else self._places[leader].face

    @property
    def own_place(self) -> Place:
        """Where this member listens."""
        return self._places[self._member.me]

    @property
    def view(self) -> int:
        """It grows with each change of the leader."""
        return self._member.view

    @property
    def leaderless_s(self) -> float:
        """For how long nobody has led."""
        return time.monotonic() - self._led_at

    @property
    def broken(self) -> Exception | None:
        """Why this member can apply nothing any more."""
        return self._applier.broken

    def propose(self, push: Push, worker: str, arrays: Bytes, token: Hashable) -> None:
        """As the leader: a worker's update. `turn` says what became of it, unless another leads by then."""
        head = Update(
            unit=push.unit,
            also=push.also,
            bad=push.bad,
            version=push.version,
            worker=worker,
            layout=push.layout,
        )
        self._propose(packed(head, arrays), token)

    def propose_nothing(self, dropped: Dropped, token: Hashable) -> None:
        """The same of an update that has numbers that are none."""
        self._propose(packed(NoNumber(units=(dropped.unit, *dropped.also), bad=dropped.bad)), token)

    def offer(self, data: bytes, name: str, give_up_s: float = GIVE_UP_S) -> Outcome:
        """Have whoever leads propose an entry, and wait until it is applied here, or nobody leads for so long. From any
        thread."""
        offered = self._offers[name] = _Offered(data)
        self._wake()
        while not offered.applied.wait(min(LOOK_S, give_up_s)):
            if self._coordinator.error is not None:
                raise UsageError("the training has ended by an error")  # which is what is told
            if time.monotonic() - self._led_at > give_up_s:
                raise UsageError(f"no master leads for {give_up_s:g} s: most of the group's members are gone")
        assert offered.outcome is not None
        return offered.outcome

    def catch_up(self, give_up_s: float = GIVE_UP_S) -> None:
        """Wait until all that was acknowledged so far is applied here."""
        name = os.urandom(8).hex()
        self.offer(packed(Mark(offer=name)), name, give_up_s)

    def turn(self) -> list[Settled]:
        """Deal with what has come, and with the time that has passed."""
        for sender, message, data in self._ties.hear():
            self._hear(sender, message, data)
        while self._outbox:
            to, place, house, data = self._outbox.popleft()
            if place is not None:
                self._places[to] = place
                self._ties.connect(to, place.endpoint)
            self._ties.say(to, house, data)
        now = time.monotonic()
        self._carry_out(self._member.tick(now))
        if self._member.is_led(now):
            self._led_at = now
        self._offer_again(now)
        return self._settle()

    def say(self, to: int, message: OfHouse, data: bytes | None = None, place: Place | None = None) -> None:
        """To a member, which may be at another place by now. From any thread."""
        self._outbox.append((to, place, message, data))
        self._wake()

    def close(self) -> None:
        """Apply nothing any more."""
        self._applier.stop()

    # --------------------------------------------------------------------------------------------------------- parts

    def _propose(self, data: bytes, token: Hashable) -> None:
        self._tokens[self._member.last + 1] = token
        self._carry_out(self._member.propose(data, time.monotonic()))

    def _hear(self, sender: int, message: Said, data: bytes | None) -> None:
        if isinstance(message, Offer):
            if self._member.leads and data is not None:
                self._carry_out(self._member.propose(data, time.monotonic()))
            return
        if isinstance(message, House):
            self.house.append((sender, message, data))
            return
        if isinstance(message, Prepare | Entry) and data is not None and self._is_behind(len(data)):
            return  # as if it was lost: it is fetched later
        if isinstance(message, Recover):
            self._places[sender] = message.place
            self._ties.connect(sender, message.place.endpoint)
        self._carry_out(self._member.receive(sender, message, data, time.monotonic()))

    def _is_behind(self, nbytes: int) -> bool:
        """`descent` is slower here than elsewhere: entries that it waits for are not to pile up."""
        waiting = self._applier.todo.qsize()
        return waiting > BACKLOG_MAX or waiting * nbytes > BACKLOG_BYTES

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to=to, message=message, data=data):
                    self._ties.say(to, message, data)
                case Commit() | TakeCopy():
                    self._applier.todo.put(effect)
                case GiveCopy(to=to, view=view):
                    if to not in self._asked:
                        self._asked.add(to)
                        self._applier.todo.put(Ask(to, view))
                case Leads(leader=leader):
                    self.failovers += leader is not None
                    if leader != self._member.me:
                        self._tokens.clear()

    def _settle(self) -> list[Settled]:
        settled = []
        while self._applier.done:
            item, number, result = self._applier.done.popleft()
            self._member.applied(number)
            if isinstance(item, Ask):
                self._asked.discard(item.to)
                if isinstance(result, bytes):
                    self._carry_out(self._member.copied(item.to, item.view, number, result))
            elif isinstance(item, Commit):
                assert isinstance(result, Outcome)
                token = self._tokens.pop(item.number, None)
                if token is not None:
                    settled.append(Settled(token, result.new, result.stale, result.error))
                self._settle_offer(item.data, result)
        return settled

    def _settle_offer(self, data: bytes, outcome: Outcome) -> None:
        if not self._offers:
            return
        head, _ = unpacked(data)
        if isinstance(head, Fed | Mark) and (offered := self._offers.pop(head.offer, None)) is not None:
            offered.outcome = outcome
            offered.applied.set()

    def _offer_again(self, now: float) -> None:
        leader = self._member.leader
        if leader is None:
            return
        for offered in list(self._offers.values()):
            if offered.view == self._member.view and now - offered.said_at < OFFER_AGAIN_S:
                continue
            offered.view, offered.said_at = self._member.view, now
            if leader == self._member.me:
                self._carry_out(self._member.propose(offered.data, now))
            else:
                self._ties.say(leader, Offer(), offered.data)


class _Offered:
    """An entry that is to be agreed on."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.applied = threading.Event()
        self.outcome: Outcome | None = None
        self.view = -1
        self.said_at = 0.0


@contextmanager
def caught_up(group: Group | None) -> Iterator[None]:
    """Afterwards the driver program's member has applied all that was acknowledged within, and knows of what `descent`
    raised elsewhere."""
    try:
        yield
    except Exception:
        if group is not None:
            with suppress(UsageError):
                group.catch_up(ERROR_S)
        raise
    if group is not None:
        group.catch_up()
