"""A member that lies, in a training of the user's: the model is that of the others, and the report names it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.sim.faults import Lie
from gossip.trust.norms import NormMax
from p2p import DeepDist, DeepDistWarning, Faults, Network, Report, SimulatedCluster, UsageError, current
from p2p.report import GOOD

CHANCE = np.random.default_rng(0)
TRUTH, X = CHANCE.normal(size=(12, 4)), CHANCE.normal(size=(1200, 12))
Y = (X @ TRUTH + CHANCE.normal(size=(1200, 4))).argmax(axis=1)
PARTITIONS = [list(range(start, 1200, 12)) for start in range(12)]
POINTS_MAX = 1.0


def gradient(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    chosen = np.array(list(rows))
    scores = X[chosen] @ model["w"]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    odds[np.arange(len(chosen)), Y[chosen]] -= 1.0
    return {"w": -0.2 * (X[chosen].T @ odds) / len(chosen)}


def accuracy(model: Any) -> float:
    return float(100 * ((X @ model["w"]).argmax(axis=1) == Y).mean())


def train(limit: NormMax, *lies: Lie, peers: int = 5, **cluster: Any) -> tuple[float, Report]:
    """Softmax regression, and what it is worth in percent."""
    engine = SimulatedCluster(peers, seed=1, faults=Faults(lies=lies), **cluster)
    with (
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
        DeepDist({"w": np.zeros((12, 4))}, engine=engine, update_norm_max=limit) as dd,
    ):
        warnings.simplefilter("ignore", DeepDistWarning)
        report = dd.train(PARTITIONS, gradient, epochs=4, chunk_rows=10)
        return accuracy(dd.model), report


def wait_for_all(folder: Path, workers: int = 3) -> None:
    """In a worker: until all have begun. Else the first may have done all the work before the others are there."""
    (folder / str(os.getpid())).touch()
    give_up = time.monotonic() + 60
    while len(list(folder.iterdir())) < workers and time.monotonic() < give_up:
        time.sleep(0.01)


def said(report: Report) -> dict[str, str]:
    """Of whom the report says something, and what."""
    return {peer.name: str(peer.conduct) for peer in report.peers if peer.conduct != GOOD}


def liar(report: Report) -> str:
    (name,) = (line.split()[2] for line in report.story if line.endswith("begins to lie"))
    return name


@pytest.fixture(scope="module")
def without_it() -> float:
    """What four honest peers come to."""
    worth, report = train(None, peers=4)
    assert said(report) == {}
    assert worth > 75
    return worth


@pytest.mark.parametrize("limit", ["auto", 100.0])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("since", [0.0, 9.0])
def test_with_a_limit_the_model_is_as_good_as_without_the_liar(
    limit: NormMax, noise: bool, since: float, without_it: float
) -> None:
    worth, report = train(limit, Lie(since, noise=noise), network=Network(loss=0.1))
    assert worth > without_it - POINTS_MAX
    assert said(report).keys() == {liar(report)}
    assert "was put out, since 3 of 5 others refuse its updates" in said(report)[liar(report)]
    assert f"{liar(report)} {said(report)[liar(report)]}" in report.summary()
    assert report.missing == (liar(report),)
    assert report.consensus_distance < 1e-12


@pytest.mark.parametrize("noise", [False, True])
def test_a_broken_peer_stays_and_leaves_out_what_is_absurd(noise: bool, without_it: float) -> None:
    worth, report = train("auto", Lie(3.0, noise=noise, checks=True))
    assert worth > without_it - POINTS_MAX
    assert said(report).keys() == {liar(report)}
    (broken,) = (peer for peer in report.peers if peer.name == liar(report))
    assert broken.conduct.left_out > 20
    assert report.missing == ()
    assert report.updates == 480, "the units of all chunks count"
    assert f"left out {broken.conduct.left_out} of its own updates" in report.summary()


def test_without_a_limit_the_model_is_worse_and_the_report_names_the_peer(without_it: float) -> None:
    worth, report = train(None, Lie(0.0, noise=True))
    assert worth < without_it - 20
    assert said(report).keys() == {liar(report)}
    assert "its data are of another scale, or it is broken, or lies" in report.summary()


def test_the_user_is_warned_of_a_liar_whose_updates_are_in_the_model() -> None:
    engine = SimulatedCluster(5, seed=1, faults=Faults(lies=(Lie(0.0),)))
    with (
        DeepDist({"w": np.zeros((12, 4))}, engine=engine) as dd,
        np.errstate(all="ignore"),
        pytest.warns(DeepDistWarning, match=r"p00\d sent \d+ updates that were up to .* times as long"),
    ):
        dd.train(PARTITIONS, gradient, chunk_rows=10)


@pytest.mark.parametrize("limit", ["auto", 100.0])
def test_where_nobody_lies_a_limit_changes_nothing(limit: NormMax, without_it: float) -> None:
    for cluster in ({}, {"network": Network(loss=0.3, duplication=0.3), "fail": 0.2, "speculate": 0.3}):
        worth, report = train(limit, **cluster)
        assert said(report) == {}
        assert report.updates_lost == 0
        assert report.missing == ()
        assert worth > without_it - POINTS_MAX


def test_noise_that_is_no_longer_than_updates_is_not_seen_and_does_little(without_it: float) -> None:
    worth, report = train("auto", Lie(0.0, factor=1.0, noise=True))
    assert said(report) == {}
    assert worth > without_it - 5


def test_what_the_user_writes_between_two_trainings_may_be_of_any_length() -> None:
    model = {"w": np.zeros((12, 4))}
    with DeepDist(model, engine=SimulatedCluster(4, seed=1), update_norm_max="auto") as dd:
        dd.train(PARTITIONS, gradient, chunk_rows=10)
        dd.model["w"][...] = 1e6
        report = dd.train(PARTITIONS, gradient, chunk_rows=10)
        assert abs(dd.model["w"].mean() - 1e6) < 100
        assert said(report) == {}


@pytest.mark.slow
@pytest.mark.sockets
def test_processes_leave_out_what_is_absurd_and_the_report_says_so(without_it: float, tmp_path: Path) -> None:
    def sometimes_absurd(model: Any, rows: Iterator[int]) -> dict[str, Any]:
        wait_for_all(tmp_path)
        time.sleep(0.02)  # else one is through an epoch before it has heard of another
        task, update = current(), gradient(model, rows)
        return {"w": 1e6 * update["w"]} if task.epoch and task.partition == 3 else update

    with DeepDist({"w": np.zeros((12, 4))}, peers=3, update_norm_max="auto") as dd:
        report = dd.train(PARTITIONS, sometimes_absurd, epochs=3, chunk_rows=10)
        assert accuracy(dd.model) > without_it - 3
    assert sum(peer.conduct.left_out for peer in report.peers) == 20
    assert report.updates == 360
    assert report.consensus_distance < 1e-9


@pytest.mark.slow
@pytest.mark.sockets
def test_processes_name_who_sends_absurd_updates(tmp_path: Path) -> None:
    def absurd(model: Any, rows: Iterator[int]) -> dict[str, Any]:
        wait_for_all(tmp_path)
        update = gradient(model, rows)
        return {"w": 1e6 * update["w"]} if current().partition == 3 else update

    with DeepDist({"w": np.zeros((12, 4))}, peers=3) as dd, pytest.warns(DeepDistWarning, match="times as long"):
        report = dd.train(PARTITIONS, absurd, epochs=2, chunk_rows=10)
    assert sum(peer.conduct.absurd for peer in report.peers) >= 3
    assert {peer.conduct.is_merged for peer in report.peers} == {True, False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "master"}, "update_norm_max='auto' with mode='master', expected None"),
        ({"discipline": "mix"}, "update_norm_max='auto' with discipline='mix', expected None, and mixing="),
    ],
)
def test_a_limit_is_for_peers_that_have_each_other_s_updates(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DeepDist({"w": np.zeros(3)}, update_norm_max="auto", **options)
