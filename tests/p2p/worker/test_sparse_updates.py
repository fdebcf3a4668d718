"""Sparse updates: a user's own model gets what was learned to the last bit, whichever way that was said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from gossip.arrays import Array, Layout, Packed
from gossip.errors import UsageError
from gossip.updates import check, kind_of, merge
from gossip.updates.dense import Dense
from gossip.updates.sparse import SomeEntries, SomeRows, smallest
from gossip.updates.stamps import RowStamps
from p2p import DeepDist, SimulatedCluster
from p2p.adapters.model import Model
from p2p.descents import SGD
from p2p.testing import Neighbor, train_partition
from p2p.worker.combine import combined
from p2p.worker.errors import PartitionError
from p2p.worker.job import Job
from p2p.worker.task import in_place, run_partition
from p2p.worker.working_copy import ExchangeSettings

ROWS, WIDTH = 6000, 60
"""More than a small model, which was exact before."""
ADDED = [(17, 3), (17, 4), (5999, 0)]
"""(row, column) where a gradient adds the number of each of its rows."""


def whole(model: Any, rows: Iterator[int]) -> Any:
    update = np.zeros((ROWS, WIDTH))
    for row in rows:
        for place in ADDED:
            update[place] += row
    return {"w": update}


def by_row(model: Any, rows: Iterator[int]) -> Any:
    update = whole(model, rows)["w"]
    return {"w": {17: update[17], np.int64(5999): update[5999]}}


def matrix(of: str) -> Callable[[Any, Iterator[int]], Any]:
    def gradient(model: Any, rows: Iterator[int]) -> Any:
        return {"w": getattr(sparse, of)(whole(model, rows)["w"])}

    return gradient


def entries_twice(model: Any, rows: Iterator[int]) -> Any:
    places = [(place, row) for row in rows for place in ADDED]
    coords = tuple(np.array([place for place, _ in places]).T)
    return {"w": sparse.coo_matrix(([float(row) for _, row in places], coords), shape=(ROWS, WIDTH))}


def trained_in_place(model: Any, rows: Iterator[int]) -> Any:
    copy = in_place(model)
    if copy is None:
        return whole(model, rows)
    for row in rows:
        for place in ADDED:
            model["w"][place] += row
    return copy.trained({})


FORMS: dict[str, Any] = {
    "whole": whole,
    "rows": by_row,
    "csr_matrix": matrix("csr_matrix"),
    "csr_array": matrix("csr_array"),
    "dok_array": matrix("dok_array"),
    "csc_array": matrix("csc_array"),
    "entries twice": entries_twice,
    "in place": trained_in_place,
}
DATA = [list(range(100 * part, 100 * part + 40)) for part in range(6)]


def expected(dtype: str) -> Array:
    model = np.ones((ROWS, WIDTH), dtype)
    for place in ADDED:
        model[place] += sum(map(sum, DATA))
    return model


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("form", FORMS)
def test_sums_of_whole_numbers_are_exact_on_a_cluster_with_losses(form: str, dtype: str) -> None:
    cluster = SimulatedCluster(peers=3, seed=1, fail=0.2)
    with DeepDist({"w": np.ones((ROWS, WIDTH), dtype)}, engine=cluster, progress=False) as dd:
        report = dd.train(DATA, FORMS[form], chunk_rows=10)
        np.testing.assert_array_equal(dd.model["w"], expected(dtype))
    assert report.consensus_distance == 0
    assert max(peer.bytes_in for peer in report.peers) < ROWS * WIDTH * 4


@pytest.mark.parametrize("mode", ["p2p", "master"])
@pytest.mark.parametrize("form", ["whole", "rows", "entries twice", "in place"])
def test_sums_of_whole_numbers_are_exact_on_processes(form: str, mode: Any) -> None:
    with DeepDist({"w": np.ones((ROWS, WIDTH), "<f4")}, mode, peers=2, progress=False) as dd:
        report = dd.train(DATA, FORMS[form], chunk_rows=10)
        np.testing.assert_array_equal(dd.model["w"], expected("<f4"))
    sent = [peer.bytes_out for peer in report.peers if peer.role in ("peer", "worker")]
    assert sum(sent) < 10 * ROWS * WIDTH * 4, "updates; a master's model goes out whole"


@pytest.mark.parametrize("mode", ["p2p", "master"])
@pytest.mark.parametrize("form", ["rows", "csr_array"])
def test_a_descent_of_ours_takes_any_form(form: str, mode: Any) -> None:
    with DeepDist({"w": np.ones((ROWS, WIDTH), "<f4")}, mode, peers=2, progress=False) as dd:
        dd.train(DATA, FORMS[form], SGD(1.0), combine="sum" if mode == "p2p" else None)
        np.testing.assert_array_equal(dd.model["w"], 2 - expected("<f4"))


def test_a_descent_of_the_users_is_given_what_the_gradient_returned() -> None:
    seen = []

    def descent(model: Any, update: Any) -> None:
        seen.append(type(update["w"]))
        model["w"] += update["w"].toarray()

    trained = train_partition({"w": np.ones((ROWS, WIDTH))}, FORMS["csr_array"], DATA[0], descent)
    assert seen == [sparse.csr_array]
    (update,) = trained.updates
    assert update["w[rows]"].tolist() == [17, 5999]


@pytest.mark.parametrize("form", FORMS)
def test_what_did_not_change_is_not_sent(form: str) -> None:
    (update,) = train_partition({"w": np.ones((ROWS, WIDTH))}, FORMS[form], DATA[0]).updates
    assert sum(array.nbytes for array in update.values()) < 2000


def test_of_wide_rows_with_few_entries_the_entries_travel() -> None:
    def gradient(model: Any, rows: Iterator[int]) -> Any:
        return {"w": sparse.csr_array(([1.0] * 3, ([0, 0, 2], [5, 99_000, 1])), shape=(3, 100_000))}

    trained = train_partition({"w": np.zeros((3, 100_000))}, gradient, [1])
    (update,) = trained.updates
    assert update["w[entries]"].tolist() == [5, 99_000, 200_001]
    assert trained.model["w"].sum() == 3


@pytest.mark.parametrize("form", [trained_in_place, whole])
def test_integers_and_vectors_travel_by_rows_too(form: Any) -> None:
    def gradient(model: Any, rows: Iterator[int]) -> Any:
        if form is whole:
            return {"v": np.eye(1, 50_000, 7)[0], "n": np.eye(1, 50_000, 9, dtype=np.int8)[0]}
        copy = in_place(model)
        assert copy is not None
        model["v"][7] += 1
        model["n"][9] += 1
        return copy.trained({})

    model = {"v": np.zeros(50_000), "n": np.zeros(50_000, np.int64)}
    trained = train_partition(model, gradient, range(5), chunk_rows=1)
    assert (trained.model["v"][7], trained.model["v"].sum()) == (5, 5)
    assert (trained.model["n"][9], trained.model["n"].sum()) == (5, 5)
    assert all(update["v[rows]"].tolist() == [7] for update in trained.updates)


@pytest.mark.parametrize("rule", ["sum", "mean", "damp", "adasum"])
@pytest.mark.parametrize("form", FORMS)
def test_a_rule_says_how_updates_add_up_to_those_that_others_made_meanwhile(form: str, rule: str) -> None:
    theirs = np.zeros((ROWS, WIDTH))
    theirs[[17, 30]] = 2

    def gradient(model: Any, rows: Iterator[int]) -> Any:
        found = FORMS[form](model, rows)
        neighbor.replica.arrays()["w"][...] += theirs
        return found

    start = np.ones((ROWS, WIDTH))
    neighbor = Neighbor({"w": start})
    settings = ExchangeSettings(rule, peers=4)
    job = Job(
        run=f"{form} {rule}",
        skeleton=Model({"w": start}).skeleton(),
        gradient=gradient,
        partitions=1,
        peers=4,
        seed=0,
        exchange=settings,
    )
    run_partition(job, neighbor, 0, 0, DATA[0])
    own = combined(rule, whole(None, iter(DATA[0]))["w"], theirs, 4)
    np.testing.assert_array_equal(neighbor.replica.arrays()["w"], start + theirs + own)
    assert "w" not in neighbor.published[0]


def test_a_codec_that_is_asked_for_takes_sparse_updates() -> None:
    cluster = SimulatedCluster(peers=2, seed=1)
    with DeepDist({"w": np.ones((ROWS, WIDTH))}, engine=cluster, codec="int8", progress=False) as dd:
        dd.train(DATA, FORMS["csr_array"], chunk_rows=10)
        np.testing.assert_allclose(dd.model["w"], expected("<f8"), rtol=1e-9)


BAD: list[tuple[Any, str]] = [
    ({6000: np.ones(60)}, "'w' has row 6000, expected 0 to 5999"),
    ({-1: np.ones(60)}, "'w' has row -1, expected 0 to 5999"),
    ({"17": np.ones(60)}, "'w' has the key '17', expected the number of a row"),
    ({True: np.ones(60)}, "'w' has the key True, expected the number of a row"),
    ({17: np.ones(59)}, r"'w\[17\]': shape \(59,\), expected \(60,\)"),
    ({17: 1.0}, r"'w\[17\]': shape \(\), expected \(60,\)"),
    ({17: [[1.0], [1.0, 2.0]]}, r"'w\[17\]' is no array"),
    ({17: np.full(60, "a")}, r"'w\[17\]': dtype <U1, expected float64"),
    ({17: np.ma.masked_less(np.arange(60.0), 3)}, r"'w\[17\]' has masked numbers, expected plain ones"),
    ({17: np.full(60, np.nan)}, "60 of 60 numbers are NaN or infinite"),
    (np.ma.masked_less(np.zeros((6000, 60)), 3), "'w' has masked numbers, expected plain ones"),
    (sparse.csr_array((60, 6000)), r"'w': shape \(60, 6000\), expected \(6000, 60\)"),
    (sparse.csr_array((6000, 60), dtype=complex), "'w': dtype complex128, expected float64"),
    (sparse.csr_array(([np.inf], ([1], [1])), shape=(6000, 60)), "1 of .* NaN or infinite"),
]


@pytest.mark.parametrize(("update", "message"), BAD)
def test_what_cannot_be_added_is_named(update: Any, message: str) -> None:
    with pytest.raises(PartitionError) as raised:
        train_partition({"w": np.ones((ROWS, WIDTH))}, lambda model, rows: {"w": update}, [1])
    assert isinstance(raised.value.__cause__, UsageError)
    with pytest.raises(UsageError, match=message):
        raise raised.value.__cause__


def test_entries_beyond_the_array_are_refused() -> None:
    matrix = sparse.coo_array(([1.0], ([1], [1])), shape=(6000, 60))
    matrix.coords[0][0] = 6000
    with pytest.raises(PartitionError) as raised:
        train_partition({"w": np.ones((ROWS, WIDTH))}, lambda model, rows: {"w": matrix}, [1])
    assert "has entries at 6000 to 6000, expected 0 to 5999" in str(raised.value.__cause__)


def test_a_sparse_row_by_its_number_is_told_what_to_be() -> None:
    row = sparse.csr_matrix(np.ones((1, WIDTH)))
    with pytest.raises(PartitionError) as raised:
        train_partition({"w": np.ones((ROWS, WIDTH))}, lambda model, rows: {"w": {1: row}}, [1])
    assert (
        "'w' has a sparse matrix in the place of row 1, expected numbers of shape (60,): write 1: row.toarray()[0]"
        in (str(raised.value.__cause__))
    )


def test_integers_that_do_not_fit_are_refused_once_they_are_summed() -> None:
    twice = sparse.coo_array((np.full(3, 100, np.int8), ([1, 1, 1], [1, 1, 1])), shape=(6000, 60))
    with pytest.raises(PartitionError) as raised:
        train_partition({"w": np.ones((ROWS, WIDTH), np.int8)}, lambda model, rows: {"w": twice}, [1])
    assert "expected such as fit into int8" in str(raised.value.__cause__)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """What is added to arrays of shapes of `LIKE`: whole, some rows, or some entries."""
    found: dict[str, Any] = {}
    for name, like in LIKE.items():
        numbers = st.integers(-3, 3)
        match draw(st.sampled_from(["none", "whole", "rows", "entries"])):
            case "whole":
                found[name] = np.zeros(like.shape, like.dtype)
                if like.size:
                    found[name].reshape(-1)[draw(st.integers(0, like.size - 1)) :] = draw(numbers)
            case "rows" if like.ndim and like.size:
                rows = sorted(draw(st.sets(st.integers(0, len(like) - 1), max_size=5)))
                values = np.full((len(rows), *like.shape[1:]), draw(numbers), like.dtype)
                found[name] = SomeRows(np.array(rows, np.int64), values)
            case "entries" if like.ndim and like.size:
                places = sorted(draw(st.sets(st.integers(0, like.size - 1), max_size=5)))
                found[name] = SomeEntries(np.array(places, np.int64), np.full(len(places), draw(numbers), like.dtype))
    return found


LIKE = {
    "a": np.zeros((400, 3), np.float32),
    "b": np.zeros(3000),
    "c": np.zeros((2, 2000), np.int16),
    "d": np.zeros(()),
    "e": np.zeros((0, 4)),
    "f": np.zeros((5, 0)),
}


@settings(deadline=None)
@given(changes())
def test_the_smallest_form_adds_what_the_change_is(change: dict[str, Any]) -> None:
    model = Layout.of(LIKE)
    update = smallest(change, model)
    if update is None:
        return
    packed = Packed.of(update)
    check(packed, model)
    assert not isinstance(kind_of(packed.layout), Dense)
    assert packed.layout.nbytes <= model.nbytes / 2 + 200
    buffer = bytearray(model.nbytes)
    merge(model, buffer, RowStamps(model), packed)
    for name, found in model.views(buffer).items():
        wanted = np.zeros_like(LIKE[name])
        match change.get(name):
            case SomeRows(rows, values):
                wanted[rows] = values
            case SomeEntries(places, numbers):
                wanted.reshape(-1)[places] = numbers
            case np.ndarray() as array:
                wanted[...] = array
        np.testing.assert_array_equal(found, wanted)


def test_whole_arrays_stay_whole_where_that_is_hardly_larger() -> None:
    model = Layout.of({"w": np.zeros((1000, 10))})
    half = np.zeros((1000, 10))
    half[:450] = 1
    assert set(smallest({"w": half}, model) or ()) == {"w[rows]", "w[values]"}
    half[:550] = 1
    assert smallest({"w": half}, model) is None
