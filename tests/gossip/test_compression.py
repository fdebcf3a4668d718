"""Codecs: what they promise of one array, and that a residual loses nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gossip.compression import (
    Chain,
    Codec,
    Encoded,
    Float16,
    Int8,
    RandomK,
    Rows,
    Sign,
    Threshold,
    TopK,
    with_feedback,
)
from gossip.errors import MismatchError, UsageError

FLAT: list[Codec] = [
    Float16(),
    Int8(),
    TopK(0.1),
    RandomK(0.25),
    Threshold(0.25),
    Sign(),
    Chain(TopK(0.5), Int8()),
    Chain(TopK(0.5), Float16()),
    Chain(TopK(0.5), Sign()),
    Chain(RandomK(0.5), TopK(0.5), Float16()),
]
EVERY: list[Codec] = [*FLAT, Rows(), Chain(Rows(), Int8()), Chain(Rows(), TopK(0.5), Float16())]
numbers = arrays.arrays(
    st.sampled_from([np.float32, np.float64]),
    st.tuples(st.integers(1, 6), st.integers(1, 9)),
    elements=st.floats(-1e4, 1e4, width=32),
)


def chance() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("codec", EVERY, ids=repr)
@settings(max_examples=30)
@given(x=numbers)
def test_decoding_gives_an_array_of_the_same_kind_and_no_further_than_promised(codec: Codec, x: np.ndarray) -> None:
    encoded = codec.encode(x, chance())
    decoded = codec.decode(encoded)
    assert decoded.shape == x.shape
    assert decoded.dtype == x.dtype
    assert encoded.nbytes == sum(len(part.tobytes()) for part in encoded.parts.values())
    if not isinstance(codec, RandomK) and not (isinstance(codec, Chain) and isinstance(codec.codecs[0], RandomK)):
        square = float(np.sum(x.astype(np.float64) ** 2))
        error = float(np.sum((x.astype(np.float64) - decoded) ** 2))
        # A threshold promises nothing of the kind; its contraction is 0, and a number below it is as far as it was.
        assert isinstance(codec, Threshold) or error <= (1 - codec.contraction(x.size)) * square * (1 + 1e-6) + 1e-30


def test_random_k_contracts_by_its_share_on_average() -> None:
    x = chance().standard_normal(40)
    codec, draws = RandomK(0.25), np.random.default_rng(1)
    errors = [np.sum((x - codec.decode(codec.encode(x, draws))) ** 2) / np.sum(x**2) for _ in range(2_000)]
    assert abs(np.mean(errors) - 0.75) < 4 * np.std(errors) / np.sqrt(2_000)


@pytest.mark.parametrize("codec", FLAT, ids=repr)
@settings(max_examples=30)
@given(x=numbers)
def test_all_rows_at_once_are_what_they_are_one_by_one(codec: Codec, x: np.ndarray) -> None:
    one, draws = [], chance()
    for row in x:
        one.append(codec.encode(row, draws))
    decoded, nbytes = codec.rows(x, chance())
    np.testing.assert_array_equal(decoded, [codec.decode(each) for each in one])
    assert decoded.dtype == x.dtype
    assert nbytes.tolist() == [each.nbytes for each in one]


@pytest.mark.parametrize("codec", FLAT, ids=repr)
def test_what_was_sent_and_the_residual_are_what_was_produced_to_the_last_bit(codec: Codec) -> None:
    draws = np.random.default_rng(3)
    residual, sent, produced = np.zeros(64), np.zeros(64), np.zeros(64)
    for _ in range(300):
        new = draws.integers(-1024, 1024, 64) / 1024.0
        _, out, residual = with_feedback(codec, residual, new, draws)
        sent, produced = sent + out, produced + new
        assert np.array_equal(sent + residual, produced)


@pytest.mark.parametrize("codec", [Rows(), Chain(Rows(), Float16())], ids=repr)
def test_rows_that_nobody_touched_cost_nothing(codec: Codec) -> None:
    x = np.zeros((1_000, 8), np.float32)
    x[[3, 500]] = 1.5
    encoded = codec.encode(x, chance())
    np.testing.assert_array_equal(codec.decode(encoded), x)
    assert encoded.nbytes <= 2 * 2 + 2 * 8 * 4 + 4


def test_bytes_are_what_the_codec_is_for() -> None:
    x = chance().standard_normal(1_000).astype(np.float32)
    sizes = {repr(codec): codec.encode(x, chance()).nbytes for codec in FLAT}
    assert sizes["Float16()"] == 2_004
    assert sizes["Int8()"] == 1_004
    assert sizes["TopK(0.1)"] == 100 * 6
    assert sizes["Sign()"] == 129
    assert sizes["Chain(TopK(0.5), Int8())"] == 500 * 3 + 4


def test_float16_neither_overflows_nor_loses_what_is_small() -> None:
    for scale in (1e-20, 1.0, 1e20):
        x = np.array([1.0, -3e-5, 0.7]) * scale
        np.testing.assert_allclose(Float16().decode(Float16().encode(x, chance())), x, rtol=2.0**-11)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TopK(0.0), "fraction 0.0, expected more than 0"),
        (lambda: RandomK(1.5), "fraction 1.5"),
        (lambda: Threshold(0.0), "threshold 0.0"),
        (lambda: Chain(TopK(0.1)), "at least two"),
        (lambda: Chain(Int8(), TopK(0.1)), "Int8\\(\\) in a Chain before another codec"),
        (lambda: Chain(TopK(0.1), Rows()), "put it first"),
        (lambda: Rows().encode(np.zeros(3), chance()), "shape \\(3,\\), expected \\(rows, columns\\)"),
        (lambda: TopK(0.5).encode(np.array([1.0, np.nan]), chance()), "1 of 2 numbers are NaN"),
        (lambda: Int8().encode(np.array([1, 2]), chance()), "expected floats"),
    ],
)
def test_what_cannot_be_is_refused(make: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("codec", FLAT, ids=repr)
def test_parts_that_do_not_fit_are_refused(codec: Codec) -> None:
    x = chance().standard_normal(32)
    encoded = codec.encode(x, chance())
    for name in encoded.parts:
        rest = {other: part for other, part in encoded.parts.items() if other != name}
        with pytest.raises(MismatchError):
            codec.decode(Encoded(rest, encoded.shape, encoded.dtype))
    if "index" in encoded.parts:
        beyond = {**encoded.parts, "index": encoded.parts["index"] + np.uint16(100)}
        with pytest.raises(MismatchError, match="beyond"):
            codec.decode(Encoded(beyond, encoded.shape, encoded.dtype))


def test_codecs_print_as_one_writes_them() -> None:
    for text in ("Chain(TopK(0.01), Int8())", "Float16()", "Threshold(0.25)", "Rows()"):
        assert repr(eval(text)) == text


# ---- against plain loops ---------------------------------------------------------------------------------------


def power_of_two(x: list[float], top: float) -> float:
    """The smallest of which `top` reach the largest number."""
    largest = max(map(abs, x))
    exponent = -126  # the smallest that float32 holds with all its bits
    while top * 2.0**exponent < largest:
        exponent += 1
    return 2.0**exponent if largest else 1.0


def plain(codec: Codec, x: list[float]) -> list[float]:
    """What the others make of `x`, number by number as the codec's docstring says."""
    match codec:
        case Float16():
            scale = power_of_two(x, 2.0**15)
            return [float(np.float16(each / scale)) * scale for each in x]
        case Int8():
            scale = power_of_two(x, 127.0)
            return [round(each / scale) * scale for each in x]
        case TopK():
            kept = sorted(x, key=abs, reverse=True)[: max(1, math.ceil(codec.fraction * len(x)))]
            return [each if each in kept else 0.0 for each in x]
        case Threshold():
            return [math.copysign(codec.threshold, each) if abs(each) >= codec.threshold else 0.0 for each in x]
        case Sign():
            mantissa, exponent = math.frexp(sum(map(abs, x)) / len(x))
            short = math.floor(mantissa * 2**11) / 2**11 * 2.0**exponent
            return [short if each >= 0 else -short for each in x]
        case _:
            first, *rest = codec.codecs  # type: ignore[attr-defined]
            values = iter([each for each in plain(first, x) if each])
            small = iter(plain(Chain(*rest) if len(rest) > 1 else rest[0], list(values)))
            return [next(small) if each else 0.0 for each in plain(first, x)]


@pytest.mark.parametrize(
    "codec",
    [
        *(Float16(), Int8(), TopK(0.3), TopK(1.0), Threshold(0.25), Sign()),
        *(Chain(TopK(0.5), Int8()), Chain(TopK(0.5), Float16()), Chain(TopK(0.6), TopK(0.6), Sign())),
    ],
    ids=repr,
)
@given(
    magnitudes=st.lists(st.integers(1, 1 << 14), min_size=1, max_size=12, unique=True),
    negative=st.integers(0, (1 << 12) - 1),
    exponent=st.sampled_from([-100, -16, -10, 0, 90]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_a_codec_does_to_each_number_what_it_says(
    codec: Codec, magnitudes: list[int], negative: int, exponent: int, dtype: type[np.floating]
) -> None:
    x = [(-each if negative >> at & 1 else each) * 2.0**exponent for at, each in enumerate(magnitudes)]
    array = np.array(x, dtype)
    np.testing.assert_array_equal(codec.decode(codec.encode(array, chance())), plain(codec, x))
    np.testing.assert_array_equal(codec.rows(array[None, :], chance())[0], [plain(codec, x)])


@pytest.mark.parametrize("codec", FLAT, ids=repr)
def test_zeros_stay_zeros_and_nothing_is_nothing(codec: Codec) -> None:
    for shape in ((5,), (2, 3), (0,), (3, 0)):
        decoded = codec.decode(codec.encode(np.zeros(shape, np.float32), chance()))
        assert (decoded.shape, decoded.dtype) == (shape, np.float32)
        assert not decoded.any()


@pytest.mark.parametrize("codec", [Float16(), Int8()], ids=repr)
def test_the_smallest_and_the_largest_numbers_have_a_scale_too(codec: Codec) -> None:
    tiny, top = np.array([3e-45, 1e-45], np.float32), np.array([3e38, -1e30], np.float32)
    assert codec.decode(codec.encode(tiny, chance())).max() <= tiny.max()
    np.testing.assert_allclose(codec.decode(codec.encode(top, chance()))[0], top[0], rtol=0.01)
    limit = 2.0**127 * (2.0**15 if isinstance(codec, Float16) else 127.0)
    edge = np.array([limit, 1.0])
    assert codec.decode(codec.encode(edge, chance())).tolist() == [limit, 0.0]
    with pytest.raises(UsageError, match="expected at most"):
        codec.encode(edge * 1.001, chance())
    for x in (np.array([1e60, 1.0]), np.array([[0.0, 1.0], [-1e60, 1.0]])):
        with pytest.raises(UsageError, match=r"a number of 1e\+60 to compress"):
            codec.encode(x, chance())
    with pytest.raises(UsageError, match=r"a number of 1e\+60"):
        codec.rows(np.array([[0.0, 1.0], [-1e60, 1.0]]), chance())


def test_random_k_sends_any_places_as_often_as_others_and_their_numbers_as_they_are() -> None:
    codec, draws, seen = RandomK(0.3), np.random.default_rng(0), np.zeros(10)
    x = np.arange(1.0, 11.0)
    for _ in range(1_000):
        encoded = codec.encode(x, draws)
        index = encoded.parts["index"]
        assert len(index) == 3
        assert (np.diff(index.astype(int)) > 0).all(), "ascending, each once"
        np.testing.assert_array_equal(encoded.parts["values"], x[index])
        seen[index] += 1
    assert np.abs(seen / 1_000 - 0.3).max() < 4 * (0.3 * 0.7 / 1_000) ** 0.5
    assert len({codec.rows(np.ones((1, 10)), draws)[0].tobytes() for _ in range(20)}) > 5
    np.testing.assert_array_equal(RandomK(1.0).rows(x[None, :], draws)[0], [x])
    assert RandomK(0.3).count(10) == 3
    assert [TopK(0.01).count(size) for size in (1, 99, 101, 0)] == [1, 1, 2, 0]


@pytest.mark.parametrize(
    "codec", [TopK(0.001), RandomK(0.001), Threshold(2.0), Chain(TopK(0.001), Float16())], ids=repr
)
def test_places_take_two_bytes_as_long_as_they_can(codec: Codec) -> None:
    for size, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)):
        x = np.zeros(size, np.float32)
        x[-1] = 3.0
        encoded = codec.encode(x, chance())
        assert encoded.parts["index"].dtype == dtype
        if not isinstance(codec, RandomK):
            np.testing.assert_array_equal(codec.decode(encoded)[-1], 2.0 if isinstance(codec, Threshold) else 3.0)
        assert codec.rows(x[None, :], chance())[1].tolist() == [encoded.nbytes]
    rows = Rows().encode(np.ones(((1 << 16) + 1, 1), np.float32), chance())
    assert rows.parts["index"].dtype == np.uint32


@pytest.mark.parametrize("codec", FLAT, ids=repr)
@pytest.mark.parametrize("size", [20, 1_000])
def test_what_is_lost_of_normal_numbers_is_what_is_typical(codec: Codec, size: int) -> None:
    x = np.random.default_rng(0).standard_normal((200, size))
    lost = np.sum((x - codec.rows(x, chance())[0]) ** 2) / np.sum(x**2)
    typical = 1.0 - codec.typical(size)
    assert codec.contraction(size) <= codec.typical(size) <= 1.0
    if isinstance(codec, Sign):
        assert lost == pytest.approx(typical, rel=0.1)
    elif isinstance(codec, Int8):  # steps are powers of two, so up to twice as large as they need to be
        assert lost <= typical <= 16 * lost
    elif not isinstance(codec, Threshold):
        assert lost <= 1.02 * typical


def test_the_promises_are_those_of_the_numbers_that_are_sent() -> None:
    assert TopK(0.25).contraction(10) == 3 / 10
    assert Chain(TopK(0.5), RandomK(0.5), Sign()).contraction(12) == pytest.approx(
        (6 / 12) * (3 / 6) * Sign().contraction(3)
    )
    assert Chain(TopK(0.5), RandomK(0.5), Sign()).typical(12) == pytest.approx((6 / 12) * (3 / 6) * 2 / math.pi)
    assert Chain(Rows(), Int8()).typical(100) == Int8().typical(100)
    assert Chain(Rows(), Int8()).contraction(100) == Int8().contraction(100)
    assert Rows().typical(7) == Rows().contraction(7) == 1.0
    assert Int8().contraction(10**6) == 0.0, "so many numbers may all be half a step off"
    assert Int8().contraction(100) == pytest.approx(1 - 100 / (2 * 63) ** 2)
    assert 1 - 2.0**-21 < Float16().contraction(100) < 1.0
    assert Float16().contraction(1 << 80) == 0.0
    one = np.array([0.75 + 2.0**-12])  # what an 11-bit scale leaves of one number, at its worst
    left = float(np.sum((one - Sign().decode(Sign().encode(one, chance()))) ** 2) / np.sum(one**2))
    assert left <= 1 - Sign().contraction(1) < 2.0**-19
    assert Sign().contraction(4) == pytest.approx(Sign().contraction(1) / 4)


WHOLE = np.linspace(-1.0, 1.0, 20).reshape(4, 5)


@pytest.mark.parametrize("codec", EVERY, ids=repr)
def test_a_part_with_more_or_fewer_numbers_than_expected_is_refused(codec: Codec) -> None:
    encoded = codec.encode(WHOLE, chance())
    for name, part in encoded.parts.items():
        for other in () if name.endswith("index") else (part[:-1], np.concatenate([part, part[-1:]])):
            with pytest.raises(
                MismatchError, match=r"part '(values|signs|scale)' holds [0-9]+ numbers, expected [0-9]+"
            ):
                codec.decode(Encoded({**encoded.parts, name: other}, encoded.shape, encoded.dtype))
    missing = next(iter(encoded.parts))
    rest = {name: part for name, part in encoded.parts.items() if name != missing}
    with pytest.raises(MismatchError, match=f"part '{missing}' is missing, expected it beside \\['.*'\\]"):
        codec.decode(Encoded(rest, encoded.shape, encoded.dtype))


@pytest.mark.parametrize("codec", [TopK(0.1), Threshold(0.5), Rows(), Chain(TopK(0.5), Int8())], ids=repr)
def test_places_must_be_whole_numbers_within_the_array(codec: Codec) -> None:
    encoded = codec.encode(WHOLE, chance())
    size = 4 if isinstance(codec, Rows) else 20
    index = encoded.parts["index"]
    for wrong in (index.astype(np.int16), index.astype(np.float64), index * 0 + size):
        with pytest.raises(MismatchError, match=f"part 'index' of {wrong.dtype} reaches beyond {size}"):
            codec.decode(Encoded({**encoded.parts, "index": wrong}, encoded.shape, encoded.dtype))
    codec.decode(Encoded({**encoded.parts, "index": np.full_like(index, size - 1)}, encoded.shape, encoded.dtype))


def test_refusals_say_what_was_wrong() -> None:
    with pytest.raises(UsageError, match="2 of 6 numbers are NaN or infinite"):
        Rows().encode(np.array([[1.0, np.nan, 2], [np.inf, 3, 4]]), chance())
    with pytest.raises(UsageError, match="dtype int64 to compress, expected floats"):
        Sign().rows(np.ones((2, 2), np.int64), chance())
    for codec in (Float16(), Int8(), TopK(0.5), Sign(), Threshold(1.0)):
        with pytest.raises(UsageError, match="1 of 2 numbers"):
            codec.rows(np.array([[1.0, np.nan]]), chance())
    for wrong in (math.inf, math.nan):
        with pytest.raises(UsageError, match=f"threshold={wrong}, expected a finite number"):
            Threshold(wrong)
    with pytest.raises(UsageError, match=r"Chain\(TopK\(0.5\), Int8\(\)\) in a Chain behind another codec"):
        Chain(TopK(0.1), Chain(TopK(0.5), Int8()))
    with pytest.raises(UsageError, match=r"TopK of the fraction 1.0001, expected more than 0, at most 1"):
        TopK(1.0001)
    with pytest.raises(UsageError, match="Chain of 1 codecs, expected at least two"):
        Chain(Int8())


def test_what_is_sent_is_a_mapping_of_flat_parts_by_these_names() -> None:
    x = chance().standard_normal((4, 6)).astype(np.float32)
    chain = Chain(RandomK(0.5), TopK(0.5), Float16())
    parts = chain.encode(x, chance()).parts
    assert {name: (part.dtype.str, part.shape) for name, part in parts.items()} == {
        "index": ("<u2", (12,)),
        "values.index": ("<u2", (6,)),
        "values.values.values": ("<f2", (6,)),
        "values.values.scale": ("<f4", (1,)),
    }
    for codec, names in ((Sign(), {"signs", "scale"}), (Int8(), {"values", "scale"}), (Rows(), {"index", "values"})):
        encoded = codec.encode(x, chance())
        assert set(encoded.parts) == names
        assert all(part.ndim == 1 for part in encoded.parts.values())
        assert (encoded.shape, encoded.dtype) == ((4, 6), np.float32)


def test_a_threshold_is_reached_by_what_is_as_large_and_promises_nothing() -> None:
    codec = Threshold(0.25)
    x = np.array([0.25, -0.25, 0.2499, 3.0])
    assert codec.decode(codec.encode(x, chance())).tolist() == [0.25, -0.25, 0.0, 0.25]
    assert codec.contraction(5) == codec.typical(5) == 0.0


def test_the_mean_of_many_short_floats_is_taken_in_long_ones() -> None:
    x = np.full(1 << 20, np.float16(0.1))  # their sum is beyond what 16 bits hold
    for decoded in (Sign().decode(Sign().encode(x, chance())), Sign().rows(x[None, :], chance())[0]):
        assert (decoded == np.float16(0.1)).all()


def test_every_codec_of_a_chain_draws_from_the_same_chance() -> None:
    x = chance().standard_normal(40)
    index = Chain(TopK(1.0), RandomK(0.5)).encode(x, chance()).parts["values.index"]
    np.testing.assert_array_equal(index, RandomK(0.5).encode(x, chance()).parts["index"])
    assert Chain(TopK(0.5), Int8()).typical(40) == 0.5 * Int8().typical(20)
