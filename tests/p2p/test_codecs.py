"""Codecs of whole arrays: what travels and what is left are what there was, and a training loses nothing by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.arrays import Arrays, Layout, Packed
from gossip.errors import UsageError
from gossip.updates import KINDS, check, kind_of, merge
from gossip.updates.stamps import RowStamps
from p2p import DeepDist, SimulatedCluster
from p2p.codec import Codec
from p2p.codecs import NAMES, Float16, Int2, Int8, Light, TopK, named
from p2p.descents import SGD
from p2p.worker.residual import Residual

MODEL: dict[str, Any] = {
    "w": np.zeros((40, 30), np.float32),
    "conv": np.zeros((5, 3, 4, 4), np.float64),
    "long": np.zeros(300, np.float32),
    "b": np.zeros(10, np.float32),
    "n": np.zeros((40, 30), np.int64),
    "s": np.zeros(()),
}
LAYOUT = Layout.of(MODEL)
EACH = pytest.mark.parametrize("codec", [Float16(), Int8(), Int2(), Light(), TopK(), TopK(0.3)], ids=repr)
sizes = st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 300.0, 1e5, 1e20])


def drawn(seed: int, size: float = 1.0) -> dict[str, Any]:
    chance = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for name, array in MODEL.items():
        numbers = chance.normal(0, 1, array.shape) * chance.lognormal(0, 3, array.shape)
        arrays[name] = np.asarray(numbers * (size if array.dtype.kind == "f" else 10)).astype(array.dtype)
    return arrays


def added(update: Arrays) -> dict[str, Any]:
    packed = Packed.of(update)
    check(packed, LAYOUT)
    buffer = bytearray(LAYOUT.nbytes)
    merge(LAYOUT, buffer, RowStamps(LAYOUT), packed)
    return LAYOUT.views(buffer)


@EACH
@given(seed=st.integers(0, 1000), size=sizes, left=sizes)
def test_what_travels_and_what_is_left_are_what_there_was(codec: Codec, seed: int, size: float, left: float) -> None:
    delta, residual = drawn(seed, size), drawn(seed + 1, left)
    before = {name: array.copy() for name, array in (delta | {f"left {k}": v for k, v in residual.items()}).items()}
    update, rest = codec.encode(delta, residual)
    for name, sent in added(update).items():
        wanted = delta[name] + residual[name]
        room = np.abs(wanted) * 2 * np.finfo(wanted.dtype).eps if wanted.dtype.kind == "f" else 0
        assert np.all(np.abs(sent + rest[name] - wanted) <= room), name
        assert rest[name].dtype == MODEL[name].dtype
        assert not np.may_share_memory(rest[name], delta[name])
    for name, array in (delta | {f"left {k}": v for k, v in residual.items()}).items():
        np.testing.assert_array_equal(array, before[name])


@EACH
def test_integers_and_small_arrays_travel_as_they_are(codec: Codec) -> None:
    delta, nothing = drawn(1), {name: np.zeros_like(array) for name, array in MODEL.items()}
    update, rest = codec.encode(delta, nothing)
    for name in ("n", "b", "s"):
        np.testing.assert_array_equal(update[name], delta[name])
        assert not rest[name].any()


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [(Float16(), 2 * 400), (Int8(), 400 + 5 * 20), (Int2(), 2 * (64 + 1)), (TopK(0.05), 6 * 20)],
    ids=repr,
)
def test_so_many_bytes_travel(codec: Codec, nbytes: int) -> None:
    delta = {"w": np.random.default_rng(1).normal(0, 1, (20, 20)).astype(np.float32)}
    update, _ = codec.encode(delta, {"w": np.zeros_like(delta["w"])})
    assert sum(array.nbytes for array in update.values()) == nbytes


def test_half_a_number_is_right_to_eleven_bits_and_an_eighth_to_seven() -> None:
    delta, nothing = drawn(3), {name: np.zeros_like(array) for name, array in MODEL.items()}
    w = delta["w"]
    half = added(Float16().encode(delta, nothing)[0])["w"]
    middle = (np.abs(w) > 1e-4) & (np.abs(w) < 6e4)
    assert np.all(np.abs(half - w)[middle] <= np.abs(w)[middle] * 2.0**-11)
    eighth = added(Int8().encode(delta, nothing)[0])["w"]
    assert np.all(np.abs(eighth - w) <= np.abs(w).max(axis=1, keepdims=True) * 2.0**-7)


def test_the_largest_travel_and_each_to_seven_bits() -> None:
    delta, nothing = drawn(3), {name: np.zeros_like(array) for name, array in MODEL.items()}
    w, sent = delta["w"].reshape(-1), added(TopK(0.1).encode(delta, nothing)[0])["w"].reshape(-1)
    largest = np.sort(np.argsort(np.abs(w))[-120:])
    assert np.flatnonzero(sent).tolist() == largest.tolist()
    assert np.all(np.abs(sent - w)[largest] <= np.abs(w)[largest] * 2.0**-7)


@pytest.mark.parametrize("number", [127.4, 127.5, 127.6, -127.6, 255.9, 2.0**-64, 1e30])
def test_integers_at_their_limits_round_to_the_nearest(number: float) -> None:
    delta = {"w": np.full((70, 1), number)}
    for codec in (Int8(), TopK(1.0)):
        update, rest = codec.encode(delta, {"w": np.zeros((70, 1))})
        assert kind_of(Packed.of(update).layout) in KINDS[:2]
        layout = Layout.of(delta)
        buffer = bytearray(layout.nbytes)
        merge(layout, buffer, RowStamps(layout), Packed.of(update))
        np.testing.assert_allclose(layout.views(buffer)["w"] + rest["w"], number, rtol=1e-15)
        if number < 1e20:
            assert np.all(np.abs(rest["w"]) <= abs(number) * 2.0**-7)


def test_what_is_left_goes_with_the_next_updates_until_nothing_is() -> None:
    rest: Arrays = {name: np.zeros_like(array) for name, array in MODEL.items()}
    one = {name: np.full_like(array, 3) for name, array in MODEL.items()}
    total = {name: np.zeros_like(array) for name, array in MODEL.items()}
    for number in range(60):
        update, rest = TopK(0.05).encode(one if number < 10 else {n: np.zeros_like(a) for n, a in MODEL.items()}, rest)
        for name, sent in added(update).items():
            total[name] += sent
    for name, array in total.items():
        np.testing.assert_array_equal(array, 30, name)


def test_codecs_are_found_by_name() -> None:
    assert [named(name) for name in NAMES] == [Float16(), Int8(), Int2(), TopK(0.02)]
    own = TopK(0.5)
    assert named(own) is own
    assert named(None) is named("auto") is None
    with pytest.raises(UsageError, match="codec='zip', expected 'auto', 'float16', 'int8', 'int2', 'top-k'"):
        DeepDist({"w": np.zeros(3)}, codec="zip")


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan"), "all"])
def test_a_share_that_cannot_be_is_refused(share: Any) -> None:
    with pytest.raises(UsageError, match="share"):
        TopK(share)


def ones() -> Iterator[int]:
    yield from range(6)


def gradient(model: Any, rows: Any) -> dict[str, Any]:
    (row,) = rows
    return {name: np.full_like(array, 1 + row % 3) for name, array in model.items()}


def descent(model: Any, update: Any) -> None:
    for name, array in update.items():
        model[name] += array


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ["simulated", "local"])
def test_a_training_adds_up_exactly(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {key: array.copy() for key, array in MODEL.items()}
    where: dict[str, Any] = {"engine": SimulatedCluster(3, seed=1)} if engine == "simulated" else {"peers": 2}
    with DeepDist(model, codec=name, **where) as dd:
        report = dd.train([ones, ones, ones], gradient, descent, epochs=2, chunk_rows=1)
    for key, array in model.items():
        np.testing.assert_array_equal(array, 72, key)
    assert report.updates >= 36


def test_a_codec_is_rehearsed_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held to its sum by the first update, whatever it is."""
    seen: list[Any] = []
    real = Residual._check_sum
    monkeypatch.setattr(Residual, "_check_sum", lambda self, *args: (seen.append(args), real(self, *args)))
    with DeepDist({"w": np.zeros((20, 20))}, codec="int8", engine=SimulatedCluster(1, seed=1)) as dd:
        dd.train([range(2)], lambda model, rows: {"w": model["w"] + 1.0}, chunk_rows=1)
    assert len(seen) == 1


@pytest.mark.parametrize("codec", ["float16", "int8", "int2", "top-k"])
@pytest.mark.parametrize("peers", [1, 4])
def test_what_is_left_is_not_learned_again_by_whoever_left_it(codec: str, peers: int) -> None:
    """A parabola. With one peer a codec changes nothing; with more of them no step leads away for ever."""
    target = np.random.default_rng(0).normal(size=500)

    def slope(model: Any, rows: Any) -> dict[str, Any]:
        list(rows)
        return {"w": model["w"] - target}

    def away(codec: str | None) -> float:
        model = {"w": np.zeros(500)}
        with DeepDist(model, codec=codec, engine=SimulatedCluster(peers, seed=1), progress=False) as dd:
            dd.train([range(120)] * peers, slope, SGD(0.3), chunk_rows=1)
        return float(np.linalg.norm(model["w"] - target))

    assert away(codec) < (1e-9 if peers == 1 else 60.0 if codec == "top-k" else 0.1), "it begins at 22"


@pytest.mark.parametrize("codec", ["float16", "int8", "int2", "top-k", TopK(1.0)], ids=repr)
def test_small_numbers_of_float16_are_not_lost(codec: Any) -> None:
    def filled(model: Any, rows: Any) -> dict[str, Any]:
        return {"w": np.full((4, 100), sum(rows), np.float16)}

    model = {"w": np.zeros((4, 100), np.float16)}
    with DeepDist(model, codec=codec, engine=SimulatedCluster(2, seed=1), progress=False) as dd:
        dd.train([[1e-4] + [2e-6] * 100] * 2, filled, chunk_rows=1)
    np.testing.assert_allclose(model["w"].astype(float), 6e-4, atol=3e-5)


def test_the_largest_numbers_of_float16_travel_too() -> None:
    delta = {"w": np.full((4, 100), 6e4, np.float16)}
    for codec in (Float16(), Int8(), Int2(), TopK(1.0)):
        update, rest = codec.encode(delta, {"w": np.zeros((4, 100), np.float16)})
        assert all(np.isfinite(part.astype(float)).all() for part in (*update.values(), *rest.values()))


def test_an_update_of_many_arrays_is_read_once() -> None:
    """And not once for each of its arrays."""
    model = {f"a{number}": np.ones(100) for number in range(50)}
    update, _ = Int2().encode(model, {name: np.zeros(100) for name in model})
    packed, reads = Packed.of(update), []
    real = Packed.arrays
    layout = Layout.of(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Packed, "arrays", lambda self: (reads.append(1), real(self))[1])
        merge(layout, bytearray(layout.nbytes), RowStamps(layout), packed)
    assert len(reads) < 5


def test_a_codec_in_the_middle_of_a_gradient_is_refused() -> None:
    refused = pytest.raises(UsageError, match="a codec with exchange='continuous', expected exchange='chunk'")
    with DeepDist({"w": np.zeros(3)}, codec="int2", engine=SimulatedCluster(1), progress=False) as dd, refused:
        dd.train([[1]], gradient, exchange="continuous")


def test_what_is_left_is_none_of_what_others_added() -> None:
    """A peer alone: by Adasum its updates are what they are, whatever a codec has left of earlier ones."""

    def slope(model: Any, rows: Any) -> dict[str, Any]:
        list(rows)
        return {"w": 0.3 * (1.0 + np.arange(500.0) - model["w"])}

    model = {"w": np.zeros(500)}
    with DeepDist(model, codec="top-k", engine=SimulatedCluster(1, seed=1), progress=False) as dd:
        dd.train([range(120)], slope, chunk_rows=1, combine="adasum")
    np.testing.assert_allclose(model["w"], 1.0 + np.arange(500.0), rtol=1e-9)


def test_light_sends_few_rows_exactly_and_all_else_in_two_bits() -> None:
    nothing = {"w": np.zeros((100, 20), np.float32)}
    few, all_rows = {"w": nothing["w"].copy()}, {"w": np.full((100, 20), 0.3, np.float32)}
    few["w"][[3, 70]] = 0.3
    update, rest = Light().encode(few, nothing)
    assert update["w[rows]"].tolist() == [3, 70]
    np.testing.assert_array_equal(update["w[values]"], few["w"][[3, 70]], strict=True)
    assert not rest["w"].any()
    coded = Int2().encode(all_rows, nothing)
    for found, expected in zip(Light().encode(all_rows, nothing), coded, strict=True):
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
    update, rest = Light().encode(few, coded[1])
    assert set(update) == {"w[levels]", "w[scales]"}, "with a rest that is everywhere"
    many = {"w": nothing["w"].copy()}
    many["w"][::8] = 0.3
    assert set(Light().encode(many, nothing)[0]) == {"w[levels]", "w[scales]"}, "an eighth of float32 is more"


def trained_bytes(descent: Any, numbers: int, **options: Any) -> tuple[Any, int]:
    """(the model's array, bytes that a peer took in) of two simulated peers with 60 updates each."""
    model = {"w": np.zeros(numbers, np.float32)}

    def gradient(model: Any, rows: Iterator[Any]) -> dict[str, Any]:
        return {"w": np.float32(0.1) * (model["w"] - np.float32(sum(rows)))}

    with DeepDist(model, engine=SimulatedCluster(2, seed=1), progress=False, **options) as dd:
        report = dd.train([[1.0] * 60] * 2, gradient, descent, chunk_rows=1)
    return model["w"], max(peer.bytes_in for peer in report.peers)


def test_outer_steps_of_a_large_model_take_two_bits_unless_chosen_otherwise() -> None:
    def own(model: Any, update: Any) -> None:
        model["w"] -= update["w"]

    exact, whole = trained_bytes(SGD(1.0), 1 << 14, codec=None)
    light, few = trained_bytes(SGD(1.0), 1 << 14)
    assert few * 8 < whole
    np.testing.assert_allclose(light, exact, rtol=0.05)
    for descent, numbers in ((own, 1 << 14), (SGD(1.0), 1 << 11)):
        found, many = trained_bytes(descent, numbers)
        again, as_many = trained_bytes(descent, numbers, codec=None)
        np.testing.assert_array_equal(found, again, strict=True)
        assert many == as_many


def test_a_codec_that_is_left_to_choose_goes_with_a_master_and_with_mixing() -> None:
    for options in ({"mode": "master"}, {"discipline": "mix"}):
        DeepDist({"w": np.zeros(1 << 13)}, codec="auto", **options)  # type: ignore[call-overload]
        with pytest.raises(UsageError, match=r"a codec with .*, expected None"):
            DeepDist({"w": np.zeros(1 << 13)}, codec="int2", **options)  # type: ignore[call-overload]
