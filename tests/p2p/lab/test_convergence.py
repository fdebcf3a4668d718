"""`deepdist lab convergence`: a model that peers train, and the same in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gossip.errors import UsageError
from p2p.cli.main import main
from p2p.lab import results
from p2p.lab.convergence import rates_of
from p2p.lab.workloads import images
from p2p.lab.workloads.softmax import Softmax
from p2p.lab.workloads.workload import centralized, deal


def convergence(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    file = tmp_path / "out.json"
    done = CliRunner().invoke(main, ["lab", "convergence", *arguments, "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "centralized SGD" in done.output
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


@pytest.mark.slow
def test_gradient_tracking_ends_where_centralized_sgd_does_and_d_psgd_does_not(tmp_path: Path) -> None:
    rows = convergence(
        tmp_path,
        *("--peers", "16", "--shards", "label", "--rows", "160", "--rounds", "150"),
        *("--algorithm", "dpsgd,gradient-tracking", "--topology", "exponential,complete"),
    )
    above = {(row["algorithm"], row["topology"]): row["worst_above_centralized"] for row in rows}
    assert abs(above["GradientTracking()", "exponential"]) < 0.01
    assert above["DPsgd()", "exponential"] > 0.02
    assert abs(above["DPsgd()", "complete"]) < 1e-9  # the mean of all in each round is centralized SGD
    steps = results.read_records(tmp_path / "out.json")
    assert {"loss", "centralized_loss", "distance[w]", "distance[b]", "distance[w, top 1%]"} <= set(steps[0])
    for step in steps[:5]:  # what belongs to w or to b is all there is
        parts = float(step["distance[w]"]) ** 2 + float(step["distance[b]"]) ** 2
        assert parts == pytest.approx(float(step["distance"]) ** 2)
        bands = sum(float(step[f"distance[w, {band}]"]) ** 2 for band in ("top 1%", "1-10%", "rest"))
        assert bands == pytest.approx(float(step["distance[w]"]) ** 2)
    assert "Distance by how often a row is used" in (tmp_path / "out.html").read_text()


def test_word2vec_is_trained_on_a_text(tmp_path: Path) -> None:
    rows = convergence(
        tmp_path,
        *("--model", "word2vec", "--rows", "24", "--peers", "4", "--rounds", "4", "--batch", "2", "--topology", "ring"),
        *("--algorithm", "dpsgd"),
    )
    steps = results.read_records(tmp_path / "out.json")
    assert float(steps[-1]["loss"]) < float(steps[0]["loss"])
    assert rows[0]["final_loss"] == float(steps[-1]["loss"])
    assert {"distance[wv.vectors, top 1%]", "distance[syn1neg, rest]"} <= set(steps[0])
    done = CliRunner().invoke(main, ["lab", "repeat", str(tmp_path / "out.json")])
    assert "all the same again" in done.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--model gpt", "model 'gpt', expected one of digits, mnist, word2vec"),
        ("--model mnist", "needs --data FOLDER"),
        ("--model mnist --data nowhere", "nowhere lacks train-images"),
        ("--model word2vec --data nowhere.txt", "nowhere.txt cannot be read"),
        ("--data here", "--data is for mnist"),
        ("--shards color", "shards 'color', expected one of iid, label"),
        ("--rate 0", "rate 0, expected more than 0"),
        ("--rows 10", "10 rows for 16 peers"),
        ("--rows 160 --batch 11", "batch 11, expected at most the 10 rows"),
        ("--download", "--download is for --model mnist"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, arguments: str, says: str) -> None:
    file = tmp_path / "out.json"
    done = CliRunner().invoke(main, ["lab", "convergence", *arguments.split(), "--json", str(file)])
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert not file.exists()


def test_each_algorithm_is_tried_at_each_rate_and_the_best_of_each_is_marked(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = CliRunner().invoke(
        main,
        [
            *("lab", "convergence", "--algorithm", "dpsgd,relay-sum,gradient-tracking", "--topology", "path"),
            *("--peers", "8", "--rows", "80", "--rounds", "100", "--rate", "0.5,4,gradient=1", "--seeds", "2"),
            *("--json", str(file)),
        ],
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())["rows"]
    assert [(row["algorithm"], row["rate"]) for row in rows] == [
        ("DPsgd()", 0.5),
        ("DPsgd()", 4.0),
        ("RelaySum()", 0.5),
        ("RelaySum()", 4.0),
        ("GradientTracking()", 1.0),
    ]
    assert [row.get("best") for row in rows[2:]] == [False, True, None]
    assert rows[3]["mean_loss"] < rows[2]["mean_loss"]
    assert sum(bool(row.get("best")) for row in rows[:2]) == 1
    assert "The best rate of each:" in done.output
    assert "Loss by rate" in (tmp_path / "out.html").read_text()
    assert all(row["centralized_loss"] == rows[0]["centralized_loss"] for row in rows), "the best of all rates"
    assert "all the same again" in CliRunner().invoke(main, ["lab", "repeat", str(file)]).output


def test_rates_are_read_for_all_or_by_algorithm() -> None:
    algorithms = ("DPsgd()", "Every(4, DPsgd())", "RelaySum()")
    assert rates_of(algorithms, ("0.5", "relay=4", "relay-sum=8")) == {
        "DPsgd()": (0.5,),
        "Every(4, DPsgd())": (0.5,),
        "RelaySum()": (4.0, 8.0),
    }
    assert rates_of(algorithms, ("Every(4, DPsgd())=1", "dpsgd=2", "relay=3"))["Every(4, DPsgd())"] == (1.0,)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (("x",), "rate 'x', expected a number, or ALGORITHM=NUMBER"),
        (("-1",), "rate -1, expected more than 0"),
        (("nan",), "expected more than 0"),
        (("1", "choco=2"), "names 0 algorithms, expected one of DPsgd"),
        (("relay=1",), r"no rate for DPsgd\(\), expected one such as dpsgd=0.5"),
        (("1", "1.0"), "rate 1 of DPsgd.* is given twice"),
    ],
)
def test_rates_that_cannot_be_are_refused(written: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        rates_of(("DPsgd()", "RelaySum()"), written)


@pytest.mark.long
@pytest.mark.slow
def test_relay_sum_is_ahead_on_trees_with_different_data_with_and_without_loss(tmp_path: Path) -> None:
    rows = convergence(
        tmp_path,
        *("--algorithm", "relay-sum,gradient-tracking,dpsgd", "--topology", "path,binary-tree", "--loss", "0,0.3"),
        *("--rate", "relay=8,gradient=1,dpsgd=1", "--rows", "160", "--rounds", "300", "--seeds", "2"),
    )
    loss = {(row["topology"], row["loss"], row["algorithm"]): row["mean_loss"] for row in rows}
    error = max(row["mean_loss_se"] for row in rows)
    for topology in ("path", "binary-tree"):
        for lost in (0.0, 0.3):
            relay, tracking, averaging = (
                loss[topology, lost, name] for name in ("RelaySum()", "GradientTracking()", "DPsgd()")
            )
            assert relay + error < tracking < averaging - error


def test_the_steps_of_all_peers_are_those_of_each_on_its_own_rows() -> None:
    pixels, labels = images.drawn(60, seed=0)
    softmax = Softmax(pixels, labels, peers=3, shards="label", rate=0.5, batch=0, seed=0)
    x = np.random.default_rng(0).normal(size=(3, len(softmax.start)))
    delta = softmax.delta(x, 0)
    # one place with all rows: the gradient of the loss is the mean of the peers' gradients, by finite differences
    same = np.repeat(x[:1], 3, axis=0)
    gradient = -softmax.delta(same, 0).mean(axis=0) / 0.5
    random = np.random.default_rng(1)
    for _ in range(5):
        way = random.normal(size=len(softmax.start))
        near = (softmax.loss(x[0] + 1e-5 * way) - softmax.loss(x[0] - 1e-5 * way)) / 2e-5
        assert near == pytest.approx(float(gradient @ way), rel=1e-6)
    np.testing.assert_allclose(delta[0], softmax.delta(same, 0)[0])


def test_batches_depend_on_seed_and_round_only() -> None:
    pixels, labels = images.drawn(60, seed=0)
    softmax = Softmax(pixels, labels, peers=3, shards="iid", rate=0.5, batch=4, seed=0)
    x = np.zeros((3, len(softmax.start)))
    np.testing.assert_array_equal(softmax.delta(x, 5), softmax.delta(x, 5))
    assert not np.array_equal(softmax.delta(x, 5), softmax.delta(x, 6))
    _, losses = centralized(softmax, 3, 20)
    assert len(losses) == 21
    assert losses[-1] < losses[0]


def test_rows_are_dealt_by_label_or_at_random() -> None:
    labels = np.arange(103) % 10
    dealt = deal(labels, 5, "label", np.random.default_rng(0))
    assert dealt.shape == (5, 20)
    assert len(np.unique(dealt)) == 100
    assert all(len(np.unique(labels[rows])) <= 3 for rows in dealt)
    assert all(len(np.unique(labels[rows])) > 5 for rows in deal(labels, 5, "iid", np.random.default_rng(0)))
    with pytest.raises(UsageError, match="4 rows for 5 peers"):
        deal(labels[:4], 5, "iid", np.random.default_rng(0))
