"""Links between peers of one machine: updates go as open files, and what a link cannot do is done without it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from gossip.arrays import Arrays, Layout, Packed
from gossip.events import Computed, Joined
from gossip.messages import Advert, PeerId, Pull, Range
from gossip.updates.rows import rows_of
from gossip.wire import BLOCK_BYTES, encode_header
from gossip.zmq import same_host
from gossip.zmq.segments import LentFile
from gossip.zmq.sockets import Keys, fingerprint

pytestmark = [pytest.mark.sockets, pytest.mark.skipif(sys.platform != "linux", reason="there are no links")]

SECRET = "of the run"
SMALL = {"w": np.zeros(3)}
LARGE = {"w": np.zeros(3 * BLOCK_BYTES // 8)}


def open_files() -> int:
    """Of updates; sockets come and go by themselves."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum("memfd" in os.readlink(link) for link in links if os.path.islink(link))


@contextmanager
def lent(update: Arrays) -> Iterator[LentFile]:
    """An update in a file, behind some other bytes."""
    packed = Packed.of(update)
    descriptor = os.memfd_create("update")
    os.pwrite(descriptor, packed.buffer, 4096)
    file = LentFile(packed.layout, descriptor, 4096)
    yield file
    file.close()


def linked(swarm: Any, *names: str, initial: Arrays = LARGE) -> list[Any]:
    nodes = [swarm.add(name, initial, links=True) for name in names]
    swarm.link()
    assert swarm.turn(lambda: all(len(node.runtime._links.readers.links) == len(names) - 1 for node in nodes))
    return nodes


def has(node: Any, value: float) -> bool:
    return bool((node.arrays()["w"] == value).all())


def test_a_lent_update_reaches_readers_as_a_file(swarm: Any) -> None:
    nodes = linked(swarm, "one", "two", "three")
    files = open_files()
    for number in (1, 2, 3):
        with lent({"w": np.full_like(LARGE["w"], number)}) as update:
            nodes[0].runtime.happen(Computed(update))
        assert swarm.turn(lambda: all(node.frontiers["one"] == number for node in nodes))  # noqa: B023
    assert all(has(node, 6) for node in nodes)
    assert swarm.turn(lambda: len(nodes[0].runtime._segments) == 0)
    assert open_files() == files
    assert all(node.runtime.figures.bytes_in < BLOCK_BYTES for node in nodes)
    update_bytes = Packed.of(LARGE).layout.nbytes
    assert [node.runtime.figures.handed_out for node in nodes] == [2 * 3 * update_bytes, 0, 0]
    assert [node.runtime.figures.handed_in for node in nodes] == [0, 3 * update_bytes, 3 * update_bytes]


def test_readers_that_were_away_are_served_the_sum(swarm: Any) -> None:
    one, two = linked(swarm, "one", "two")
    two.host.is_read = True
    for _ in range(4):
        with lent({"w": np.ones_like(LARGE["w"])}) as update:
            one.runtime.happen(Computed(update))
        swarm.turn_for(0.02)
    two.host.is_read = False
    assert swarm.turn(lambda: two.frontiers["one"] == 4)
    assert has(two, 4)


def test_large_updates_and_rows_go_as_the_parts_of_a_sum(swarm: Any) -> None:
    one, two = linked(swarm, "one", "two")
    files = open_files()
    two.host.is_read = True
    rows = rows_of("w", np.array([0, BLOCK_BYTES // 8, 393215]), np.array([10.0, 20.0, 30.0]))
    for number in (1, 2):
        with lent({"w": np.full_like(LARGE["w"], number)}) as update:
            one.runtime.happen(Computed(update))
        swarm.turn_for(0.02)  # the first is asked for, and what comes meanwhile is served as one sum
        one.publish(rows)
    two.host.is_read = False
    assert swarm.turn(lambda: two.frontiers["one"] == 4)
    expected = np.full_like(LARGE["w"], 3)
    expected[[0, BLOCK_BYTES // 8, -1]] += [20, 40, 60]
    np.testing.assert_array_equal(two.arrays()["w"], expected)
    assert two.runtime.figures.bytes_in < BLOCK_BYTES
    assert swarm.turn(lambda: len(one.runtime._segments) == 0)
    assert open_files() == files


def test_small_updates_need_no_file_of_their_own(swarm: Any) -> None:
    one, two = linked(swarm, "one", "two", initial=SMALL)
    files = open_files()
    for number in range(1, 6):
        one.publish({"w": np.ones(3)})
        assert swarm.turn(lambda: two.frontiers["one"] == number)  # noqa: B023
    assert has(two, 5)
    assert open_files() == files


def test_a_file_with_a_number_that_is_none_is_not_merged(swarm: Any) -> None:
    one, two = linked(swarm, "one", "two")
    files = open_files()
    update = np.ones_like(LARGE["w"])
    update[-1] = np.nan
    with lent({"w": update}) as file:
        one.runtime.happen(Computed(file))
    assert swarm.turn(lambda: two.runtime.peer.refused == 1)
    assert has(two, 0)
    assert "'w': 1 of 393216 numbers are NaN or infinite" in two.host.warnings[0]
    assert open_files() - files <= 1  # the segment that the origin keeps


def test_when_a_link_breaks_updates_go_over_zeromq(swarm: Any) -> None:
    one, two = linked(swarm, "one", "two")
    two.runtime._links.origins.drop(PeerId("one"))
    with lent({"w": np.ones_like(LARGE["w"])}) as update:
        one.runtime.happen(Computed(update))
    assert swarm.turn(lambda: two.frontiers["one"] == 1)
    assert has(two, 1)
    assert two.runtime.figures.bytes_in > LARGE["w"].nbytes
    assert one.runtime._links.readers.links == {}


def test_peers_with_and_without_links_read_each_other(swarm: Any) -> None:
    one = swarm.add("one", LARGE, links=True)
    two = swarm.add("two", LARGE)
    swarm.link()
    for node in (one, two):
        with lent({"w": np.ones_like(LARGE["w"])}) as update:
            node.runtime.happen(Computed(update))
    assert swarm.turn(lambda: has(one, 2) and has(two, 2))


@pytest.fixture
def rogue(swarm: Any) -> Iterator[tuple[Any, socket.socket]]:
    """A node, and the end of a link to it that is ours: we are the origin that it reads from."""
    listener = same_host.listen(PeerId("rogue"))
    assert listener is not None
    node = linked(swarm, "node")[0]
    link = same_host.connect(node.me, PeerId("rogue"))
    assert link is not None
    node.runtime._links.origins.add(PeerId("rogue"), link)
    accepted = same_host.accept(listener)
    assert accepted is not None
    assert same_host.receive_name(accepted, PeerId("rogue")) == "node"
    node.runtime.peer.replicator.join(PeerId("rogue"), False, True, True)
    yield node, accepted
    accepted.close()
    listener.close()


def test_a_file_that_is_too_short_is_told(swarm: Any, rogue: Any) -> None:
    node, link = rogue
    files = open_files()
    header = encode_header(Range(PeerId("rogue"), 1, 1, 1, layout=Layout.of(LARGE)))
    descriptor = same_host.small_file(bytes(LARGE["w"].nbytes))
    assert same_host.send(link, header, [same_host.Part(descriptor, 64)])
    os.close(descriptor)
    assert swarm.turn(lambda: node.runtime.figures.malformed == 1)
    assert "a file is too short" in node.host.warnings[0]
    assert open_files() == files


@pytest.mark.parametrize(("path", "flags"), [("/", os.O_RDONLY), ("file", os.O_WRONLY), ("pipe", os.O_RDWR)])
def test_what_cannot_be_read_is_no_file_and_ends_nobody(
    swarm: Any, rogue: Any, tmp_path: Path, path: str, flags: int
) -> None:
    node, link = rogue
    node.runtime.peer.layout = None
    (tmp_path / "file").write_bytes(bytes(1000))
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / path, flags)
    header = encode_header(Range(PeerId("rogue"), 1, 1, 1, layout=Layout.of(SMALL)))
    assert same_host.send(link, header, [same_host.Part(descriptor)])
    os.close(descriptor)
    assert swarm.turn(lambda: node.runtime.figures.malformed == 1)
    assert node.frontiers["rogue"] == 0


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"x" * 100,
        encode_header(Pull(PeerId("rogue"), 0, 1)),
        encode_header(Advert(PeerId("somebody else"), 1, {})),
        encode_header(Range(PeerId("rogue"), 1, 1, 1, layout=Layout.of(LARGE))),
    ],
)
def test_nonsense_over_a_link_is_counted_and_changes_nothing(swarm: Any, rogue: Any, frame: bytes) -> None:
    node, link = rogue
    assert same_host.send(link, frame)
    assert swarm.turn(lambda: node.runtime.figures.malformed == 1)
    assert node.frontiers == {"node": 0, "rogue": 0}
    assert has(node, 0)


def test_a_range_that_does_not_fit_or_is_not_the_next_is_dropped_with_its_file(swarm: Any, rogue: Any) -> None:
    node, link = rogue
    files = open_files()
    for lo, layout in ((2, Layout.of(LARGE)), (1, Layout.of(SMALL))):
        descriptor = same_host.small_file(bytes(LARGE["w"].nbytes))
        header = encode_header(Range(PeerId("rogue"), lo, lo, 1, layout=layout))
        assert same_host.send(link, header, [same_host.Part(descriptor)])
        os.close(descriptor)
    assert swarm.turn(lambda: len(node.host.warnings) == 1)
    assert "a message that does not fit was dropped" in node.host.warnings[0]
    assert node.frontiers["rogue"] == 0
    assert open_files() == files


@pytest.mark.parametrize("rows", [[2, 1], [0, 393216], [-1, 5]])
def test_parts_with_rows_that_are_none_are_dropped(swarm: Any, rogue: Any, rows: list[int]) -> None:
    node, link = rogue
    files = open_files()
    message = Range(PeerId("rogue"), 1, 1, 1, layout=Layout.of(LARGE))
    some = Packed.of(rows_of("w", np.array(rows), np.ones(2)))
    parts = [
        same_host.Part(same_host.small_file(bytes(LARGE["w"].nbytes))),
        same_host.Part(
            same_host.small_file(some.buffer), 0, encode_header(structs.replace(message, layout=some.layout))
        ),
    ]
    assert same_host.send(link, encode_header(message), parts)
    for part in parts:
        os.close(part.descriptor)
    assert swarm.turn(lambda: len(node.host.warnings) == 1)
    assert "expected ascending numbers of rows below 393216" in node.host.warnings[0]
    assert has(node, 0)
    assert open_files() == files


def test_files_that_cannot_be_opened_end_the_link(swarm: Any, rogue: Any, out_of_descriptors: Any) -> None:
    node, link = rogue
    with lent({"w": np.ones_like(LARGE["w"])}) as file:
        same_host.send(link, b"frame", [same_host.Part(file.descriptor)] * 3)
    with out_of_descriptors(left=1):
        node.runtime._links.origins.drain(PeerId("rogue"))
        os.close(os.open(os.devnull, os.O_RDONLY))
    assert PeerId("rogue") not in node.runtime._links.origins.links
    assert node.runtime.figures.malformed == 0


# ------------------------------------------------------------------------------------------------------- with keys


def sealed(swarm: Any, secret: str = SECRET) -> Any:
    """A peer with a key of its own, and the run's secret."""
    return swarm.add("", LARGE, links=True, keys=Keys.generate(), secret=secret)


def test_peers_that_have_the_same_secret_link(swarm: Any) -> None:
    one, two = sealed(swarm), sealed(swarm)
    swarm.link()
    origins = two.runtime._links.origins
    assert swarm.turn(lambda: one.me in origins.links and not origins._unproven)
    with lent({"w": np.ones_like(LARGE["w"])}) as update:
        one.runtime.happen(Computed(update))
        assert swarm.turn(lambda: has(two, 1))
    assert two.runtime.figures.handed_in == LARGE["w"].nbytes


def test_a_reader_without_the_secret_is_given_nothing(swarm: Any) -> None:
    node = sealed(swarm)
    for secret in (None, "another"):
        stranger = same_host.connect(PeerId("reader"), node.me, secret)
        assert stranger is not None
        seen = node.runtime.figures.malformed
        assert swarm.turn(lambda seen=seen: node.runtime.figures.malformed == seen + 1)
        node.publish({"w": np.ones_like(LARGE["w"])})
        swarm.turn_for(0.1)
        with pytest.raises(EOFError):
            same_host.receive(stranger)
        stranger.close()
    assert "does not have the run's secret" in node.host.warnings[0]
    assert not node.runtime._links.readers.links


def test_a_reader_that_is_not_known_yet_waits_until_it_is(swarm: Any) -> None:
    one, two = sealed(swarm), sealed(swarm)
    two.runtime.connect(one.me, one.runtime.endpoints)
    two.runtime.happen(Joined(one.me))
    assert swarm.turn(lambda: two.me in one.runtime._links._nameless.values())
    assert two.me not in one.runtime._links.readers.links
    one.runtime.connect(two.me, two.runtime.endpoints)
    one.runtime.happen(Joined(two.me))
    assert two.me in one.runtime._links.readers.links
    assert not one.runtime._links._nameless
    with lent({"w": np.ones_like(LARGE["w"])}) as update:
        one.runtime.happen(Computed(update))
        assert swarm.turn(lambda: has(two, 1))
    assert two.runtime.figures.handed_in == LARGE["w"].nbytes


def test_another_process_that_has_the_secret_is_not_believed_to_be_a_peer(swarm: Any) -> None:
    """The kernel says which process it is, and the roster which is the peer's; neither end is believed otherwise."""
    one, two = sealed(swarm), sealed(swarm)
    for node, other in ((one, two), (two, one)):
        node.runtime.connect(other.me, replace(other.runtime.endpoints, pid=os.getppid()))
        node.runtime.happen(Joined(other.me))
    assert not one.runtime._links.origins.links
    stranger = same_host.connect(two.me, one.me, SECRET)
    assert stranger is not None
    assert swarm.turn(lambda: any("is another process" in text for text in one.host.warnings))
    assert not one.runtime._links.readers.links
    one.publish({"w": np.ones_like(LARGE["w"])})
    assert swarm.turn(lambda: has(two, 1)), "they read over ZeroMQ"
    assert two.runtime.figures.handed_in == 0
    stranger.close()


def test_who_listens_in_the_name_of_a_peer_is_not_believed(swarm: Any) -> None:
    """It took the name first. The peer it stands for is read over ZeroMQ, and what it says changes nothing."""
    keys = Keys.generate()
    squatter = same_host.listen(fingerprint(keys.public))
    assert squatter is not None
    one, two = swarm.add("", LARGE, links=True, keys=keys, secret=SECRET), sealed(swarm)
    swarm.link()
    accepted = same_host.accept(squatter)
    assert accepted is not None
    with lent({"w": np.full_like(LARGE["w"], 7.0)}) as forged:
        header = encode_header(Range(one.me, 1, 1, 1, layout=Layout.of(LARGE)))
        assert same_host.send(accepted, header, [same_host.Part(forged.descriptor, forged.offset)])
    one.publish({"w": np.ones_like(LARGE["w"])})
    assert swarm.turn(lambda: has(two, 1))
    assert one.me not in two.runtime._links.origins.links
    assert "does not have the run's secret" in two.host.warnings[0]
    accepted.close()
    squatter.close()


def test_nothing_is_asked_over_a_link_before_the_other_end_has_proved_itself(swarm: Any) -> None:
    keys = Keys.generate()
    squatter = same_host.listen(fingerprint(keys.public))
    assert squatter is not None
    one, two = swarm.add("", LARGE, links=True, keys=keys, secret=SECRET), sealed(swarm)
    swarm.link()
    accepted = same_host.accept(squatter)
    assert accepted is not None
    one.publish({"w": np.ones_like(LARGE["w"])})
    assert swarm.turn(lambda: has(two, 1))
    hello = accepted.recv(1000)
    assert hello.endswith(two.me.encode())
    with pytest.raises(BlockingIOError):
        accepted.recv(1000)
    accepted.close()
    squatter.close()


def test_readers_come_in_however_many_links_say_nothing(swarm: Any) -> None:
    (node,) = linked(swarm, "node")
    silent = []
    for _ in range(same_host.NAMELESS_MAX + 20):
        silent.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        silent[-1].connect(same_host._address(PeerId("node")))
        node.runtime.poll(0.01)
    link = same_host.connect(PeerId("reader"), PeerId("node"))
    assert link is not None
    assert swarm.turn(lambda: PeerId("reader") in node.runtime._links.readers.links)
    assert len(node.runtime._links._nameless) <= same_host.NAMELESS_MAX
    for each in (*silent, link):
        each.close()


def test_a_reader_that_cannot_be_let_in_is_let_in_later(swarm: Any, out_of_descriptors: Any) -> None:
    (node,) = linked(swarm, "node")
    link = same_host.connect(PeerId("reader"), PeerId("node"))
    assert link is not None
    with out_of_descriptors():
        node.runtime.poll(0.01)
        assert len(node.runtime._poller._resting) == 1
    assert swarm.turn(lambda: PeerId("reader") in node.runtime._links.readers.links)
    link.close()
