"""A kind of update that nobody else knows of: single numbers of an array. And what every kind has to keep to.

At the end a codec of a few lines, which trains by that kind.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.arrays import Array, Arrays, Layout, Packed, Payload, Update
from gossip.errors import MismatchError, UsageError
from gossip.events import Computed, Negative
from gossip.flat import Flat
from gossip.lanes.peer import Settings
from gossip.messages import PeerId, Range, Unit
from gossip.sim.simulator import Network, Simulation
from gossip.updates import KINDS, Kind, check, kind_of, merge, read_whole, total, with_kinds
from gossip.updates.dense import Dense
from gossip.updates.entries import Entries, entries_of
from gossip.updates.halves import Halves
from gossip.updates.levels import Levels, in_blocks, levels_of
from gossip.updates.rows import Rows, rows_of
from gossip.updates.stamps import RowStamps
from gossip.wire import decode, encode
from gossip.zmq.segments import Segments
from p2p import DeepDist, SimulatedCluster
from p2p.adapters.model import Model
from p2p.agent.ports import Left
from p2p.agent.replica import Replica
from p2p.codec import packed
from p2p.worker.job import Job
from p2p.worker.task import run_partition
from p2p.worker.working_copy import ExchangeSettings, WorkingCopy

PLACES, NUMBERS = "[places]", "[numbers]"


@dataclass(frozen=True)
class Singles:
    """`w[places]` (k,) int64, ascending, in the flat array, and `w[numbers]` (k,), which are added there."""

    sum_max: int = 1 << 30
    """A sum of more numbers is better told as whole arrays."""

    suffixes = (PLACES, NUMBERS)
    in_blocks = False

    def claims(self, layout: Layout) -> bool:
        return any(spec.name.endswith(PLACES) for spec in layout.specs)

    def check_fit(self, layout: Layout, model: Layout) -> None:
        theirs = {spec.name: spec for spec in model.specs}
        mine = {spec.name: spec for spec in layout.specs}
        for name in {base(name) for name in mine}:
            expected, places, numbers = theirs.get(name), mine.get(name + PLACES), mine.get(name + NUMBERS)
            if expected is None or name in mine or places is None or numbers is None:
                raise MismatchError(f"{sorted(mine)}, expected places and numbers of some of {sorted(theirs)}")
            if places.dtype != "<i8" or len(places.shape) != 1 or places.shape != numbers.shape:
                raise MismatchError(f"{places} with {numbers}, expected as many places of int64")
            if numbers.dtype != expected.dtype:
                raise MismatchError(f"{numbers}, expected dtype {expected.dtype}")

    def check(self, update: Update, model: Layout) -> None:
        for spec in model.specs:
            places = update.arrays().get(spec.name + PLACES, np.zeros(0, np.int64))
            size = int(np.prod(spec.shape))
            if np.any(np.diff(places) <= 0) or np.any(places < 0) or np.any(places >= size):
                raise MismatchError(f"places of {spec.name!r}: {places}, expected them ascending below {size}")

    def add(self, model: Layout, buffer: Any, update: Payload) -> None:
        targets, parts = model.views(buffer), read_whole(update).arrays()
        for name in {base(name) for name in parts}:
            targets[name].reshape(-1)[parts[name + PLACES]] += parts[name + NUMBERS]

    def add_within(self, model: Layout, block: Any, start: int, update: Payload) -> None:
        parts = read_whole(update).arrays()
        for spec, offset in zip(model.specs, model.offsets, strict=True):
            low, high = max(start, offset), min(start + len(block), offset + spec.nbytes)
            if low < high and spec.name + PLACES in parts:
                dtype = np.dtype(spec.dtype)
                target = np.frombuffer(block, dtype, (high - low) // dtype.itemsize, low - start)
                first, places = (low - offset) // dtype.itemsize, parts[spec.name + PLACES]
                here = slice(*np.searchsorted(places, (first, first + len(target))))
                target[places[here] - first] += parts[spec.name + NUMBERS][here]

    def total(self, left: Arrays, right: Arrays) -> Arrays | None:
        result: dict[str, Array] = {}
        for name in {base(name) for name in (*left, *right)}:
            parts = [arrays for arrays in (left, right) if name + PLACES in arrays]
            places = np.unique(np.concatenate([arrays[name + PLACES] for arrays in parts]))
            if len(places) > self.sum_max:
                return None
            numbers = np.zeros(len(places), parts[0][name + NUMBERS].dtype)
            for arrays in parts:
                numbers[np.searchsorted(places, arrays[name + PLACES])] += arrays[name + NUMBERS]
            result |= {name + PLACES: places, name + NUMBERS: numbers}
        return result

    def negative(self, update: Payload) -> Packed:
        arrays = read_whole(update).arrays()
        return Packed.of({name: -array if name.endswith(NUMBERS) else array for name, array in arrays.items()})

    def changed_rows(self, model: Layout, update: Payload) -> Iterator[tuple[str, Array | None]]:
        parts = read_whole(update).arrays()
        for spec in model.specs:
            if spec.name + PLACES in parts:
                width = max(1, int(np.prod(spec.shape[1:])))
                yield spec.name, parts[spec.name + PLACES] // width if spec.shape else None


@dataclass(frozen=True)
class TopK:
    """The `k` largest numbers of each array; the others are left for later."""

    k: int

    kinds = (Singles(),)

    def encode(self, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        update: dict[str, Array] = {}
        left: dict[str, Array] = {}
        for name, change in delta.items():
            left[name] = rest = np.array(residual[name] + change)
            flat = rest.reshape(-1)
            places = np.sort(np.argsort(-np.abs(flat), kind="stable")[: self.k]).astype(np.int64)
            update |= {name + PLACES: places, name + NUMBERS: flat[places]}
            flat[places] = 0
        return update, left


def base(name: str) -> str:
    return name.removesuffix(PLACES).removesuffix(NUMBERS)


SINGLES = Singles()
ALL = with_kinds([SINGLES])
MODEL = {
    "w": np.zeros((20, 3), np.float32),
    "v": np.zeros((7, 2, 2), np.float64),
    "b": np.zeros(5, np.float32),
    "n": np.zeros(4, np.int64),
    "s": np.zeros((), np.float64),
}
LAYOUT = Layout.of(MODEL)


# ----------------------------------------------------------------------------- updates of every kind, of whole numbers


def dense(seed: int) -> Packed:
    chance = np.random.default_rng(seed)
    return Packed.of({name: chance.integers(1, 50, a.shape).astype(a.dtype) for name, a in MODEL.items()})


def rows(seed: int) -> Packed:
    chance = np.random.default_rng(seed)
    of_w, of_v = (np.sort(chance.choice(len(MODEL[name]), 4, replace=False)) for name in "wv")
    units = chance.integers(0, 3, 4).astype(np.int8)
    return Packed.of(
        {
            **rows_of("w", of_w, chance.integers(1, 50, (4, 3)).astype(np.int8), units),
            **rows_of("v", of_v, chance.integers(1, 50, (4, 2, 2)).astype(np.float64)),
            "b": chance.integers(1, 50, 5).astype(np.float32),
        }
    )


def singles(seed: int) -> Packed:
    chance = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for name, array in MODEL.items():
        if name != "b":
            places = np.sort(chance.choice(array.size, min(4, array.size), replace=False)).astype(np.int64)
            numbers = chance.integers(1, 50, len(places)).astype(array.dtype)
            arrays |= {name + PLACES: places, name + NUMBERS: numbers}
    return Packed.of(arrays)


def entries(seed: int) -> Packed:
    chance = np.random.default_rng(seed)
    arrays: dict[str, Array] = {"v": chance.integers(1, 50, (7, 2, 2)).astype(np.float64)}
    for name in ("w", "b", "s", "n"):
        array = MODEL[name]
        places = np.sort(chance.choice(array.size, min(4, array.size), replace=False))
        if name == "n" or seed % 3 == 0:
            arrays |= entries_of(name, places, chance.integers(1, 50, len(places)).astype(array.dtype))
        else:
            steps, powers = chance.integers(1, 100, len(places)).astype(np.int8), chance.integers(-3, 4, len(places))
            arrays |= entries_of(name, places, steps, powers.astype(np.int8))
    return Packed.of(arrays)


def halves(seed: int) -> Packed:
    chance = np.random.default_rng(seed)
    half = {f"{name}[half]": chance.integers(1, 50, MODEL[name].shape).astype(np.float16) for name in "wvs"}
    return Packed.of({**half, "n": chance.integers(1, 50, 4), "b": chance.integers(1, 50, 5).astype(np.float32)})


def levels(seed: int) -> Packed:
    chance = np.random.default_rng(seed)
    arrays: dict[str, Array] = {"n": chance.integers(1, 50, 4), "b": chance.integers(1, 50, 5).astype(np.float32)}
    for name in ("w", "v", "s"):  # no row is all zeros
        up = in_blocks(np.where(chance.random(MODEL[name].shape) < 0.6, 1, -1))
        arrays |= levels_of(name, up, chance.integers(-2, 5, len(up)).astype(np.int8))
    return Packed.of(arrays)


def broken_dense() -> Iterator[Packed]:
    yield Packed.of({name: array for name, array in MODEL.items() if name != "w"})
    yield Packed.of({**MODEL, "w": np.zeros((3, 20), np.float32)})
    yield Packed.of({**MODEL, "b": np.zeros(5)})


def broken_rows() -> Iterator[Packed]:
    def ones(name: str, *numbers: int) -> dict[str, Array]:
        return rows_of(name, np.array(numbers), np.ones((len(numbers), 3), np.float32))

    yield Packed.of(ones("x", 1))
    yield Packed.of(ones("w", 3, 1))
    yield Packed.of(ones("w", 19, 20))
    yield Packed.of({**ones("w", 1), "b": np.zeros(6, np.float32)})


def broken_entries() -> Iterator[Packed]:
    def ones(name: str, *places: int) -> dict[str, Array]:
        return entries_of(name, np.array(places), np.ones(len(places), np.float32))

    powers = np.zeros(1, np.int8)
    yield Packed.of(ones("x", 1))
    yield Packed.of(ones("v", 1))
    yield Packed.of(ones("w", 3, 1))
    yield Packed.of(ones("w", 59, 60))
    yield Packed.of(entries_of("w", np.array([1]), np.ones((1, 3), np.float32)))
    yield Packed.of(entries_of("n", np.array([1]), np.ones(1, np.int8), powers))
    yield Packed.of(entries_of("w", np.array([1]), np.ones(1, np.int8), powers + np.int8(100)))
    yield Packed.of({**ones("w", 1), "b": np.zeros((5, 1), np.float32)})
    yield Packed.of({**ones("b", 1), "w": np.zeros(60, np.float32)})
    yield Packed.of({**ones("w", 1), "w": np.zeros((20, 3), np.float32)})
    yield Packed.of({**ones("w", 1), **rows_of("v", np.array([1]), np.ones((1, 2, 2)))})


def broken_halves() -> Iterator[Packed]:
    yield Packed.of({"x[half]": np.zeros(3, np.float16)})
    yield Packed.of({"w[half]": np.zeros((3, 20), np.float16)})
    yield Packed.of({"w[half]": np.zeros((20, 3), np.int16)})
    yield Packed.of({"n[half]": np.zeros(4, np.float16)})
    yield Packed.of({"w[half]": np.zeros((20, 3), np.float16), "w": np.zeros((20, 3), np.float32)})
    yield Packed.of({"w[half]": np.zeros((20, 3), np.float16), "b": np.zeros(5)})


def broken_levels() -> Iterator[Packed]:
    blocks, scales = np.zeros((1, 256), np.int8), np.zeros(1, np.int8)
    good = levels_of("w", blocks, scales)
    yield Packed.of(levels_of("x", blocks, scales))
    yield Packed.of(levels_of("n", blocks, scales))
    yield Packed.of(levels_of("w", np.zeros((2, 256), np.int8), np.zeros(2, np.int8)))
    yield Packed.of({**good, "w[scales]": np.zeros(1, np.int16)})
    yield Packed.of({**good, "w[scales]": np.full(1, 65, np.int8)})
    yield Packed.of({**good, "w[levels]": np.full((1, 64), 3, np.uint8)})
    yield Packed.of({**good, "w[levels]": np.zeros((1, 256), np.uint8)})
    yield Packed.of({**good, "w[levels]": np.zeros((1, 64), np.int8)})
    yield Packed.of({"w[levels]": good["w[levels]"]})
    yield Packed.of({**good, "w": np.zeros((20, 3), np.float32)})
    yield Packed.of({**good, "b": np.zeros(6, np.float32)})


def broken_singles() -> Iterator[Packed]:
    def ones(name: str, *places: int) -> dict[str, Array]:
        return {name + PLACES: np.array(places, np.int64), name + NUMBERS: np.ones(len(places), np.float32)}

    yield Packed.of(ones("x", 1))
    yield Packed.of(ones("v", 1))
    yield Packed.of(ones("w", 3, 1))
    yield Packed.of(ones("w", 59, 60))
    yield Packed.of({"w" + PLACES: np.zeros(1, np.int64)})
    yield Packed.of({**ones("w", 1), "b": np.zeros(5, np.float32)})


MAKE = {"dense": dense, "rows": rows, "entries": entries, "halves": halves, "levels": levels, "singles": singles}
KIND: dict[str, Kind] = {
    "dense": next(kind for kind in KINDS if isinstance(kind, Dense)),
    "rows": next(kind for kind in KINDS if isinstance(kind, Rows)),
    "entries": next(kind for kind in KINDS if isinstance(kind, Entries)),
    "halves": next(kind for kind in KINDS if isinstance(kind, Halves)),
    "levels": next(kind for kind in KINDS if isinstance(kind, Levels)),
    "singles": SINGLES,
}
BROKEN = {
    "dense": broken_dense,
    "rows": broken_rows,
    "entries": broken_entries,
    "halves": broken_halves,
    "levels": broken_levels,
    "singles": broken_singles,
}
EACH = pytest.mark.parametrize("name", MAKE)


def added(*updates: Payload, model: Arrays = MODEL) -> dict[str, Any]:
    """One after the other."""
    replica, stamps = Packed.of(model), RowStamps(LAYOUT)
    for update in updates:
        merge(LAYOUT, replica.buffer, stamps, update, ALL)
    return replica.arrays()


def plain(*updates: Packed) -> dict[str, Any]:
    """The oracle: number by number, by what names mean."""
    model: dict[str, Any] = {name: array.astype(np.float64) for name, array in MODEL.items()}
    for update in updates:
        arrays = update.arrays()
        for name, target in model.items():
            if name in arrays:
                target += arrays[name]
            for at, row in enumerate(arrays.get(f"{name}[rows]", ())):
                units = arrays.get(f"{name}[exponents]")
                target[row] += arrays[f"{name}[values]"][at] * (1.0 if units is None else 2.0 ** int(units[at]))
            codes = arrays.get(f"{name}[levels]")
            for index in range(0 if codes is None or codes.dtype != np.uint8 else target.size):
                code = (int(codes[index // 256][index % 256 // 4]) >> 2 * (index % 4)) % 4  # type: ignore[index]
                target.reshape(-1)[index] += (code - 1) * 2.0 ** int(arrays[f"{name}[scales]"][index // 256])
            if f"{name}[half]" in arrays:
                target += arrays[f"{name}[half]"]
            for at, place in enumerate(arrays.get(f"{name}[entries]", ())):
                units = arrays.get(f"{name}[powers]")
                step = arrays[f"{name}[steps]"][at] * (1.0 if units is None else 2.0 ** int(units[at]))
                target.reshape(-1)[place] += step
            for at, place in enumerate(arrays.get(name + PLACES, ())):
                target.reshape(-1)[place] += arrays[name + NUMBERS][at]
    return model


def equal(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, name)


def data(update: Payload) -> bytes:
    return bytes(update.read(0, update.layout.nbytes))


# ------------------------------------------------------------------------------------------------------- the contract


@EACH
def test_an_update_is_of_its_kind_fits_and_is_added_number_by_number(name: str) -> None:
    for seed in range(20):
        update = MAKE[name](seed)
        assert kind_of(update.layout, ALL) is KIND[name]
        check(update, LAYOUT, ALL)
        equal(added(update, update), plain(update, update))


@EACH
def test_a_total_adds_exactly_what_one_after_the_other_does(name: str) -> None:
    for seed in range(20):
        updates = [MAKE[name](10 * seed + number) for number in range(4)]
        before = [data(update) for update in updates]
        one = updates[0]
        for other in updates[1:]:
            found = total(one, other, ALL)
            assert found is not None
            one = found
            assert kind_of(one.layout, ALL) is KIND[name]
            check(one, LAYOUT, ALL)
        equal(added(one), plain(*updates))
        assert [data(update) for update in updates] == before


@EACH
def test_a_negative_takes_back_exactly(name: str) -> None:
    for seed in range(20):
        update, other = MAKE[name](seed), MAKE[name](seed + 100)
        before = data(update)
        negative = KIND[name].negative(update)
        equal(added(update, other, negative), plain(other))
        check(read_whole(negative), LAYOUT, ALL)
        assert data(update) == before


@EACH
@pytest.mark.parametrize("step", [8, 24, 64, 1000])
def test_all_blocks_are_changed_as_the_whole_is(name: str, step: int) -> None:
    for seed in range(20):
        update, blocks = MAKE[name](seed), bytearray()
        for start in range(0, LAYOUT.nbytes, step):
            block = bytearray(min(step, LAYOUT.nbytes - start))
            KIND[name].add_within(LAYOUT, block, start, update)
            blocks += block
        equal(LAYOUT.views(blocks), added(update))


@EACH
def test_what_does_not_fit_is_refused_with_what_was_expected(name: str) -> None:
    for update in BROKEN[name]():
        with pytest.raises(MismatchError, match=r"expected|one of the model's arrays"):
            check(update, LAYOUT, ALL)


@EACH
def test_the_rows_that_change_are_told_and_no_others(name: str) -> None:
    for seed in range(20):
        update, told = MAKE[name](seed), {}
        for array, numbers in KIND[name].changed_rows(LAYOUT, update):
            told[array] = numbers
        for array, change in added(update).items():
            flat = change.reshape(len(change) if change.ndim else 1, -1)
            changed = np.flatnonzero(flat.any(axis=1))
            if array not in told:
                assert changed.size == 0
            elif told[array] is not None:
                assert sorted(set(told[array])) == changed.tolist()


@EACH
def test_it_passes_through_the_codec_and_is_flat_as_the_whole_arrays_are(name: str) -> None:
    update = MAKE[name](3)
    message = decode(encode(Range(PeerId("a"), 1, 1, 1), update))
    assert isinstance(message, Range)
    assert message.payload is not None
    equal(added(message.payload), plain(update))
    floats = Layout(tuple(spec for spec in LAYOUT.specs if spec.name != "n"))
    kept = Packed.of({part: array for part, array in update.arrays().items() if not part.startswith("n")})
    of_floats = Packed.of({part: plain(update)[part].astype(MODEL[part].dtype) for part in MODEL if part != "n"})
    np.testing.assert_array_equal(Flat(floats, ALL).flatten(kept), Flat(floats).flatten(of_floats))


# ----------------------------------------------------------------------------------------------------------- together


scripts = st.lists(st.tuples(st.sampled_from([*MAKE]), st.booleans(), st.integers(0, 999)), min_size=1, max_size=6)


@given(script=scripts, cut=st.integers(0, 5))
@pytest.mark.parametrize("memory_bytes_max", [0, 1 << 20])
@pytest.mark.parametrize("sum_max", [0, 1 << 30], ids=["as whole arrays", "as singles"])
def test_the_log_sums_all_kinds_whatever_it_is_cut_into(
    sum_max: int, memory_bytes_max: int, script: list[tuple[str, bool, int]], cut: int
) -> None:
    """Also what has no sum but whole arrays, as it is of several kinds, or is too much for its own."""
    segments = Segments(memory_bytes_max, model=LAYOUT, kinds=with_kinds([Singles(sum_max)]))
    sent: list[Packed] = []
    begins: list[int] = []
    for number, (name, begin, seed) in enumerate(script, 1):
        sent.append(MAKE[name](seed))
        if begin or not begins:
            begins.append(number)
        segments.keep(begins[-1], number, sent[-1])
    first = begins[cut % len(begins)]
    expected = plain(*sent[first - 1 :])
    summed = segments.sum(first, len(sent))
    assert summed is not None
    equal(added(summed), expected)
    again = segments.sum(first, len(sent))
    assert again is not None
    equal(added(again), expected)
    segments.fold(first, len(sent))
    folded = segments.sum(first, len(sent))
    assert folded is not None
    assert len(segments) <= len(begins)
    equal(added(folded), expected)
    segments.retain(1, sent[0])
    taken_back = segments.resolve(Negative(1))
    equal(added(sent[0], taken_back), plain())
    segments.close()


def test_singles_alone_stay_singles() -> None:
    segments = Segments(model=LAYOUT, kinds=ALL)
    for number in (1, 2, 3):
        segments.keep(number, number, singles(number))
    for _ in range(2):
        summed = segments.sum(1, 3)
        assert summed is not None
        assert kind_of(summed.layout, ALL) is SINGLES
        segments.fold(1, 3)
    assert segments.memory_bytes < LAYOUT.nbytes * 2


def test_a_lossy_swarm_with_a_late_peer_and_a_second_attempt_sums_all_kinds_exactly() -> None:
    network = Network(loss=0.2, duplication=0.2, late=0.05, late_mean_s=3.0)
    swarm = Simulation(4, MODEL, seed=7, network=network, settings=Settings(kinds=ALL))
    chance, sent = random.Random(5), []
    for number in range(60):
        update = MAKE[chance.choice([*MAKE])](number)
        sent.append(update)
        who = PeerId(f"p{chance.randrange(4):03d}")
        swarm.at(chance.uniform(0, 4), lambda who=who, update=update: swarm.happen(who, Computed(update)))  # type: ignore[misc]
    unit, late = Unit(0, 0, 0), PeerId("late")
    for attempt in (0, 1):  # of which one counts
        who = PeerId(f"p{attempt:03d}")
        swarm.at(2.0, lambda who=who, a=attempt: swarm.happen(who, Computed(singles(1000), unit, a)))  # type: ignore[misc]
    sent.append(singles(1000))
    swarm.at(2.5, lambda: swarm.join(late))
    swarm.at(6.0, lambda: swarm.happen(late, Computed(singles(2000))))
    sent.append(singles(2000))
    swarm.run(8.0)
    swarm.run_until_drained()
    assert sum(host.peer.units.withdrawn for host in swarm.peers.values()) == 1
    adopter = swarm.peers[late].peer.adopter
    assert adopter is not None
    assert adopter.done == 1
    for me, host in swarm.peers.items():
        assert (host.peer.refused, host.warnings) == (0, [])
        equal(dict(swarm.arrays(me)), plain(*sent))
        assert host.stamps.since("w", 0).size


def test_a_peer_that_does_not_know_a_kind_refuses_it_by_name() -> None:
    swarm = Simulation(2, MODEL, seed=1, settings=Settings(kinds=ALL))
    stranger = PeerId("p001")
    swarm.peers[stranger].peer.settings = Settings()
    swarm.happen(PeerId("p000"), Computed(singles(1)))
    swarm.run(2.0)
    assert swarm.peers[stranger].peer.refused > 0
    assert "is missing" in swarm.peers[stranger].warnings[0]
    equal(dict(swarm.arrays(stranger)), MODEL)


def test_kinds_are_found_in_order_and_two_of_the_same_names_are_refused() -> None:
    assert isinstance(kind_of(singles(1).layout), Dense)
    assert isinstance(kind_of(rows(1).layout, ALL), Rows)
    with pytest.raises(UsageError, match=r"Singles.* both have arrays that end in '\[places\]'"):
        with_kinds([Singles(), Singles(3)])


# ----------------------------------------------------------------------------------------- a codec trains by the kind


PARTITIONS = [[(part, row) for row in range(6)] for part in range(5)]
"""Rows: (partition, number)."""


def step(part: int, row: int) -> dict[str, Any]:
    """What is learned of a row, in whole numbers: much in a few places, little in all others."""
    chance = np.random.default_rng([part, row])
    numbers = {name: chance.integers(1, 4, array.shape).astype(array.dtype) for name, array in MODEL.items()}
    numbers["w"][chance.integers(20)] += 100
    return numbers


def gradient(model: Any, rows: Iterator[tuple[int, int]]) -> Any:
    total = {name: np.zeros_like(array) for name, array in MODEL.items()}
    for part, row in rows:
        for name, change in step(part, row).items():
            total[name] = total[name] + change
    return total


def descent(model: Any, update: Any) -> None:
    for name, change in update.items():
        model[name] += change


def everything(epochs: int = 1) -> dict[str, Any]:
    steps = [step(*row) for rows in PARTITIONS for row in rows]
    return {name: epochs * sum(each[name] for each in steps) for name in MODEL}


def fresh() -> dict[str, Any]:
    return {name: array.copy() for name, array in MODEL.items()}


def test_what_a_codec_leaves_goes_with_the_next_update_and_nothing_is_lost() -> None:
    model = fresh()
    copy = WorkingCopy(Model(model, codec=TopK(2)), ExchangeSettings())
    copy.begin_training(1)
    replica = Packed.of(MODEL)

    def publish(update: Arrays, residual: Arrays) -> None:
        merge(LAYOUT, replica.buffer, RowStamps(LAYOUT), Packed.of(update), ALL)
        copy.residual.leave(residual)

    for row in range(4):
        delta = step(0, row)
        coded, residual = copy.residual.encoded(delta)
        assert sum(len(part) for name, part in coded.items() if name.endswith(PLACES)) <= 2 * len(MODEL)
        if row == 2:  # another attempt was first: it is as if it had not been
            continue
        publish(coded, residual)
        for array in delta.values():
            array[...] = 99  # the next one is written there
    assert copy.residual.left({}).follows
    rest = copy.residual.left(copy.residual._kept).arrays
    assert rest is not None
    publish(rest, {})
    steps = [step(0, row) for row in (0, 1, 3)]
    equal(replica.arrays(), {name: sum(each[name] for each in steps) for name in MODEL})
    residual = copy.residual.encoded(step(0, 0))[1]
    left = copy.residual.left(residual)
    assert not left.follows, "nothing was left before"
    assert left.arrays is not None
    assert left.arrays["w[rows]"].tolist() == [*range(20)]
    copy.residual.leave(residual)
    assert copy.residual.left(residual).follows
    nothing = {name: np.zeros_like(array) for name, array in residual.items()}
    assert copy.residual.left(nothing).arrays is None
    copy.begin_training(2)
    assert not copy.residual.left(residual).follows, "another training begins with nothing left"


def no_sums(self: Any, left: Arrays, right: Arrays) -> Arrays:
    raise ZeroDivisionError("of the user")


@pytest.mark.parametrize(
    ("method", "broken", "error", "words"),
    [
        ("total", no_sums, ZeroDivisionError, "of the user"),
        (
            "add",
            lambda self, model, buffer, update: None,
            UsageError,
            r"add_within of Singles\(.*\) adds other numbers",
        ),
        ("negative", lambda self, update: update, UsageError, r"negative of Singles\(.*\) does not take back"),
    ],
)
def test_a_kind_that_is_broken_is_told_by_the_worker_and_reaches_no_peer(
    monkeypatch: pytest.MonkeyPatch, method: str, broken: Any, error: Any, words: str
) -> None:
    monkeypatch.setattr(Singles, method, broken)
    engine = SimulatedCluster(peers=2, seed=1)
    with DeepDist(fresh(), codec=TopK(2), engine=engine, progress=False) as dd:
        with pytest.raises(error, match=words) as caught:
            dd.train(PARTITIONS, gradient)
        assert any(note.startswith("in a rehearsal of Singles(") for note in caught.value.__notes__)


def test_what_is_left_of_arrays_without_rows_is_told_whole() -> None:
    model = {"b": np.zeros(5), "n": np.zeros(4, np.int64)}
    copy = WorkingCopy(Model(model, codec=TopK(1)), ExchangeSettings())
    update = copy.residual.left(copy.residual.encoded({"b": np.arange(5.0), "n": np.zeros(4, np.int64)})[1]).arrays
    assert update is not None
    assert isinstance(kind_of(Layout.of(update), ALL), Dense)
    assert update["b"].tolist() == [0, 1, 2, 3, 0]


class Beside:
    """Stands in for the agent beside a task: merges at once what it does not refuse, and keeps what is left."""

    def __init__(self, refused: tuple[int, int, int] | None = None) -> None:
        self.replica = Replica(LAYOUT, kinds=ALL)
        self.refused = refused
        self.kept: Packed | None = None

    def knows(self, unit: tuple[int, int, int]) -> bool:
        return False

    def furthest(self, epoch: int, partition: int) -> int:
        return -1

    def hand_over(self) -> Replica:
        return Replica(LAYOUT)

    def pack(self, arrays: Arrays) -> Packed:
        return Packed.of(arrays)

    def publish(
        self,
        update: Any,
        merged_at: int = 0,
        staleness: Any = None,
        unit: Any = None,
        attempt: int = 0,
        left: Left | None = None,
    ) -> bool:
        if unit == self.refused:
            return False
        self.replica.add(update)
        assert left is not None
        assert self.kept is None or left.follows
        self.kept = None if left.arrays is None else Packed.of(left.arrays)
        return True


def job(gradient: Any, run: str) -> Job:
    skeleton = Model(fresh(), codec=TopK(2)).skeleton()
    return Job(run=run, skeleton=skeleton, gradient=gradient, partitions=2, chunk_rows=1, peers=1, seed=0)


def test_an_update_that_came_too_late_leaves_what_was_left_before_it() -> None:
    agent = Beside(refused=(0, 1, 1))
    for part in range(2):
        result = run_partition(job(gradient, "late"), agent, 0, part, PARTITIONS[part][:3])
        assert result.updates == (3, 2)[part]
    assert agent.kept is not None
    agent.replica.add(agent.kept)
    steps = [step(*row) for row in PARTITIONS[0][:3] + PARTITIONS[1][:3:2]]
    equal(agent.replica.arrays(), {name: sum(each[name] for each in steps) for name in MODEL})


def test_what_was_left_at_the_end_of_a_partition_goes_with_the_next_one() -> None:
    def some(model: Any, rows: Iterator[int]) -> Any:
        w = np.zeros_like(model["w"])
        w[: sum(rows), 0] = 1
        return {"w": w}

    agent = Beside()
    run_partition(job(some, "next"), agent, 0, 0, [3])
    assert agent.replica.arrays()["w"].sum() == 2
    assert agent.kept is not None
    assert agent.kept.arrays()["w[rows]"].tolist() == [2]
    run_partition(job(some, "next"), agent, 0, 1, [1])
    assert agent.replica.arrays()["w"][:, 0].tolist() == [2, 1, 1] + 17 * [0]
    assert agent.kept is None


@pytest.mark.parametrize("seed", range(3))
def test_attempts_that_fail_on_a_simulated_cluster_lose_nothing_that_was_left(seed: int) -> None:
    model = fresh()
    with DeepDist(model, codec=TopK(2), engine=SimulatedCluster(peers=3, seed=seed, fail=0.4), progress=False) as dd:
        dd.train(PARTITIONS, gradient, chunk_rows=1)
    equal(model, everything())


@pytest.mark.parametrize("descent", [None, descent], ids=["added", "descent"])
@pytest.mark.parametrize("how", [{}, {"chunk_rows": 2}, {"exchange": "partition"}], ids=str)
def test_a_simulated_cluster_trains_by_a_codec_and_a_kind_of_ones_own(descent: Any, how: Any) -> None:
    network = Network(loss=0.1, duplication=0.1)
    model = fresh()
    cluster = SimulatedCluster(peers=3, seed=4, network=network)
    with DeepDist(model, codec=TopK(2), engine=cluster, progress=False) as dd:
        dd.train(PARTITIONS, gradient, descent, **how)
        equal(dd.model, everything())
        dd.model["w"][0] += 5  # goes to all peers as a dense update
        dd.train(PARTITIONS, gradient, descent, **how)
    expected = everything(2)
    expected["w"][0] += 5
    equal(model, expected)


@dataclass(frozen=True)
class Tens:
    """Rows in eight bits, in units of a power of two each: of a kind that all know."""

    kinds = ()

    def encode(self, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        update: dict[str, Array] = {}
        left: dict[str, Array] = {}
        for name, change in delta.items():
            whole = np.array(residual[name] + change)
            left[name] = np.zeros_like(whole)
            if whole.ndim < 2:
                update[name] = whole
                continue
            flat = whole.reshape(len(whole), -1)
            exponents = np.frexp(np.abs(flat).max(axis=1))[1] - 4  # so that something is left
            values = np.rint(np.ldexp(flat, -exponents[:, None]))
            left[name][...] = (flat - np.ldexp(values, exponents[:, None])).reshape(whole.shape)
            numbers = values.reshape(whole.shape).astype(np.int8)
            update |= rows_of(name, np.arange(len(whole)), numbers, exponents.astype(np.int8))
        return update, left


def test_a_codec_may_make_updates_of_a_kind_that_all_know() -> None:
    model = fresh()
    cluster = SimulatedCluster(peers=3, seed=5, network=Network(loss=0.1, duplication=0.1))
    with DeepDist(model, codec=Tens(), engine=cluster, progress=False) as dd:
        dd.train(PARTITIONS, gradient, descent, chunk_rows=1)
    equal(model, everything())


@pytest.mark.slow
@pytest.mark.sockets
def test_agents_train_by_a_codec_and_a_kind_of_ones_own() -> None:
    model = fresh()
    with DeepDist(model, codec=TopK(2), peers=2, progress=False) as dd:
        report = dd.train(PARTITIONS, gradient, descent, chunk_rows=2, epochs=2)
        assert (report.missing, report.consensus_distance) == ((), 0.0)
    equal(model, everything(2))


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.parametrize("peers", [1, 2])
def test_a_worker_that_is_killed_loses_nothing_that_its_codec_had_left(peers: int, tmp_path: Path) -> None:
    """Neither of this partition nor of those before: what was left of an update is with the agent as soon as that."""

    def killed(model: Any, rows: Iterator[tuple[int, int]]) -> Any:
        rows = list(rows)  # type: ignore[assignment]
        if (2, 2) in rows:
            try:
                (tmp_path / "killed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return gradient(model, rows)

    model = fresh()
    with DeepDist(model, codec=TopK(1), peers=peers, progress=False) as dd:
        report = dd.train(PARTITIONS, killed, chunk_rows=1, epochs=2)
    assert (tmp_path / "killed").exists()
    assert report.updates_lost == 0
    equal(model, everything(2))


@pytest.mark.slow
@pytest.mark.sockets
def test_what_was_left_before_an_error_stays() -> None:
    def fails(model: Any, rows: Iterator[tuple[int, int]]) -> Any:
        rows = list(rows)  # type: ignore[assignment]
        if (1, 2) in rows:
            raise ZeroDivisionError("of the user")
        return gradient(model, rows)

    model = fresh()
    with DeepDist(model, codec=TopK(1), peers=1, progress=False) as dd:
        with pytest.raises(ZeroDivisionError):
            dd.train(PARTITIONS[:2], fails, chunk_rows=1)
        dd.train(PARTITIONS[2:], gradient, chunk_rows=1)
    steps = [
        step(*row) for row in [*PARTITIONS[0], *PARTITIONS[1][:2], *(row for rows in PARTITIONS[2:] for row in rows)]
    ]
    equal(model, {name: sum(each[name] for each in steps) for name in MODEL})


def two_places(model: Any, rows: Iterator[int]) -> Any:
    change = np.zeros_like(model["w"])
    for row in rows:
        change[row, [0, 499]] += 1
    return {"w": change}


@pytest.mark.parametrize(
    "where",
    [
        {"engine": SimulatedCluster(peers=2, seed=3)},
        pytest.param({"peers": 2}, marks=[pytest.mark.slow, pytest.mark.sockets]),
    ],
    ids=["simulated", "agents"],
)
def test_an_update_takes_the_bytes_of_what_the_codec_chose(where: Any) -> None:
    model = {"w": np.zeros((200, 500))}
    with DeepDist(model, codec=TopK(2), progress=False, **where) as dd:
        report = dd.train([[row] for row in range(10)], two_places, descent)
    assert model["w"].sum() == 20.0
    assert report.updates == 10  # and none for what was left, which is nothing
    (observer,) = [peer for peer in report.peers if peer.role == "observer"]  # to which everything goes
    assert 10 * 4 * 8 < observer.bytes_in < 0.1 * model["w"].nbytes


def test_kinds_come_to_an_agent_as_their_code() -> None:
    """It does not have to find this file."""
    program = (
        "import sys; from p2p.codec import unpacked; kind = unpacked(sys.stdin.read())[0]; "
        "assert not any('test_update_kind' in name for name in sys.modules), sys.modules; "
        "print(kind, kind.suffixes, kind.total({}, {}))"
    )
    sent = packed((Singles(7),))
    done = subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("Singles(sum_max=7) ('[places]', '[numbers]') {}\n", "")
    assert __name__ not in cloudpickle.list_registry_pickle_by_value()


def test_what_is_no_codec_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(UsageError, match=r"codec is a type without kinds, encode, expected what p2p\.Codec says"):
        DeepDist(fresh(), codec=int)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"codec is the class TopK, expected an object of it: TopK\(\)"):
        DeepDist(fresh(), codec=TopK)  # type: ignore[arg-type]
    for kinds, words in (
        (Singles(), "codec.kinds is a Singles, expected a tuple"),
        ((3,), "a kind of the codec's is a int without suffixes, in_blocks, .*expected what p2p.Kind says"),
        ((Dense(),), "read in_blocks, .*expected False"),
        ((Singles(), Singles(3)), "both have arrays that end in"),
    ):
        codec = TopK(2)
        object.__setattr__(codec, "kinds", kinds)
        with pytest.raises(UsageError, match=words):
            DeepDist(fresh(), codec=codec)
    with pytest.raises(UsageError, match=r"'w\[places\]', expected one without .*\[places\], "):
        DeepDist({"w[places]": np.zeros(1)}, codec=TopK(2))
    DeepDist({"w[places]": np.zeros(1)})
    for how in ({"discipline": "mix"}, {"mode": "master"}):
        with pytest.raises(UsageError, match=r"a codec with .*expected None"):
            DeepDist(fresh(), codec=TopK(2), **how)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Wrong(TopK):
    """What it makes does not fit."""

    what: str = ""

    def encode(self, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        update, left = super().encode(delta, residual)
        match self.what:
            case "places":
                return {**update, "w" + PLACES: update["w" + PLACES] + 100}, left
            case "shape":
                return update, {**left, "w": left["w"][1:]}
            case "loss":
                return update, {**left, "w": np.zeros_like(left["w"])}
            case "memory":
                return update, {**left, "w": delta["w"]}
            case "one":
                return update  # type: ignore[return-value]
        left["w"][0] = np.nan
        return update, left


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("places", r"what Wrong made of an update does not fit: .*places of 'w'.* below 60"),
        ("shape", r"the residual that Wrong made does not fit: 'w': shape \(19, 3\), expected \(20, 3\)"),
        ("number", r"the residual that Wrong made does not fit: 'w': 3 of 60 numbers are NaN or infinite"),
        ("loss", r"Wrong\.encode loses something of 'w': its update and its residual do not add up"),
        ("memory", r"the residual that Wrong made of 'w' is in the delta's memory, expected a copy"),
        ("one", r"Wrong\.encode returned \{.*, expected \(update, new residual\), two dicts of arrays"),
    ],
)
def test_a_codec_that_makes_what_cannot_be_added_is_told_so(what: str, words: str) -> None:
    engine, codec = SimulatedCluster(peers=2, seed=1), Wrong(2, what)
    with DeepDist(fresh(), codec=codec, engine=engine, progress=False) as dd, pytest.raises(UsageError, match=words):
        dd.train(PARTITIONS, gradient, descent)
