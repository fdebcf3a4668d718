"""Codecs: what they promise of one array, and that a residual loses nothing."""

from __future__ import annotations

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
