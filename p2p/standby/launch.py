"""The driver program's side of a group of masters: its standbys, and its own member, which comes last.

start    -> standbys, by the engine          each says Here
training -> Open to each, with the model     -> p2p.standby.group in this process as well -> catch up -> Shut
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import zmq

from gossip.errors import UsageError
from gossip.zmq.sockets import Keys
from p2p import parcel
from p2p.master.serving import Server
from p2p.report import MastersLostError
from p2p.standby.coordinator import GroupCoordinator
from p2p.standby.group import Group
from p2p.standby.member import Member
from p2p.standby.messages import Here, Leave, OfHouse, Open, Opened, Place, Shut
from p2p.standby.process import Opening, Settings
from p2p.standby.ties import Ties

log = logging.getLogger("p2p")

START_TIMEOUT_S = 60.0
OPENINGS_MAX = 3
"""Of a training, during which standbys are lost."""
LOOK_S = 0.1
THERE_S = 5.0
"""A standby that is not heard for so long is taken for gone."""
AGAIN_S = 1.5
"""One that says that it is there so long after it was told of a training does not know of that."""
LEADERLESS_S = 60.0
"""Without a master that leads for so long a training ends, and"""
GOES_ON_S = 10.0
"""for so long one that can go on without any."""


@dataclass(frozen=True)
class Followed:
    """By whom a master is followed, and what becomes of a training that has lost most of them."""

    standbys: int = 0
    leaderless_s: float = LEADERLESS_S
    """It ends where nobody has led for so long."""


class Starts(Protocol):
    """What starts standbys: an engine that can."""

    def start_standby(self, settings: Settings) -> Callable[[], bool]:
        """Start one, and say later whether its process may still be there."""
        ...


def starter(engine: object) -> Starts:
    """The engine, if it can start standbys; else a `UsageError`."""
    if not callable(getattr(engine, "start_standby", None)):
        raise UsageError(
            f"standbys with an engine of type {type(engine).__name__}, expected one with start_standby(settings), as "
            "those for lists of partitions and for Spark have"
        )
    return cast(Starts, engine)


class Standbys:
    """Of a session."""

    def __init__(self, followed: Followed, run: str, address: str, keys: Keys | None) -> None:
        """`keys` are the masters' towards workers; towards each other they have others, which no worker is told."""
        self.count = count = followed.standbys
        self._run = run
        self._keys = keys
        self._group_keys = None if keys is None else Keys.generate()
        self._address = address
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._ties = Ties(self._context, run, count, 0, address, self._group_keys)
        self.there: dict[int, Here] = {}
        """What each has said of itself last."""
        self._alive: dict[int, Callable[[], bool]] = {}
        self._lives: dict[int, int] = {}
        self._trainings = 0
        self.lost = 0
        """Standbys that ended before their time."""
        self._leaderless_s = followed.leaderless_s

    @property
    def places(self) -> tuple[Place, ...]:
        """Where they listen."""
        return tuple(self.there[index].place for index in range(self.count))

    def start(self, engine: Starts) -> None:
        """Bring up those that are not there.

        Raises:
            UsageError: one did not come.
        """
        there = self._who_is_there()
        for index in range(self.count):
            if index not in there:
                self.there.pop(index, None)
                self._start_one(engine, index)
        give_up = time.monotonic() + START_TIMEOUT_S
        while missing := [index for index in range(self.count) if index not in self.there]:
            self._ties.inbox.poll(int(LOOK_S * 1e3))
            for sender, message, _ in self._ties.hear():
                self._hear(sender, message)
            gone = [index for index in missing if not self._alive[index]()]
            if gone or time.monotonic() > give_up:
                what = "ended while they started" if gone else f"did not start within {START_TIMEOUT_S:g} s"
                raise UsageError(
                    f"standbys {gone or missing} of {self.count} {what}: see their last words in the stderr above, or "
                    "of the executors"
                )

    @contextmanager
    def training(
        self, server: Server, coordinator: GroupCoordinator, opening: Opening, engine: Starts
    ) -> Iterator[Group]:
        """They take part within; the server is to be started and stopped within as well."""
        sent = parcel.dumps(opening)
        mine = Place(self._ties.endpoint, server.address.endpoint)
        places = self._all_open(mine, sent, engine)
        group = Group(self._ties, Member(self.count, self.count + 1, self._trainings), places, coordinator, server.wake)
        server.agreement = group
        ended = threading.Event()
        looks = threading.Thread(target=self._look_after, args=(group, coordinator, sent, engine, ended), daemon=True)
        looks.start()
        try:
            yield group
        finally:
            ended.set()
            looks.join()
            group.close()
            server.agreement = None
            for index in range(self.count):
                self._ties.say(index, Shut())

    def close(self) -> None:
        """They leave."""
        for index in range(self.count):
            self._ties.say(index, Leave())
        time.sleep(LOOK_S)
        self._ties.close()
        self._context.destroy(linger=int(LOOK_S * 1e3))

    # --------------------------------------------------------------------------------------------------------- parts

    def _who_is_there(self) -> set[int]:
        """Those that say so: each does once a second while no training runs."""
        expected = {index for index, alive in self._alive.items() if alive()}
        found: set[int] = set()
        give_up = time.monotonic() + THERE_S
        while found < expected and time.monotonic() < give_up:
            self._ties.inbox.poll(int(LOOK_S * 1e3))
            for sender, message, _ in self._ties.hear():
                self._hear(sender, message)
                found.add(sender)
        return found

    def _start_one(self, engine: Starts, index: int) -> None:
        life = self._lives[index] = self._lives.get(index, -1) + 1
        self._ties.expect(index, life)
        settings = Settings(
            run=self._run,
            me=index,
            life=life,
            driver=self.count,
            driver_endpoint=self._ties.endpoint,
            address=self._address,
            secret=None if self._keys is None else self._keys.secret,
            group_secret=None if self._group_keys is None else self._group_keys.secret,
        )
        self._alive[index] = engine.start_standby(settings)

    def _hear(self, sender: int, message: object) -> None:
        if isinstance(message, Here):
            self.there[sender] = message
            self._ties.connect(sender, message.place.endpoint)

    def _all_open(self, mine: Place, sent: bytes, engine: Starts) -> tuple[Place, ...]:
        """Have all take part in the next training. Where one is lost meanwhile another one comes, and all begin anew.
        Returns where they listen."""
        for _ in range(OPENINGS_MAX):
            self._trainings += 1
            self._ties.training = self._trainings
            places = (*self.places, mine)
            gone = self._open(places, sent)
            if not gone:
                return places
            self.lost += len(gone)
            log.warning("standbys %s are gone before the training began: others take their places", gone)
            for index in range(self.count):
                self._ties.say(index, Shut())
            self.start(engine)
        raise UsageError(
            f"standbys {gone} of {self.count} ended while the training began, for the {OPENINGS_MAX}rd time: see their "
            "last words in the stderr above, or of the executors, and how much memory they may use"
        )

    def _open(self, places: tuple[Place, ...], sent: bytes) -> list[int]:
        """Have them take part, and wait until they do. Returns who is gone."""
        opening = Open(training=self._trainings, places=places, recover=False)
        for index in range(self.count):
            self._ties.say(index, opening, sent)
        said_at = dict.fromkeys(range(self.count), time.monotonic())
        waits, give_up = set(said_at), time.monotonic() + START_TIMEOUT_S
        while waits:
            self._ties.inbox.poll(int(LOOK_S * 1e3))
            for sender, message, _ in self._ties.hear():
                self._hear(sender, message)
                is_idle = isinstance(message, Here) and sender in waits
                if is_idle and time.monotonic() - said_at[sender] > AGAIN_S:
                    # it was with another training when it was told, or another process is in its place
                    said_at[sender] = time.monotonic()
                    self._ties.say(sender, opening, sent)
                if isinstance(message, Opened) and message.training == self._trainings:
                    if message.trouble:
                        raise UsageError(f"standby {sender} cannot take part in the training:\n{message.trouble}")
                    waits.discard(sender)
            if gone := [index for index in range(self.count) if not self._alive[index]()]:
                return gone
            if waits and time.monotonic() > give_up:
                raise UsageError(
                    f"standbys {sorted(waits)} of {self.count} are there, and did not begin within "
                    f"{START_TIMEOUT_S:g} s: this machine, or theirs, may be busy; train again"
                )
        return []

    def _look_after(
        self, group: Group, coordinator: GroupCoordinator, sent: bytes, engine: Starts, ended: threading.Event
    ) -> None:
        """Start another in the place of each that is gone, for the time of a training; end that if most are."""
        while not ended.wait(LOOK_S):
            if group.leaderless_s > self._leaderless_s:
                coordinator.fail(MastersLostError(self._lost_words()))
            while group.house:
                sender, message, _ = group.house.popleft()
                self._begins_again(group, sender, message, sent)
            for index in range(self.count):
                if not self._alive[index]():
                    self.lost += 1
                    log.warning("standby %d is gone: another one takes its place", index)
                    self._start_one(engine, index)

    def _lost_words(self) -> str:
        return (
            f"no master leads for {self._leaderless_s:g} s: of {self.count + 1} most are gone or stand still, and what "
            "they acknowledged last cannot be known. dd.model has what had reached the driver program; train on from "
            'a checkpoint, or have peers go on by themselves: DeepDist(..., on_master_loss="p2p")'
        )

    def _begins_again(self, group: Group, sender: int, message: OfHouse, sent: bytes) -> None:
        """A standby is there that has no part in the training yet."""
        if isinstance(message, Here):
            self.there[sender] = message
            opening = Open(training=self._trainings, places=(*self.places, group.own_place), recover=True)
            group.say(sender, opening, sent, message.place)
        elif isinstance(message, Opened) and message.trouble:
            log.warning("standby %d cannot take part again: %s", sender, message.trouble)
