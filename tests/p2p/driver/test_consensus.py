"""How far replicas are apart, and their mean: from copies as agents give them, block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Array, Layout, Packed
from gossip.errors import MismatchError, UsageError
from gossip.flat import Flat
from gossip.messages import PeerId, State
from p2p.agent.replica import Replica
from p2p.driver import consensus
from p2p.driver.consensus import Average, Envelope, Fetched, consensus_distance, fetch_replica, read_replicas
from p2p.driver.registrar import Member

ARRAYS = {"w": np.array([1.0, -4.0, 2.0]), "b": np.array([[8, 16]], dtype=np.float32)}
LAYOUT = Layout.of(ARRAYS)


def member(name: str) -> Member:
    return Member(
        peer=PeerId(name),
        role="peer",
        name=name,
        pid=1,
        adverts="tcp://127.0.0.1:1",
        pulls=f"at {name}",
        key=f"key of {name}",
        route=b"",
        level=True,
        shortage=None,
        heard_at=0.0,
    )


class Agents:
    """Give their replicas in blocks of three bytes to whoever fetches them."""

    def __init__(self) -> None:
        self.replicas: dict[str, dict[str, Array]] = {}
        self.fronts: dict[str, dict[str, int]] = {}
        self.asked: list[dict[str, Any]] = []

    def fetch(self, context: Any, endpoint: str, begin: Callable[[State], Any], **how: Any) -> State:
        assert not context.closed
        self.asked.append({"endpoint": endpoint, **how})
        if endpoint not in self.replicas:
            raise UsageError("nothing came")
        packed = Packed.of(self.replicas[endpoint])
        frontiers = {PeerId(lane): n for lane, n in self.fronts.get(endpoint, {}).items()}
        state = State(peer=PeerId("they"), frontiers=frontiers, k=1, layout=packed.layout)
        take = begin(state)
        for start in range(0, packed.layout.nbytes, 8):
            take(start, bytes(packed.buffer[start : start + 8]))
        return state


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> Agents:
    agents = Agents()
    monkeypatch.setattr(consensus, "fetch_state", agents.fetch)
    return agents


def changed(**values: Any) -> dict[str, Array]:
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    for name, value in values.items():
        arrays[name].flat[0] += value
    return arrays


def test_the_distance_is_the_largest_difference_over_the_largest_value_of_the_same_array() -> None:
    envelope = Envelope(LAYOUT, bytes(Packed.of(ARRAYS).buffer))
    assert envelope.distance() == 0.0
    envelope.widen(0, bytes(Packed.of(changed(w=0.5)).buffer))
    assert envelope.distance() == 0.5 / 4.0
    envelope.widen(0, bytes(Packed.of(changed(w=-0.5)).buffer))
    assert envelope.distance() == 1.0 / 4.0, "of the lowest and the highest, though the first lies between"
    envelope.widen(0, bytes(Packed.of(changed(b=8.0)).buffer))
    assert envelope.distance() == 8.0 / 16.0
    envelope.widen(0, bytes(Packed.of(changed(b=-16.0)).buffer))
    assert envelope.distance() == 24.0 / 16.0


def test_a_block_widens_the_numbers_that_lie_in_it_and_no_others() -> None:
    envelope = Envelope(LAYOUT, bytes(Packed.of(ARRAYS).buffer))
    other = bytes(Packed.of({name: array + 64 for name, array in ARRAYS.items()}).buffer)
    second = next(first for dtype, first, _ in LAYOUT.pieces(0, LAYOUT.nbytes) if np.dtype(dtype).itemsize == 8) + 8
    envelope.widen(second, other[second : second + 8])
    lows, highs = map(LAYOUT.views, envelope.bounds(0))
    spread = {name: (highs[name] - lows[name]).ravel().tolist() for name in lows}
    assert spread == {"w": [0, 64, 0], "b": [0, 0]}


def test_the_bounds_of_many_blocks_are_those_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    arrays = {"w": chance.normal(size=(700, 1000)).astype(np.float32), "b": chance.normal(size=300_000)}
    layout, found = Layout.of(arrays), []
    others = [{name: array + chance.normal(size=array.shape) / 9 for name, array in arrays.items()} for _ in range(3)]
    packed = [Packed.of({"w": each["w"].astype(np.float32), "b": each["b"]}) for each in (arrays, *others)]
    for blocks_max in (1, 100):
        monkeypatch.setattr(consensus, "BLOCKS_IN_MEMORY_MAX", blocks_max)
        envelope = Envelope(layout, packed[0])
        for other in packed[1:]:
            for start in range(0, layout.nbytes, 3 << 18):  # some reach over the end of a block
                envelope.widen(start, other.read(start, start + (3 << 18)))
        assert (envelope._file is None) == (blocks_max == 100)
        found.append(envelope.distance())
    every = [each.arrays() for each in packed]
    spreads = []
    for name in arrays:
        stacked = np.stack([each[name] for each in every]).astype(np.float64)
        spreads.append(np.ptp(stacked, axis=0).max() / np.abs(stacked).max())
    assert found == [max(spreads)] * 2


def test_equal_zeros_are_not_apart() -> None:
    zeros = {"w": np.zeros(3)}
    envelope = Envelope(Layout.of(zeros), bytes(Packed.of(zeros).buffer))
    envelope.widen(0, bytes(Packed.of(zeros).buffer))
    assert envelope.distance() == 0.0


def test_without_arrays_nothing_is_apart() -> None:
    assert Envelope(Layout(()), b"").distance() == 0.0


def test_of_no_replica_there_is_no_mean_and_none_is_apart() -> None:
    average = Average(Flat(LAYOUT))
    assert (average.is_empty, average.distance(), average.spread()) == (True, 0.0, 0.0)
    average.take_in(bytes(Packed.of(ARRAYS).buffer), 0.0)
    assert (average.is_empty, average.distance(), average.spread()) == (True, 0.0, 0.0)
    average.take_in(bytes(Packed.of(changed(w=0.5)).buffer), 0.25)
    assert (average.is_empty, average.distance(), average.spread()) == (False, 0.5 / 4.0, 0.0)
    np.testing.assert_array_equal(average.mean().arrays()["w"], changed(w=0.5)["w"])


def test_a_replica_is_fetched_with_its_front(agents: Agents) -> None:
    agents.replicas["at one"] = changed(w=0.5)
    agents.fronts["at one"] = {"a": 3, "b": 4}
    fetched = fetch_replica(LAYOUT, member("one"), 7.0)
    assert fetched is not None
    assert agents.asked == [{"endpoint": "at one", "timeout_s": 7.0, "key": "key of one"}]
    assert (fetched.merged, fetched.front) == (7, {"a": 3, "b": 4})
    with fetched.reading():
        np.testing.assert_array_equal(fetched.arrays()["w"], changed(w=0.5)["w"])
        np.testing.assert_array_equal(fetched.arrays()["b"], ARRAYS["b"])
        assert bytes(fetched.read(0, LAYOUT.nbytes)) == bytes(Packed.of(changed(w=0.5)).buffer)
        assert bytes(fetched.read(8, 24)) == bytes(Packed.of(changed(w=0.5)).buffer)[8:24]


def test_a_replica_that_does_not_come_is_none(agents: Agents) -> None:
    assert fetch_replica(LAYOUT, member("one"), 7.0) is None


def test_a_replica_that_does_not_fit_is_none(agents: Agents) -> None:
    agents.replicas["at one"] = {"w": np.zeros(3)}
    assert fetch_replica(LAYOUT, member("one"), 7.0) is None
    with pytest.raises(MismatchError):
        Layout.of(agents.replicas["at one"]).check_fit(LAYOUT)


def test_all_replicas_are_compared_with_the_one_at_hand(agents: Agents) -> None:
    reference = Replica(LAYOUT)
    for name, array in reference.arrays().items():
        array[...] = ARRAYS[name]
    del array
    assert consensus_distance(reference, []) == (0.0, [])
    agents.replicas.update({"at one": changed(), "at two": changed(w=0.5), "at four": changed(w=-0.5)})
    members = [member(name) for name in ("one", "two", "three", "four", "five")]
    assert consensus_distance(reference, members) == (1.0 / 4.0, ["three", "five"])
    assert {asked["endpoint"] for asked in agents.asked} == {each.pulls for each in members}
    assert {asked["key"] for asked in agents.asked} == {each.key for each in members}
    assert all(asked["timeout_s"] == consensus.TIMEOUT_S for asked in agents.asked)
    assert reference.acquire(), "it is not read any more"
    reference.close()


def test_a_copy_may_be_the_one_at_hand(agents: Agents) -> None:
    agents.replicas["at one"] = changed(b=8.0)
    fetched = Fetched(LAYOUT, bytearray(Packed.of(ARRAYS).buffer), {})
    assert consensus_distance(fetched, [member("one")]) == (0.5, [])


def test_replicas_come_one_after_the_other(agents: Agents) -> None:
    agents.replicas.update({"at one": changed(w=0.5), "at three": changed(w=1.5)})
    came = {
        each.name: None if state is None else LAYOUT.views(buffer)["w"].tolist()
        for each, buffer, state in read_replicas(LAYOUT, [member(name) for name in ("one", "two", "three")])
    }
    assert came == {"one": [1.5, -4, 2], "two": None, "three": [2.5, -4, 2]}


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_replica_that_is_no_number_is_no_number_apart(name: str) -> None:
    replica = {"a": np.ones(3), "b": np.ones(3)}
    packed = Packed.of(replica)
    envelope = Envelope(packed.layout, packed.read(0, packed.layout.nbytes))
    broken = Packed.of({**replica, name: np.array([1.0, np.nan, 1.0])})
    envelope.widen(0, broken.read(0, broken.layout.nbytes))
    assert np.isnan(envelope.distance())
