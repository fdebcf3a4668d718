"""The master and its workers' connections, in one process: models go out, updates come in, here and from afar."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zmq

from gossip.arrays import Layout
from gossip.errors import UsageError
from gossip.marks import Unit
from gossip.zmq.sockets import Keys, bind, open_socket
from p2p.adapters.model import Model
from p2p.master import descending
from p2p.master import serving as module
from p2p.master.coordinator import Coordinator
from p2p.master.served import Served
from p2p.master.serving import Server
from p2p.server.any_update import flatten
from p2p.server.client import MasterClient, MasterGoneError
from p2p.server.messages import (
    Address,
    Begin,
    Hello,
    Known,
    Knows,
    Part,
    Push,
    Read,
    Refused,
    Send,
    decode_answer,
    encode,
)
from p2p.standby.coordinator import GroupCoordinator
from p2p.standby.group import Group
from p2p.standby.member import Member
from p2p.standby.messages import Place
from p2p.standby.ties import Ties

pytestmark = pytest.mark.sockets

SOON_S = 60.0
SMALL, LARGE = 3, 700_000
"""Numbers of a model: it travels with the message, or in three pieces."""


class World:
    """A master of a model of so many numbers, which adds what comes."""

    def __init__(
        self,
        size: int,
        keys: Keys | None = None,
        descent: Any = None,
        max_staleness: int | None = None,
        agreed: bool = False,
    ) -> None:
        """`agreed`: it is a group of masters, of one member."""
        self.model: dict[str, Any] = {"w": np.zeros(size, np.float32)}
        self.served = Served(Model(self.model))
        self.ended = threading.Event()
        kind = GroupCoordinator if agreed else Coordinator
        self.coordinator = kind(self.served, descent, self.ended.set, max_staleness=max_staleness)
        self.server = Server("127.0.0.1", "the run", keys)
        self.group: Group | None = None
        self.context: zmq.Context[Any] = zmq.Context()
        if isinstance(self.coordinator, GroupCoordinator):
            self.ties = Ties(self.context, "the run", 0, 0, "127.0.0.1", keys)
            place = Place(self.ties.endpoint, self.server.address.endpoint)
            self.group = Group(self.ties, Member(0, 1), [place], self.coordinator, self.server.wake)
            self.server.agreement = self.group
        self.server.start(self.coordinator)
        self.clients: list[MasterClient] = []

    def client(self, far: bool = False) -> MasterClient:
        client = MasterClient(self.server.address)
        client.shares_memory = client.shares_memory and not far
        self.clients.append(client)
        return client

    def begin(self, client: MasterClient, chunk: int = 0, attempt: int = 0) -> tuple[int, Any]:
        """The version of the model that it gets, and a copy."""
        found = client.begin(Unit(0, 0, chunk), attempt, self.served.snapshots.layout, 0)
        assert found is not None
        with found.reading():
            return found.version, found.arrays()["w"].copy()

    def push(self, client: MasterClient, value: float, chunk: int, version: int = 0) -> bool:
        update = {"w": np.full_like(self.model["w"], value)}
        return client.push(Unit(0, 0, chunk), version, flatten(update))

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.server.stop()
        if self.group is not None:
            self.group.close()
            self.ties.close()
        self.server.close()
        self.served.close()
        self.context.term()


@pytest.fixture
def made() -> Iterator[Any]:
    worlds: list[World] = []

    def make(*arguments: Any, **options: Any) -> World:
        worlds.append(World(*arguments, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.mark.parametrize("agreed", [False, True], ids=["alone", "agreed"])
@pytest.mark.parametrize("far", [False, True], ids=["one host", "far"])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("keys", [None, Keys.generate()], ids=["open", "encrypted"])
def test_a_model_goes_out_and_updates_come_in(made: Any, size: int, far: bool, keys: Keys | None, agreed: bool) -> None:
    world = made(size, keys, agreed=agreed)
    one, two = world.client(far), world.client(far)
    assert far or one.shares_memory
    total = 0.0
    for chunk, client in enumerate([one, two, two, one, one]):
        version, w = world.begin(client, chunk)
        assert version == chunk
        assert (w == total).all()
        assert world.push(client, chunk + 1, chunk, version)
        total += chunk + 1
        assert not world.push(client, 99, chunk, version), "its unit counts already"
        assert client.begin(Unit(0, 0, chunk), 0, world.served.snapshots.layout, 0) is None
    assert (world.model["w"] == total).all()
    assert world.coordinator.taken == 5
    figures = sorted((worker.published, worker.staleness) for worker in world.server.workers.values())
    assert figures == [(2, [0, 0]), (3, [0, 0, 0])]


@pytest.mark.parametrize("agreed", [False, True], ids=["alone", "agreed"])
def test_an_update_is_as_old_as_what_was_applied_since_its_model(made: Any, agreed: bool) -> None:
    world = made(SMALL, agreed=agreed)
    client = world.client()
    for chunk, version in enumerate([0, 0, 0, 3]):
        world.push(client, 1, chunk, version)
    (worker,) = world.server.workers.values()
    assert worker.staleness == [0, 1, 2, 0]


@pytest.mark.parametrize("agreed", [False, True], ids=["alone", "agreed"])
def test_many_workers_at_once_lose_nothing(made: Any, agreed: bool) -> None:
    world = made(LARGE, agreed=agreed)

    def work(number: int) -> None:
        client = world.client(far=number % 2 == 1)
        for chunk in range(5 * number, 5 * number + 5):
            version, _ = world.begin(client, chunk)
            assert world.push(client, 1, chunk, version)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert (world.model["w"] == 20).all()


def test_what_descent_keeps_of_an_update_is_nobody_else_s(made: Any) -> None:
    kept: list[Any] = []

    def keep(model: Any, update: Any) -> None:
        kept.append(update["w"])
        model["w"] = update["w"]

    world = made(LARGE, descent=keep)
    client = world.client()
    for chunk in range(3):
        world.push(client, chunk + 1, chunk)
    assert [(each == value).all() for value, each in enumerate(kept, 1)] == [True] * 3
    assert (world.model["w"] == 3).all()


def test_what_descent_keeps_on_the_model_comes_with_it(made: Any) -> None:
    def count(model: Any, update: Any) -> None:
        model["w"] += update["w"]
        model["calls"] = model.get("calls", 0) + 1

    world = made(SMALL, descent=count)
    client = world.client()
    world.push(client, 1, 0)
    found = client.begin(Unit(0, 0, 1), 0, world.served.snapshots.layout, 0)
    assert found is not None
    assert found.attributes is not None
    with found.reading():
        assert found.attribute_arrays()
    again = client.begin(Unit(0, 0, 1), 0, world.served.snapshots.layout, found.attributes_version)
    assert again is not None
    assert again.attributes is None, "it has them"


@pytest.mark.parametrize("far", [False, True], ids=["one host", "far"])
def test_an_error_of_descent_is_told_to_whoever_pushes_and_ends_the_training(made: Any, far: bool) -> None:
    def fail(model: Any, update: Any) -> None:
        raise ZeroDivisionError("by nothing")

    world = made(LARGE, descent=fail)
    client = world.client(far)
    with pytest.raises(UsageError, match="by nothing"):
        world.push(client, 1, 0)
    assert world.ended.wait(SOON_S)
    assert isinstance(world.coordinator.error, ZeroDivisionError)
    with pytest.raises(UsageError, match="the training has ended: by nothing"):
        world.begin(client, 1)


@pytest.mark.parametrize("far", [False, True], ids=["one host", "far"])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("first", [0, 1], ids=["earlier", "later"])
def test_of_two_attempts_at_a_unit_the_first_counts_under_a_bound_too(
    made: Any, first: int, size: int, far: bool
) -> None:
    world = made(size, max_staleness=0)
    clients = world.client(far), world.client(far)
    for chunk in range(3):
        for attempt, client in enumerate(clients):
            assert world.begin(client, chunk, attempt)[0] == chunk
        assert world.push(clients[first], 1, chunk, chunk)
        assert not world.push(clients[1 - first], 99, chunk, chunk)
    assert (world.model["w"] == 3).all()
    assert world.coordinator.error is None


def test_who_computes_what_counts_by_now_holds_nobody_up(made: Any) -> None:
    world = made(SMALL, max_staleness=0)
    one, two, three = (world.client() for _ in range(3))
    world.begin(one, 0)
    world.begin(two, 0, attempt=1)
    found: list[Any] = []
    asking = threading.Thread(
        target=lambda: found.append(three.begin(Unit(0, 1, 0), 0, world.served.snapshots.layout, 0)), daemon=True
    )
    asking.start()
    assert world.push(one, 1, 0)
    asking.join(SOON_S)
    assert [each.version for each in found] == [1]


class Held:
    """A descent that adds, and waits where it is told to."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.waits = False

    def __call__(self, model: Any, update: Any) -> None:
        if self.waits:
            self.begun.set()
            assert self.go_on.wait(SOON_S)
        model["w"] += update["w"]


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """All descents but the first run beside the server."""
    monkeypatch.setattr(descending, "LONG_S", -1.0)


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("far", [False, True], ids=["one host", "far"])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("max_staleness", [None, 2])
def test_models_are_given_while_a_descent_runs(made: Any, size: int, far: bool, max_staleness: int | None) -> None:
    held = Held()
    world = made(size, descent=held, max_staleness=max_staleness)
    one, two, three = (world.client(far) for _ in range(3))
    world.begin(one, 0)
    assert world.push(one, 1, 0)
    held.waits = True
    world.begin(one, 1)
    pushed: list[bool] = []
    pushing = [threading.Thread(target=lambda: pushed.append(world.push(one, 2, 1, 1)))]
    pushing[0].start()
    assert held.begun.wait(SOON_S)
    for client, chunk in ((two, 2), (three, 3)):
        version, w = world.begin(client, chunk)
        assert version == 1
        assert (w == 1).all(), "as it was before the descent that runs"
    assert two.knows((0, 0, 0))
    assert not two.knows((0, 0, 1))
    assert two.furthest(0, 0) == 0
    pushing.append(threading.Thread(target=lambda: pushed.append(world.push(two, 4, 2, 1))))
    pushing[1].start()
    assert world.coordinator.version == 1
    held.go_on.set()
    for thread in pushing:
        thread.join(SOON_S)
    assert pushed == [True, True]
    assert world.push(three, 8, 3, 1)
    assert (world.model["w"] == 15).all()
    ages = sorted(age for worker in world.server.workers.values() for age in worker.staleness)
    assert ages == [0, 0, 1, 2]


@pytest.mark.usefixtures("beside")
def test_a_second_attempt_is_told_what_became_of_the_first_when_its_descent_is_over(made: Any) -> None:
    held = Held()
    world = made(SMALL, descent=held, max_staleness=1)
    one, two = world.client(), world.client()
    world.begin(one, 0)
    assert world.push(one, 1, 0)
    for attempt, client in enumerate((one, two)):
        world.begin(client, 1, attempt)
    held.waits = True
    pushed: dict[int, bool] = {}

    def push(number: int, client: Any) -> None:
        pushed[number] = world.push(client, 2, 1, 1)

    pushing = [threading.Thread(target=push, args=(number, client)) for number, client in enumerate((one, two))]
    pushing[0].start()
    assert held.begun.wait(SOON_S)
    pushing[1].start()
    pushing[1].join(0.05)
    assert pushed == {}
    held.go_on.set()
    for thread in pushing:
        thread.join(SOON_S)
    assert pushed == {0: True, 1: False}
    assert (world.model["w"] == 3).all()
    assert world.coordinator.error is None


@pytest.mark.usefixtures("beside")
def test_an_update_that_a_descent_has_begun_to_take_is_in_the_model_when_the_server_stops(made: Any) -> None:
    held = Held()
    world = made(SMALL, descent=held)
    client = world.client()
    world.push(client, 1, 0)
    held.waits = True
    pushing = threading.Thread(target=world.push, args=(client, 2, 1))
    pushing.start()
    assert held.begun.wait(SOON_S)
    stopping = threading.Thread(target=world.server.stop)
    stopping.start()
    stopping.join(0.05)
    assert stopping.is_alive()
    held.go_on.set()
    for thread in (stopping, pushing):
        thread.join(SOON_S)
    assert (world.model["w"] == 3).all()
    assert world.coordinator.taken == 2


@pytest.mark.usefixtures("beside")
def test_an_error_of_a_descent_that_runs_beside_is_told_and_ends_the_training(made: Any) -> None:
    def fail(model: Any, update: Any) -> None:
        if update["w"][0] == 2:
            raise ZeroDivisionError("by nothing")

    world = made(SMALL, descent=fail)
    client = world.client()
    world.push(client, 1, 0)
    with pytest.raises(UsageError, match="by nothing"):
        world.push(client, 2, 1)
    assert world.ended.wait(SOON_S)
    assert isinstance(world.coordinator.error, ZeroDivisionError)
    with pytest.raises(UsageError, match="the training has ended: by nothing"):
        world.begin(client, 2)
    assert not client.knows((0, 0, 1)), "one answer to each question"


@pytest.mark.usefixtures("beside")
def test_nobody_afar_sends_while_a_descent_runs(made: Any) -> None:
    """What has come would lie in the memory of the driver program."""
    held = Held()
    world = made(LARGE, descent=held)
    client = world.client()
    world.push(client, 1, 0)
    held.waits = True
    pushing = threading.Thread(target=world.push, args=(client, 2, 1))
    pushing.start()
    assert held.begun.wait(SOON_S)
    stranger = Stranger(world)
    stranger.say(encode(Hello("the run", "me")))
    stranger.hears()
    layout = Layout.of(flatten({"w": world.model["w"]}))
    stranger.say(encode(Push(unit=Unit(0, 0, 7), version=0, layout=layout)))
    stranger.say(encode(Knows(Unit(0, 0, 0))))
    assert isinstance(stranger.hears(), Known), "it is not told to send before"
    held.go_on.set()
    assert isinstance(stranger.hears(), Send)
    pushing.join(SOON_S)
    stranger.close()
    assert (world.model["w"] == 3).all()


def test_who_does_not_know_the_run_or_the_keys_gets_nothing(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = made(SMALL)
    with pytest.raises(UsageError, match="this is the master of another run"):
        MasterClient(Address(world.server.address.endpoint, "another", None))
    stranger = Stranger(world)
    stranger.say(encode(Begin(Unit(0, 0, 0))))
    assert "say Hello first" in stranger.hears().why
    stranger.close()
    keyed = made(SMALL, Keys.generate())
    stranger = Stranger(keyed)
    stranger.say(encode(Hello("the run", "me")))
    assert not stranger.socket.poll(500)
    stranger.close()
    assert keyed.server.workers == {}


def test_a_worker_is_told_no_secret_of_the_masters(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows whom it speaks to, and could not be taken for a master, nor for a member of their group."""
    keys = Keys.generate()
    world = made(SMALL, keys)
    address = world.server.address
    assert keys.secret not in repr(address)
    assert address.key == keys.public
    monkeypatch.setattr("p2p.server.client.CONNECT_TIMEOUT_S", 0.5)
    with zmq.Context() as context:
        false = open_socket(context, zmq.ROUTER, Keys.generate(), server=True)
        with pytest.raises(UsageError):
            MasterClient(replace(address, endpoint=bind(false, "127.0.0.1")))
        assert not false.poll(0)
        false.close()


class Stranger:
    """Says whatever it likes."""

    def __init__(self, world: World) -> None:
        self.context = zmq.Context()
        self.socket = open_socket(self.context, zmq.DEALER)
        self.socket.connect(world.server.address.endpoint)

    def say(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def hears(self) -> Any:
        assert self.socket.poll(SOON_S * 1e3)
        return decode_answer(self.socket.recv_multipart()[0])

    def close(self) -> None:
        self.context.destroy(linger=0)


HUGE = Layout.of({"w": np.broadcast_to(np.float32(0), (1 << 40,))})


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ((b"nonsense",), "not understood"),
        ((b"",), "not understood"),
        ((encode(Read(0, 10)),), "there is no model to read"),
        ((encode(Part()), b"x"), "a piece of an update that nobody waits for"),
        ((encode(Push(unit=Unit(0, 0, 0), version=0, layout=HUGE)),), "expected at most"),
        ((encode(Push(unit=Unit(0, 0, 0), version=0, layout=HUGE, inline=True)), b"x" * 64), "an update of 64 bytes"),
        ((encode(Push(unit=Unit(0, 0, 0), version=0, layout=HUGE, inline=True)),), "an update of 0 bytes"),
    ],
)
def test_nonsense_is_refused_and_the_training_goes_on(made: Any, frames: tuple[bytes, ...], why: str) -> None:
    world = made(SMALL)
    stranger = Stranger(world)
    stranger.say(encode(Hello("the run", "me")))
    stranger.hears()
    stranger.say(*frames)
    answer = stranger.hears()
    assert isinstance(answer, Refused)
    assert why in answer.why
    stranger.close()
    assert world.coordinator.error is None
    assert world.push(world.client(), 1, 0)


def test_who_stands_still_in_the_middle_of_an_update_holds_nobody_up(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SENDING_MAX_S", 0.3)
    world = made(LARGE)
    stranger = Stranger(world)
    stranger.say(encode(Hello("the run", "me")))
    stranger.hears()
    layout = Layout.of(flatten({"w": world.model["w"]}))
    stranger.say(encode(Push(unit=Unit(0, 0, 7), version=0, layout=layout)))
    assert isinstance(stranger.hears(), Send)
    stranger.say(encode(Part()), b"x")
    assert world.push(world.client(far=True), 1, 0)
    assert (world.model["w"] == 1).all()
    stranger.close()


def test_a_worker_waits_for_a_master_that_is_busy_and_not_for_one_that_is_gone(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2p.server.client.LOOK_S", 0.05)
    world = made(SMALL, descent=lambda model, update: time.sleep(0.5))
    client = world.client()
    assert world.push(client, 1, 0)
    world.server.close()
    with pytest.raises(MasterGoneError, match=r"the master at 127\.0\.0\.1:\d+ is gone"):
        client.knows((0, 0, 0))


def test_files_of_workers_that_are_gone_or_done_are_closed(made: Any) -> None:
    world = made(LARGE)
    client = world.client()
    world.push(client, 1, 0)
    (worker,) = world.server.workers.values()
    assert len(worker.files) == 1
    client.leave()
    world.begin(client, 1)
    assert worker.files == {}
    assert worker.memory_peak_bytes > 0
