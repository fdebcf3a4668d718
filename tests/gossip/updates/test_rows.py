"""Updates of rows against plain arrays: the same sums, exactly, however they are kept and cut."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gossip.arrays import Layout, Packed
from gossip.errors import MismatchError
from gossip.events import Computed, Negative
from gossip.flat import Flat
from gossip.messages import PeerId, Range
from gossip.sim.simulator import Network, Simulation
from gossip.updates import check, kind_of, read_whole
from gossip.updates import rows as of_rows
from gossip.updates.rows import EXPONENT_MAX, INTEGERS, Rows, rows_of
from gossip.wire import decode, encode
from gossip.zmq.segments import Segments

MODEL = {"w": np.zeros((20, 3), np.float32), "v": np.zeros((7, 2), np.float64), "count": np.zeros(1, np.float64)}
LAYOUT = Layout.of(MODEL)
ROWS = Rows()
KINDS = ("rows", "integers", "whole", "nothing")


def part(name: str, kind: str, chance: np.random.Generator) -> dict[str, Any]:
    """Something for one array, in numbers whose sums are exact."""
    shape, dtype = MODEL[name].shape, MODEL[name].dtype
    if kind == "nothing":
        return {}
    if kind == "whole" or len(shape) == 1:
        return {name: chance.integers(-50, 50, shape).astype(dtype)}
    rows = np.sort(chance.choice(shape[0], chance.integers(0, shape[0] + 1), replace=False))
    if kind == "rows":
        return rows_of(name, rows, chance.integers(-50, 50, (len(rows), shape[1])).astype(dtype))
    values = chance.integers(-127, 128, (len(rows), shape[1])).astype(np.int8)
    return rows_of(name, rows, values, chance.integers(-4, 3, len(rows)).astype(np.int8))


def update(seed: int, kinds: tuple[str, str] = ("rows", "integers")) -> Packed:
    chance = np.random.default_rng(seed)
    arrays = {**part("w", kinds[0], chance), **part("v", kinds[1], chance), **part("count", "whole", chance)}
    return Packed.of(arrays)


def dense(*updates: Packed) -> dict[str, Any]:
    """The oracle: add each number by itself."""
    result = {name: array.astype(np.float64) for name, array in MODEL.items()}
    for each in updates:
        arrays = each.arrays()
        for name, target in result.items():
            if name in arrays:
                target += arrays[name]
            elif name + "[rows]" in arrays:
                exponents = arrays.get(name + "[exponents]")
                for index, row in enumerate(arrays[name + "[rows]"]):
                    unit = 1.0 if exponents is None else 2.0 ** int(exponents[index])
                    target[row] += arrays[name + "[values]"][index] * unit
    return result


def added(*payloads: Any) -> dict[str, Any]:
    model = Packed.of(MODEL)
    for payload in payloads:
        whole = read_whole(payload)
        kind_of(whole.layout).add(LAYOUT, model.buffer, whole)
    return model.arrays()


def equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


updates = st.tuples(st.integers(0, 10_000), st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS))).map(
    lambda drawn: update(*drawn)
)


@given(updates)
def test_an_update_of_rows_is_flat_as_the_whole_arrays_are(one: Packed) -> None:
    assume(ROWS.claims(one.layout))
    whole = Packed.of({name: array.astype(MODEL[name].dtype) for name, array in dense(one).items()})
    np.testing.assert_array_equal(Flat(LAYOUT).flatten(one), Flat(LAYOUT).flatten(whole))


@given(given_updates=st.lists(updates, max_size=4))
def test_adding_rows_is_adding_arrays_that_are_zero_elsewhere(given_updates: list[Packed]) -> None:
    equal(
        added(*[each for each in given_updates if ROWS.claims(each.layout)]),
        dense(*[each for each in given_updates if ROWS.claims(each.layout)]),
    )


@given(left=updates, right=updates)
def test_a_total_is_exactly_the_sum(left: Packed, right: Packed) -> None:
    total = Packed.of(ROWS.total(left.arrays(), right.arrays()))
    equal(dense(total), dense(left, right))
    for name, array in total.arrays().items():
        if name.endswith("[rows]"):
            assert np.all(np.diff(array) > 0)


@given(one=updates)
def test_an_update_and_its_negative_cancel(one: Packed) -> None:
    equal(dense(one, read_whole(ROWS.negative(one))), dense())


def test_rows_of_one_update_only_keep_their_numbers_and_units() -> None:
    low = [np.iinfo(dtype).min for dtype in INTEGERS]
    for dtype, number in zip(INTEGERS, low, strict=True):
        one = rows_of("w", np.array([2, 5]), np.array([[number], [1]], dtype), np.array([-3, 4], np.int8))
        other = rows_of("w", np.array([5, 9]), np.array([[2], [3]], np.int8), np.array([3, 7], np.int8))
        for left, right in ((one, other), (other, one)):
            total = ROWS.total(left, right)
            assert total["w[rows]"].tolist() == [2, 5, 9]
            assert total["w[values]"].tolist() == [[number], [2 + 2], [3]]
            assert total["w[exponents]"].tolist() == [-3, 3, 7]
            assert total["w[values]"].dtype == dtype


def test_integers_that_do_not_fit_eight_bits_take_sixteen_or_more() -> None:
    values = np.full((1, 3), 127, np.int8)
    one = rows_of("w", np.array([4]), values, np.array([0], np.int8))
    finer = rows_of("w", np.array([4]), values, np.array([-20], np.int8))
    assert ROWS.total(one, one)["w[values]"].dtype == np.int16
    total = ROWS.total(one, finer)
    assert total["w[values]"].dtype == np.int32
    assert total["w[values]"][0, 0] * 2.0**-20 == 127 + 127 * 2.0**-20


numbers_of_any_size = st.tuples(
    st.sampled_from(INTEGERS).flatmap(
        lambda dtype: st.tuples(st.just(dtype), st.integers(np.iinfo(dtype).min, np.iinfo(dtype).max))
    ),
    st.integers(-EXPONENT_MAX, EXPONENT_MAX - 2),
)


@given(numbers_of_any_size, numbers_of_any_size)
@example((("|i1", 1), 20), (("|i1", 1), -20))
@example((("<i4", 1 << 30), 32), (("|i1", 1), 0))
@example((("|i1", 0), 40), (("|i1", 1), -40))
@example((("|i1", 1), 40), (("|i1", 1), -40))
@example((("<i4", 1 << 30), 62), (("|i1", -1), -62))
def test_a_sum_is_right_however_far_apart_its_units_are(left: Any, right: Any) -> None:
    exact, parts = Fraction(0), []
    for (dtype, number), exponent in (left, right):
        exact += Fraction(number) * Fraction(2) ** exponent
        parts.append(rows_of("w", np.array([2]), np.array([[number]], dtype), np.array([exponent], np.int8)))
    total = ROWS.total(*parts)
    unit = Fraction(2) ** int(total["w[exponents]"][0])
    assert int(total["w[values]"][0, 0]) == exact // unit
    if exact % unit:  # only what 31 bits do not hold is lost
        assert abs(exact) > 2**28 * unit
    assert total["w[values]"].dtype.str in INTEGERS


def test_each_row_of_a_sum_has_the_unit_that_it_needs() -> None:
    rows = np.array([2, 5])
    large = np.array([[1 << 30, -1], [3, 1 << 29]], np.int32), np.array([33, 0], np.int8)
    small = np.array([[5, -7], [1, 2]], np.int8), np.array([0, -1], np.int8)
    total = ROWS.total(rows_of("w", rows, *large), rows_of("w", rows, *small))
    for row in range(2):
        unit = Fraction(2) ** int(total["w[exponents]"][row])
        for column in range(2):
            exact = sum(int(each[row, column]) * Fraction(2) ** int(units[row]) for each, units in (large, small))
            error = abs(int(total["w[values]"][row, column]) * unit - exact)
            assert error == 0 if row == 1 else error < unit


def test_a_sum_is_in_the_narrowest_integers_that_hold_it() -> None:
    def one(number: int) -> dict[str, Any]:
        return rows_of("w", np.array([2]), np.array([[number]], np.int8), np.array([0], np.int8))

    for left, right, dtype in ((126, 1, "|i1"), (127, 1, "<i2"), (-127, -1, "|i1"), (-128, -1, "<i2")):
        assert ROWS.total(one(left), one(right))["w[values]"].dtype == dtype


def test_an_array_of_which_no_row_is_there_hides_no_other() -> None:
    none = rows_of("v", np.zeros(0, np.int32), np.zeros((0, 2)))
    each = Packed.of(none | rows_of("w", np.array([1]), np.ones((1, 3), np.float32)))
    block = bytearray(LAYOUT.nbytes)
    ROWS.add_within(LAYOUT, block, 0, each)
    assert LAYOUT.views(block)["w"].sum() == 3


@pytest.mark.parametrize(("dtype", "wider"), [("|i1", "<i2"), ("<i2", "<i4"), ("<i4", "<i4")])
def test_minus_the_lowest_number_takes_more_bits(dtype: str, wider: str) -> None:
    lowest = int(np.iinfo(dtype).min)
    one = rows_of("w", np.array([2]), np.array([[lowest, 1]], dtype), np.array([0], np.int8))
    negative = read_whole(ROWS.negative(Packed.of(one))).arrays()
    assert negative["w[values]"].tolist() == [[min(-lowest, np.iinfo("<i4").max), -1]]  # more than 32 there are not
    assert negative["w[values]"].dtype == wider


def test_an_update_of_whole_arrays_is_added_whole() -> None:
    each = Packed.of(
        {name: np.arange(array.size).reshape(array.shape).astype(array.dtype) for name, array in MODEL.items()}
    )
    equal(added(each, each), {name: 2 * array for name, array in each.arrays().items()})


@pytest.mark.parametrize("rows", [0, 1, 7, 20])
def test_rows_are_added_piece_by_piece(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for nbytes in (1, 24, 25, 1000):
        monkeypatch.setattr(of_rows, "PIECE_BYTES", nbytes)
        numbers = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
        plain = Packed.of(rows_of("w", np.arange(20)[20 - rows :], numbers))
        coarse = Packed.of(rows_of("w", np.arange(rows), numbers.astype(np.int8), np.arange(rows, dtype=np.int8) % 9))
        equal(added(plain, coarse), dense(plain, coarse))


def test_what_is_added_is_rounded_to_the_model_s_numbers_first() -> None:
    """Once, as where it is added piece by piece: 32 bits hold no float32."""
    number = (1 << 24) + 1
    each = Packed.of(rows_of("w", np.array([4]), np.full((1, 3), number, np.int32), np.array([0], np.int8)))
    model = Packed.of({**MODEL, "w": np.ones((20, 3), np.float32)})
    block = bytearray(model.buffer)
    ROWS.add(LAYOUT, model.buffer, each)
    ROWS.add_within(LAYOUT, block, 0, each)
    assert model.arrays()["w"][4].tolist() == [float(1 << 24)] * 3
    assert bytes(block) == bytes(model.buffer)
    ones = Packed.of(rows_of("w", np.array([4]), np.ones((1, 3), np.float32)))
    for left, right in ((each, ones), (ones, each)):
        total = ROWS.total(left.arrays(), right.arrays())
        assert total["w[values]"].dtype == np.float32
        assert total["w[values]"].tolist() == [[float(1 << 24)] * 3]


def test_minus_an_update_has_the_same_arrays() -> None:
    for kinds in (("rows", "integers"), ("integers", "whole"), ("whole", "rows")):
        one = update(5, kinds)
        assert ROWS.negative(one).layout == one.layout


def test_a_row_of_several_dimensions_and_one_without_are_summed_like_others() -> None:
    """Each number by itself: rows of matrices, and rows that are numbers."""
    chance = np.random.default_rng(3)
    for shape in ((), (2, 3)):
        parts = []
        for rows in ([0, 2, 3], [2, 3, 5]):
            values = chance.integers(-100, 100, (3, *shape)).astype(np.int8)
            parts.append(rows_of("w", np.array(rows), values, np.array([20, -2, 3], np.int8)))
        total = ROWS.total(*parts)
        got = np.ldexp(total["w[values]"].astype(float), total["w[exponents]"].reshape(-1, *[1] * len(shape)))
        expected = np.zeros((6, *shape))
        for each in parts:
            expected[each["w[rows]"]] += np.ldexp(
                each["w[values]"].astype(float), each["w[exponents]"].reshape(-1, *[1] * len(shape))
            )
        np.testing.assert_array_equal(got, expected[[0, 2, 3, 5]])


def test_rows_without_numbers_are_summed_too() -> None:
    nothing = rows_of("w", np.array([1, 2]), np.zeros((2, 0), np.int8), np.zeros(2, np.int8))
    assert ROWS.total(nothing, nothing)["w[values]"].shape == (2, 0)


def test_few_rows_are_added_to_many_in_little_memory() -> None:
    many, few = (
        rows_of("w", np.arange(0, 60_000, 60_000 // count), np.ones((count, 100), np.int8), np.zeros(count, np.int8))
        for count in (60_000, 100)
    )
    tracemalloc.start()
    try:
        total = ROWS.total(many, few)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total["w[values]"][::600].tolist() == [[2] * 100] * 100
    assert peak < 2 * sum(array.nbytes for array in many.values())


@given(script=st.lists(st.tuples(st.booleans(), st.integers(0, 999)), min_size=1, max_size=6), cut=st.integers(0, 5))
@pytest.mark.parametrize("memory_bytes_max", [0, 1 << 20])
def test_the_log_sums_rows_whatever_it_is_cut_into(
    memory_bytes_max: int, script: list[tuple[bool, int]], cut: int
) -> None:
    """Also beside whole arrays: a lane may hold both."""
    segments = Segments(memory_bytes_max)
    sent: list[Packed] = []
    begins: list[int] = []
    for number, (begin, seed) in enumerate(script, 1):
        kinds = ("rows", "integers") if seed % 3 else ("whole", "rows")
        sent.append(update(seed, kinds))
        if begin or not begins:
            begins.append(number)
        segments.keep(begins[-1], number, sent[-1])
    first = begins[cut % len(begins)]
    expected = dense(*sent[first - 1 :])
    total = segments.sum(first, len(sent))
    assert total is not None
    equal(dense(read_whole(total)), expected)
    segments.fold(first, len(sent))
    folded = segments.sum(first, len(sent))
    assert folded is not None
    equal(dense(read_whole(folded)), expected)
    segments.retain(1, sent[0])
    equal(dense(read_whole(segments.resolve(Negative(1))), sent[0]), dense())
    segments.close()


def test_rows_pass_through_the_codec() -> None:
    one = update(3)
    message = decode(encode(Range(PeerId("a"), 1, 1, 1), one))
    assert isinstance(message, Range)
    assert message.payload is not None
    equal(dense(message.payload), dense(one))


def test_a_lossy_swarm_sums_rows_exactly() -> None:
    swarm = Simulation(4, MODEL, seed=11, network=Network(loss=0.2, duplication=0.2))
    chance, sent = random.Random(5), []
    for number in range(40):
        one = update(number)
        sent.append(one)
        who = PeerId(f"p{chance.randrange(4):03d}")
        swarm.at(chance.uniform(0, 3), lambda who=who, one=one: swarm.happen(who, Computed(one)))  # type: ignore[misc]
    swarm.run(3.0)
    swarm.run_until_drained()
    for me in swarm.peers:
        assert swarm.peers[me].peer.refused == 0
        equal(dict(swarm.arrays(me)), dense(*sent))


def rows_part(**changes: Any) -> dict[str, Any]:
    parts = {"w[rows]": np.array([1, 4], np.int32), "w[values]": np.ones((2, 3), np.float32)}
    parts.update({name.replace("w_", "w[") + "]": value for name, value in changes.items()})
    return {name: value for name, value in parts.items() if value is not None}


IN_INTEGERS = {"w_values": np.ones((2, 3), np.int8), "w_exponents": np.zeros(2, np.int8)}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x[rows]": np.zeros(1, np.int32), "x[values]": np.zeros((1, 3), np.float32)}, "not one of the model's"),
        ({**rows_part(), "w": MODEL["w"]}, "as a whole and as rows"),
        (rows_part(w_values=None), "comes without 'w.values.'"),
        ({**rows_part(), "v[values]": np.zeros((1, 2))}, "comes without 'v.rows.'"),
        (rows_part(w_rows=np.ones((2, 1), np.int32)), "expected the numbers of some rows"),
        (rows_part(w_rows=np.array([1, 4])), "expected the numbers of some rows"),
        (rows_part(w_rows=np.zeros(21, np.int32)), "expected the numbers of some rows"),
        (rows_part(w_values=np.ones((3, 3), np.float32)), "expected 2 rows"),
        (rows_part(w_values=np.ones((2, 3))), "expected dtype float32"),
        (rows_part(w_values=np.ones((2, 3), np.int8)), "expected dtype float32"),
        (rows_part(**{**IN_INTEGERS, "w_exponents": np.zeros(3, np.int8)}), "an int8 exponent each row"),
        (rows_part(**{**IN_INTEGERS, "w_values": np.ones((2, 3), np.float32)}), "expected integers"),
        ({**rows_part(), "count": np.zeros(2)}, "shape"),
    ],
)
def test_a_layout_that_does_not_fit_is_named(arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(MismatchError, match=words):
        ROWS.check_fit(Layout.of(arrays), LAYOUT)


def bad_rows(rows: list[int]) -> Callable[[], dict[str, Any]]:
    return lambda: rows_part(w_rows=np.array(rows, np.int32))


@pytest.mark.parametrize(
    "arrays",
    [
        bad_rows([4, 1]),
        bad_rows([4, 4]),
        bad_rows([-1, 4]),
        bad_rows([4, 20]),
        lambda: rows_part(w_rows=np.array([0, 5, 3], np.int32), w_values=np.ones((3, 3), np.float32)),
        lambda: rows_part(**{**IN_INTEGERS, "w_exponents": np.array([0, -65], np.int8)}),
        lambda: rows_part(**{**IN_INTEGERS, "w_exponents": np.array([0, 65], np.int8)}),
    ],
)
def test_numbers_that_cannot_be_added_are_refused(arrays: Callable[[], dict[str, Any]]) -> None:
    packed = Packed.of(arrays())
    ROWS.check_fit(packed.layout, LAYOUT)
    with pytest.raises(MismatchError):
        ROWS.check(packed, LAYOUT)


def test_integers_in_units_of_their_own_are_for_arrays_of_floats() -> None:
    for dtype, fits in ((np.float32, True), (np.float64, True), (np.int64, False)):
        model = Layout.of({"w": np.zeros((20, 3), dtype)})
        arrays = rows_part(**IN_INTEGERS)
        if fits:
            ROWS.check_fit(Layout.of(arrays), model)
        else:
            with pytest.raises(MismatchError, match="'w' comes in units of powers of two"):
                ROWS.check_fit(Layout.of(arrays), model)


def test_an_update_of_whole_arrays_fits_if_its_layout_does() -> None:
    check(Packed.of(MODEL), LAYOUT)
    with pytest.raises(MismatchError, match="'w' is missing"):
        check(Packed.of({"v": MODEL["v"], "count": MODEL["count"]}), LAYOUT)
    with pytest.raises(MismatchError, match="'count': shape"):
        ROWS.check_fit(Layout.of({**rows_part(), "count": np.zeros(2)}), LAYOUT)


def test_the_largest_and_the_smallest_units_are_good() -> None:
    arrays = rows_part(**{**IN_INTEGERS, "w_exponents": np.array([-64, 64], np.int8)})
    ROWS.check(Packed.of(arrays), LAYOUT)


def test_good_ones_are_not() -> None:
    for seed in range(20):
        one = update(seed)
        ROWS.check_fit(one.layout, LAYOUT)
        ROWS.check(one, LAYOUT)


def test_nothing_of_a_file_is_left(tmp_path: Path) -> None:
    segments = Segments(0, str(tmp_path))
    for number in range(1, 5):
        segments.keep(1, number, update(number))
    segments.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [16, 24, 64, 1000])
@pytest.mark.parametrize("kinds", [("rows", "integers"), ("integers", "whole"), ("nothing", "rows")])
def test_rows_are_added_to_a_part_of_the_model_as_to_all_of_it(step: int, kinds: tuple[str, str]) -> None:
    for seed in range(20):
        each = update(seed, kinds)
        whole, parts = bytearray(LAYOUT.nbytes), bytearray()
        ROWS.add(LAYOUT, whole, each)
        for start in range(0, LAYOUT.nbytes, step):
            block = bytearray(min(step, LAYOUT.nbytes - start))
            ROWS.add_within(LAYOUT, block, start, each)
            parts += block
        assert parts == whole


def test_rows_of_whole_numbers_stay_whole_where_they_are_added_to_a_part_of_the_model() -> None:
    model = Layout.of({"n": np.zeros((4, 2), np.int64)})
    large = (1 << 60) + 1  # float64 has no such number
    each = Packed.of(rows_of("n", np.array([1, 2]), np.full((2, 2), large)))
    blocks = bytearray(model.nbytes)
    for start in range(0, model.nbytes, 24):
        ROWS.add_within(model, memoryview(blocks)[start : start + 24], start, each)
    assert model.views(blocks)["n"].tolist() == [[0, 0], [large, large], [large, large], [0, 0]]


def test_it_tells_which_rows_it_changes_and_of_which_arrays_any() -> None:
    each = Packed.of(rows_of("w", np.array([2, 5]), np.ones((2, 3), np.int8), np.zeros(2, np.int8)) | {"v": MODEL["v"]})
    told = dict(ROWS.changed_rows(LAYOUT, each))
    assert told.keys() == {"v", "w"}
    assert told["v"] is None
    assert np.asarray(told["w"]).tolist() == [2, 5]
