"""Decentralized averaging with real agents, on lists of partitions: what is learned, who agrees, and who may die."""

import itertools
import os
import random
import re
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from gensim.models import Word2Vec

from gossip import topology
from gossip.compression import TopK
from gossip.mixing import (
    Choco,
    CombineThenAdapt,
    Compressed,
    DiLoCo,
    DPsgd,
    EpidemicLearning,
    Every,
    GradientTracking,
    PairwiseExchange,
    PushSum,
)
from gossip.sim.vectorized import simulate
from p2p import DeepDist, SimulatedCluster, UsageError
from p2p.agent.sketch import BUCKETS, Sketch, distance
from p2p.driver.registrar import Registrar
from p2p.models import word2vec
from p2p.models.word2vec import partition
from p2p.worker import task

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

WAIT_S = 60.0


def rows_of(partitions: int, rows: int, classes: int = 3, features: int = 4) -> list[list[Any]]:
    """Points around one center per class; every partition has its own."""
    rng = np.random.default_rng(0)
    centers = 3.0 * rng.standard_normal((classes, features))
    labels = rng.integers(classes, size=(partitions, rows))
    points = centers[labels] + rng.standard_normal((partitions, rows, features))
    return [list(zip(x, y, strict=True)) for x, y in zip(points, labels.tolist(), strict=True)]


def softmax_gradient(model, rows):
    x, y = (np.array(each) for each in zip(*rows, strict=True))
    logits = x @ model["w"] + model["b"]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1.0
    return {"w": x.T @ p / len(x), "b": p.mean(axis=0)}


def descent(model, update):
    for name, value in update.items():
        model[name] -= 0.2 * value


def add_to_word2vec(model, update):
    model.wv.vectors += update["wv.vectors"]
    model.syn1neg += update["syn1neg"]
    model.words_trained += update["words_trained"]


def accuracy(model, partitions):
    x, y = (np.array(each) for each in zip(*[row for rows in partitions for row in rows], strict=True))
    return float(np.mean(np.argmax(x @ model["w"] + model["b"], axis=1) == y))


def softmax_model() -> dict[str, np.ndarray]:
    return {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3)}


# ------------------------------------------------------------------------------------------------------ what is learned


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("mixing", "links"),
    [
        (None, None),
        pytest.param(DPsgd(), "ring", marks=pytest.mark.long),
        pytest.param(PairwiseExchange(), topology.complete, marks=pytest.mark.long),
    ],
    ids=["default", "in step", "pairwise"],
)
def test_peers_that_mix_learn_and_agree(mixing: Any, links: Any) -> None:
    data = rows_of(8, 40)
    model = softmax_model()
    arrays = dict(model)
    with DeepDist(model, discipline="mix", mixing=mixing, topology=links, peers=3) as dd:
        report = dd.train(data, softmax_gradient, descent, epochs=6, chunk_rows=20)
        assert dd.model is model
        seen = {name: array.copy() for name, array in model.items()}
        again = dd.train(data, softmax_gradient, descent, chunk_rows=20)
    assert accuracy(seen, data) > 0.9
    assert accuracy(model, data) > 0.9
    for name, array in arrays.items():
        assert model[name] is array, "the user's own arrays are changed in place"
    assert (report.rows, report.updates) == (8 * 40 * 6, 8 * 2 * 6)
    assert (again.rows, again.updates) == (8 * 40, 8 * 2)
    assert report.consensus_distance < 1e-3
    assert (report.updates_lost, report.missing) == (0, ())
    assert [peer.role for peer in report.peers] == ["peer"] * 3
    assert sum(peer.published for peer in report.peers) == 96
    for peer in report.peers:
        assert peer.rounds > 0
        assert peer.applied > 0
        assert all(nbytes > 0 for nbytes in peer.edges.values())
        assert peer.edges.keys() <= {each.name for each in report.peers} - {peer.name}
    assert "kB/edge" in str(report)
    assert f"mixing {mixing or PushSum()!r} on" in report.summary()


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("mixing", [PushSum(), DPsgd()], ids=repr)
def test_the_mean_of_all_replicas_is_the_start_and_all_updates_over_the_number_of_peers(mixing: Any) -> None:
    model = {"w": np.full(3, 10.0)}

    def gradient(model, rows):
        return {"w": np.array([float(sum(rows)), 1.0, 0.0])}

    with DeepDist(model, discipline="mix", mixing=mixing, topology="complete", peers=2) as dd:
        report = dd.train([[1, 2], [3], [4], [5, 6]], gradient, epochs=3)
    assert report.updates == 12
    assert report.consensus_distance < 1e-4
    np.testing.assert_allclose(model["w"], [10 + 3 * 21 / 2, 10 + 12 / 2, 10], rtol=1e-9)


@pytest.mark.long
@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("strategy", "build"),
    [
        (DPsgd(), topology.ring),
        (CombineThenAdapt(), topology.ring),
        (Every(3, DPsgd()), topology.complete),
        (Every(4, DiLoCo()), topology.complete),
        (GradientTracking(), topology.ring),
        (Compressed(TopK(0.4), Choco(0.3)), topology.ring),
    ],
    ids=lambda each: getattr(each, "__name__", repr(each)),
)
def test_processes_compute_what_the_simulator_computes(strategy: Any, build: Any) -> None:
    """Each peer trains one partition, of a loss of its own. Where on the ring each is, is not known: all are tried."""
    steps, start = 18, np.arange(5.0)
    minima, curvatures = np.array([-3.0, 1.0, 2.0, 5.0]), np.array([1.0, 2.0, 0.5, 1.5])

    def gradient(model, rows):
        list(rows)
        time.sleep(0.002 * chance.random())
        where = task.current().partition
        return {"w": -0.1 * curvatures[where] * (model["w"] - minima[where])}

    chance = random.Random(1)
    model = {"w": start.copy()}
    with DeepDist(model, discipline="mix", mixing=strategy, topology=build, peers=4, progress=False) as dd:
        report = dd.train([[0] * steps] * 4, gradient, chunk_rows=1)
    assert [peer.published for peer in report.peers] == [steps] * 4

    def simulated(order: list[int]) -> Any:
        def step(x, round):
            return -0.1 * curvatures[order][:, None] * (x - minima[order][:, None])

        return simulate(build(4), strategy, rounds=steps, start=np.tile(start, (4, 1)), gradient=step).params.mean(0)

    apart = [np.abs(model["w"] - simulated(list(order))).max() for order in itertools.permutations(range(4))]
    assert min(apart) < 1e-9


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_partitions_that_end_unevenly_do_not_move_the_mean() -> None:
    def gradient(model, rows):
        return {"w": np.array([float(sum(rows))])}

    model = {"w": np.zeros(1)}
    with DeepDist(model, discipline="mix", mixing=DPsgd(), topology="ring", peers=4, progress=False) as dd:
        report = dd.train([[1, 2], [3] * 7, [4] * 3, [5] * 11], gradient, chunk_rows=1)
    assert report.updates == 2 + 7 + 3 + 11
    np.testing.assert_allclose(model["w"], (3 + 21 + 12 + 55) / 4, rtol=1e-12)


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_peers_without_a_task_are_told_so_before_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[set[str], float | None]] = []
    begin = Registrar.begin

    def noting(self: Registrar, era: int, idle: Any = (), wait_s: float | None = None) -> None:
        told.append((set(idle), wait_s))
        begin(self, era, idle, wait_s)

    monkeypatch.setattr(Registrar, "begin", noting)
    model = {"w": np.zeros(1)}
    with DeepDist(model, discipline="mix", mixing=DPsgd(), topology="complete", peers=3, progress=False) as dd:
        report = dd.train([[1, 2, 3]], lambda model, rows: {"w": np.array([float(sum(rows))])}, chunk_rows=1)
        names = {member.peer: member.name for member in dd._session._registrar.by_role("peer")}  # type: ignore[attr-defined]
        dd.train([[1]] * 4, lambda model, rows: None)
    (first, wait_s), (second, _) = told
    assert {names[peer] for peer in first} == {peer.name for peer in report.peers if not peer.published}
    assert (len(first), wait_s) == (2, None)
    assert second == set(), "all have one"
    np.testing.assert_allclose(model["w"], 6 / 3)


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("place")
def test_a_worker_that_dies_in_its_task_holds_nobody_up(tmp_path: Path) -> None:
    """Its connection ends without a word, and the task is tried again by another; its partition is the shorter one."""

    def gradient(model, rows):
        (row,) = rows
        if row == 3 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"w": np.array([float(row)])}

    model = {"w": np.zeros(1)}
    with DeepDist(model, discipline="mix", mixing=DPsgd(), topology="complete", peers=2, progress=False) as dd:
        report = dd.train([[1, 2, 3, 4], [10] * 20], gradient, chunk_rows=1)
    assert (tmp_path / "died").exists()
    assert report.updates == 24
    np.testing.assert_allclose(model["w"], (10 + 200) / 2, rtol=1e-12)


@pytest.mark.long
@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("place")
def test_an_agent_that_dies_in_a_task_holds_nobody_up(tmp_path: Path) -> None:
    """What it had learned is in the mean with the packets that others took; another agent comes in, and trains on."""

    def gradient(model, rows):
        (row,) = rows
        if row == 3:
            (tmp_path / "begun").touch()
            while not (tmp_path / "died").exists():
                time.sleep(0.01)
        return {"w": np.array([float(row)])}

    with DeepDist({"w": np.zeros(1)}, discipline="mix", mixing=DPsgd(), topology="complete", peers=3) as dd:

        def kill() -> None:
            while not (tmp_path / "begun").exists():
                time.sleep(0.01)
            os.kill(dd._session._engine.current._seats[0].agent.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            (tmp_path / "died").touch()

        killing = threading.Thread(target=kill, daemon=True)
        killing.start()
        report = dd.train([[1, 2, 3, 4], [10] * 20, [10] * 30], gradient, chunk_rows=1)
        killing.join()
    assert report.rows == 4 + 20 + 30
    assert [peer.published for peer in report.peers if peer.published >= 20].count(20) == 1
    assert report.consensus_distance < 1e-4


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("mixing", [DPsgd(), PushSum()], ids=repr)
def test_a_model_that_is_no_number_any_more_is_an_error_of_the_training(
    mixing: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """It overflows in the first steps; the error comes long before the last."""

    def gradient(model, rows):
        with (tmp_path / "calls").open("ab") as file:
            file.write(b".")
        return {"w": np.full(2, 1e308)}

    with (
        DeepDist({"w": np.ones(2)}, discipline="mix", mixing=mixing, topology="complete", peers=2) as dd,
        pytest.raises(UsageError, match=r"no good any more.*smaller learning rate"),
    ):
        dd.train([[1] * 5000] * 2, gradient, chunk_rows=1)
    assert (tmp_path / "calls").stat().st_size < 5000
    told = [record for record in caplog.records if "no good any more" in record.getMessage()]
    assert 1 <= len(told) <= 2, "once of each peer"


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("mixing", "step"),
    [
        (PushSum(), None),
        pytest.param(DPsgd(), None, marks=pytest.mark.long),
        pytest.param(DPsgd(), add_to_word2vec, marks=pytest.mark.long),
    ],
    ids=["clock", "step", "whole"],
)
def test_words_that_anybody_trained_count_in_the_learning_rate_of_all(mixing: Any, step: Any) -> None:
    """Also where updates are whole arrays, since a `descent` makes them."""
    corpus = [[f"word{(3 * row + place) % 20}" for place in range(8)] for row in range(120)]
    model = Word2Vec(sg=1, vector_size=8, min_count=1, sample=0, epochs=2)
    word2vec.build_vocab(model, corpus)
    model.words_trained = np.zeros(1)
    data = [corpus[start::4] for start in range(4)]
    with DeepDist(model, discipline="mix", mixing=mixing, topology="complete", peers=2, progress=False) as dd:
        dd.train(data, word2vec.gradient, step, epochs=2, chunk_rows=10)
    assert model.words_trained[0] == pytest.approx(2 * 120 * 8, rel=1e-6)
    assert partition.learning_rate(model, partition._progress(model) / model.corpus_total_words / 2) < 1.01e-4


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_what_is_trained_in_place_is_mixed_as_rows() -> None:
    def gradient(model, rows):
        copy = task.in_place(model)
        for row in rows:
            model["w"][row] += 1.0
        return copy.trained({})

    model = {"w": np.full((4, 3), 10.0)}
    with DeepDist(model, discipline="mix", topology="complete", peers=2) as dd:
        report = dd.train([[0, 1], [0], [1], [0, 2]], gradient, epochs=3)
    assert report.updates == 12
    np.testing.assert_allclose(model["w"].T, [[10 + 9 / 2, 10 + 6 / 2, 10 + 3 / 2, 10]] * 3, rtol=1e-9)


@pytest.mark.sockets
@pytest.mark.slow
def test_a_killed_agent_does_not_stop_the_others(place: Any, tmp_path: Path) -> None:
    data = rows_of(12, 20)

    def gradient(model, rows):
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.1)
        return softmax_gradient(model, rows)

    model = softmax_model()
    with DeepDist(model, discipline="mix", topology="exponential", peers=3) as dd:
        dd.train(data[:6], gradient, descent)
        victim = dd._session._registrar.by_role("peer")[1]  # type: ignore[attr-defined]
        os.kill(victim.pid, signal.SIGKILL)
        others = [m for m in dd._session._registrar.by_role("peer") if m is not victim]  # type: ignore[attr-defined]
        give_up = time.monotonic() + WAIT_S
        while any(m.figures.departed != [victim.peer] for m in others) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert [m.figures.departed for m in others] == [[victim.peer]] * 2
        dd._session._begin(dd._session._registrar, 12)  # type: ignore[attr-defined]
        before = [member.figures.mixing.rounds for member in others]
        while any(m.figures.mixing.rounds < n + 5 for m, n in zip(others, before, strict=True)):
            assert time.monotonic() < give_up
            time.sleep(0.05)
        report = dd.train(data, gradient, descent)
        assert report.missing == ()
        assert [peer.role for peer in report.peers] == ["peer"] * 3, "another has taken its place"
        assert dd.model is model
    assert accuracy(model, data) > 0.6


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_the_model_of_one_peer_is_its_replica() -> None:
    model = {"w": np.zeros(2)}
    with DeepDist(model, discipline="mix", peers=1) as dd:
        report = dd.train([[1], [2]], lambda model, rows: {"w": np.full(2, float(sum(rows)))})
    np.testing.assert_array_equal(model["w"], [3, 3])
    assert report.consensus_distance == 0.0


@pytest.mark.sockets
@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_a_gradients_error_is_raised_and_all_rest() -> None:
    def gradient(model, rows):
        raise ZeroDivisionError("mine")

    with DeepDist({"w": np.zeros(2)}, discipline="mix", peers=2) as dd:
        with pytest.raises(ZeroDivisionError, match="mine"):
            dd.train([[1], [2]], gradient)
        registrar = dd._session._registrar  # type: ignore[attr-defined]
        registrar.ask_status(5.0)
        time.sleep(0.5)
        before = [member.figures.mixing.rounds for member in registrar.by_role("peer")]
        time.sleep(0.5)
        registrar.ask_status(5.0)
        assert [member.figures.mixing.rounds for member in registrar.by_role("peer")] == before


# ------------------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"discipline": "average"}, "discipline='average', expected 'replicate' or 'mix'"),
        ({"topology": "ring"}, "topology='ring' with discipline='replicate', which has none: add discipline='mix'"),
        ({"mixing": PushSum()}, r"mixing=PushSum\(\) with discipline='replicate'"),
        ({"discipline": "mix", "mode": "master"}, "discipline='mix' with mode='master', expected 'p2p'"),
        ({"discipline": "mix", "topology": "ringg"}, "topology='ringg' is not known, expected one of base, complete, "),
        ({"discipline": "mix", "topology": 3}, "topology is a int, expected a name"),
        ({"discipline": "mix", "mixing": "push-sum"}, "mixing is a str, expected a strategy of gossip.mixing"),
        ({"discipline": "mix", "topology": "hypercube", "peers": 6}, "hypercube.*6"),
        ({"discipline": "mix", "topology": topology.ring(4), "peers": 3}, "ring is for 4 peers, and there are 3"),
        (
            {"discipline": "mix", "mixing": DPsgd(), "topology": partial(topology.random_senders, weights="push")}
            | {"peers": 5},
            r"DPsgd\(\) does not fit",
        ),
        (
            {"discipline": "mix", "mixing": EpidemicLearning(), "topology": "star", "peers": 1, "engine": 1},
            "engine is a int",
        ),
        ({"discipline": "mix", "engine": SimulatedCluster(peers=2)}, "discipline='mix' on a simulated cluster"),
    ],
    ids=lambda value: re.sub(r"[^a-z ]", "", str(value))[:40] if isinstance(value, str) else "",
)
def test_what_does_not_fit_together_is_said_before_anything_starts(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        DeepDist({"w": np.zeros(3)}, **options)


def test_integers_cannot_be_mixed() -> None:
    with pytest.raises(UsageError, match=r"'count': int64 \(1,\): mixing takes means"):
        DeepDist({"w": np.zeros(3), "count": np.zeros(1, np.int64)}, discipline="mix")


def test_a_rule_for_sums_is_refused_where_replicas_are_averaged() -> None:
    text = "combine='damp' with discipline='mix', expected None"
    with DeepDist({"w": np.zeros(3)}, discipline="mix", peers=2) as dd, pytest.raises(UsageError, match=text):
        dd.train([[1], [2]], lambda model, rows: {"w": np.ones(3)}, combine="damp")


# ------------------------------------------------------------------------------------------------------------- sketches


def test_sketches_are_as_far_apart_as_what_they_are_of() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 10_000)) + 3.0
    sketch = Sketch(10_000, "run")
    center = x.mean(axis=0)
    exact = max(np.linalg.norm(row - center) for row in x) / max(np.linalg.norm(row) for row in x)
    assert distance([sketch.of(row) for row in x]) == pytest.approx(exact, rel=0.4)
    assert len(sketch.of(x[0])) == BUCKETS
    assert Sketch(10_000, "run").of(x[0]) == sketch.of(x[0]) != Sketch(10_000, "other").of(x[0])


def test_equal_replicas_have_no_distance() -> None:
    sketch = Sketch(7, "run").of(np.arange(7.0))
    assert distance([sketch, sketch]) == 0.0
    assert distance([]) == 0.0
    assert distance([[0.0] * BUCKETS] * 2) == 0.0
