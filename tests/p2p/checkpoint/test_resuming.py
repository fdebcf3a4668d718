"""Going on where a checkpoint stands: each unit of work counts once, and what would make others of them is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import ByPath, DeepDist, DeepDistWarning, Faults, Network, Report, SimulatedCluster
from p2p.checkpoint import reading
from p2p.checkpoint.plain import NotPlainError, Plain

from .conftest import DATA, PARTITIONS, ROWS, counting

CLUSTER = SimulatedCluster(peers=3, seed=3)


def resumed(path: Any, *, engine: Any = CLUSTER, model: Any = None, **training: Any) -> Any:
    """(the model, the report) when the rest is trained."""
    with DeepDist.resume(path, model, engine=engine, progress=False) as dd:
        report = dd.train(DATA, counting, **training)
        return dd.model, report


def body_of(manifest: Path) -> Any:
    return json.loads(manifest.read_bytes())["checkpoint"]


def test_from_every_checkpoint_the_end_is_that_of_the_undisturbed_training(written: Path) -> None:
    began = set()
    for manifest in sorted(written.glob("*.json")):
        count = body_of(manifest)["units"]["count"]
        model, report = resumed(manifest)
        assert (model["seen"] == 2.0).all()
        assert report.updates == 2 * PARTITIONS * ROWS // 2 - count
        assert report.updates_lost == 0
        began.add(count)
    assert {0, 24} < began
    assert len(began) > 5


def test_a_checkpoint_is_in_the_middle_of_partitions_of_which_it_has_what_it_says(written: Path) -> None:
    for manifest in written.glob("*.json"):
        checkpoint = reading.read(str(manifest))
        counts = np.zeros(PARTITIONS * ROWS)
        for _, partition, runs in checkpoint.record.units.chunks:
            for first, last, step in runs:
                for chunk in range(first, last + 1, step):
                    counts[partition * ROWS + 2 * chunk : partition * ROWS + 2 * chunk + 2] += 1
        assert (checkpoint.arrays["seen"] == counts).all()


@pytest.mark.parametrize("seed", range(4))
def test_under_faults_and_second_attempts_each_unit_counts_once(tmp_path: Path, fresh: Any, seed: int) -> None:
    """An executor may take updates with it; but none is lost or there twice by way of a checkpoint."""
    options: dict[str, Any] = {"fail": 0.3, "speculate": 0.4, "network": Network(loss=0.2, duplication=0.2)}
    cluster = SimulatedCluster(peers=3, seed=seed, **options)
    with DeepDist(fresh(), engine=cluster, progress=False) as dd:
        dd.train(DATA, counting, epochs=2, chunk_rows=1, checkpoint=tmp_path, every_s=2.0, keep=100)
    for manifest in sorted(tmp_path.glob("*.json"))[1:-1:2]:
        model, report = resumed(manifest, engine=SimulatedCluster(peers=2, seed=seed + 9, **options))
        assert (model["seen"] == 2.0).all(), (manifest.name, model["seen"])
        assert report.updates_lost == 0


def test_what_a_dead_executor_took_with_it_is_learned_again_by_who_resumes(tmp_path: Path, fresh: Any) -> None:
    cluster = SimulatedCluster(peers=3, seed=8, faults=Faults(crashes=[3.0]))
    with DeepDist(fresh(), engine=cluster, progress=False) as dd:
        dd.train(DATA, counting, epochs=2, chunk_rows=1, checkpoint=tmp_path, every_s=1.0, keep=100)
    for manifest in sorted(tmp_path.glob("*.json"))[1:6:2]:
        model, _ = resumed(manifest)
        assert (model["seen"] == 2.0).all()


def test_one_peer_goes_on_to_the_last_bit_whatever_the_gradient_makes_of_the_model(tmp_path: Path) -> None:
    """It takes its units in order, each with the model as all before have left it, and with the same random numbers."""

    def noisy(model: Any, rows: Iterator[int]) -> dict[str, Any]:
        return {"w": 0.1 * (np.sin(model["w"]) * sum(rows) + np.random.normal(size=5))}

    cluster = SimulatedCluster(peers=1, seed=2)
    with DeepDist({"w": np.linspace(0, 1, 5)}, engine=cluster, seed=7, progress=False) as dd:
        dd.train(DATA, noisy, epochs=2, chunk_rows=1, checkpoint=tmp_path, every_s=7.0, keep=100)
        expected = dd.model["w"].copy()
    manifests = sorted(tmp_path.glob("*.json"))
    assert len(manifests) > 4
    for manifest in manifests:
        with DeepDist.resume(manifest, engine=SimulatedCluster(peers=1, seed=5), progress=False) as dd:
            dd.train(DATA, noisy)
            assert dd.model["w"].tobytes() == expected.tobytes()


def test_a_resumed_training_writes_on_and_is_resumed_itself(written: Path, tmp_path: Path) -> None:
    first = sorted(written.glob("*.json"))[4]
    for name in (first.name, body_of(first)["tensors"]["name"]):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    with DeepDist.resume(tmp_path, engine=CLUSTER, progress=False) as dd:
        dd.train(DATA, counting, checkpoint=tmp_path, every_s=1.0, keep=100)
    manifests = sorted(tmp_path.glob("*.json"))
    assert {body_of(each)["lineage"] for each in manifests} == {body_of(first)["lineage"]}
    counts = [body_of(each)["units"]["count"] for each in manifests]
    assert counts == sorted(counts)
    assert counts[0] == counts[1] == body_of(first)["units"]["count"]
    for manifest in manifests[2:]:
        assert (resumed(manifest)[0]["seen"] == 2.0).all()


def test_a_second_training_of_a_session_has_units_of_its_own(tmp_path: Path, fresh: Any) -> None:
    with DeepDist(fresh(), engine=CLUSTER, progress=False) as dd:
        dd.train(DATA, counting, chunk_rows=2)
        dd.model["seen"][0] += 100
        dd.train(DATA, counting, chunk_rows=2, checkpoint=tmp_path, every_s=1.0, keep=100)
    for manifest in sorted(tmp_path.glob("*.json"))[::2]:
        assert body_of(manifest)["training"]["epochs_before"] == 1
        with DeepDist.resume(manifest, engine=CLUSTER, progress=False) as dd:
            dd.train(DATA, counting)
            assert dd.model["seen"].tolist() == [102.0] + [2.0] * 23
            dd.train(DATA, counting, epochs=1, chunk_rows=4)
            assert dd.model["seen"].tolist() == [103.0] + [3.0] * 23


@pytest.mark.parametrize(
    ("session", "training", "message"),
    [
        ({"codec": "float16"}, {}, r"with codec='auto'; it goes on with codec='float16', as given"),
        ({}, {"combine": "mean"}, r"with combine=None; it goes on with combine='mean', as given"),
        ({}, {"epochs": 3}, r"with epochs=2; it goes on with epochs=3, as given"),
        ({"codec": None}, {}, r"with codec='auto'; it goes on with codec=None"),
    ],
)
def test_what_is_given_and_differs_is_told_and_used(written: Path, session: Any, training: Any, message: str) -> None:
    def go_on(session: Any, training: Any) -> Report:
        with DeepDist.resume(written, engine=SimulatedCluster(peers=2), progress=False, **session) as dd:
            return dd.train(DATA, counting, **training)

    with pytest.warns(DeepDistWarning, match=message) as told:
        go_on(session, training)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go_on({"seed": 0, "codec": "auto", "mode": "p2p"}, {"epochs": 2, "chunk_rows": 2})


def test_more_epochs_may_be_asked_for_and_fewer_may_not(written: Path) -> None:
    manifest = sorted(written.glob("*.json"))[3]
    assert (resumed(manifest, epochs=3)[0]["seen"] == 3.0).all()
    with pytest.raises(UsageError, match="epochs=1, expected at least 2 as in the checkpoint at"):
        resumed(manifest, epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_rows": 3}, "chunk_rows=3, expected 2 as in the checkpoint at .*: its units of work would be others"),
        ({"exchange": "partition"}, "exchange='partition', expected 'chunk' as in the checkpoint at"),
    ],
)
def test_what_makes_other_units_is_refused_and_may_be_tried_again(written: Path, options: Any, message: str) -> None:
    with DeepDist.resume(written, engine=CLUSTER, progress=False) as dd:
        with pytest.raises(UsageError, match=message):
            dd.train(DATA, counting, **options)
        with pytest.raises(UsageError, match="the data has 5 partitions, expected 6 as in the checkpoint at"):
            dd.train(DATA[1:], counting)
        dd.train(DATA, counting, chunk_rows=2)
        assert (dd.model["seen"] == 2.0).all()


def test_a_resumed_training_that_fails_is_not_taken_for_done(written: Path) -> None:
    def failing(model: Any, rows: Iterator[int]) -> Any:
        raise ValueError("a slip")

    engine = SimulatedCluster(peers=3, seed=4)
    with DeepDist.resume(sorted(written.glob("*.json"))[3], engine=engine, progress=False) as dd:
        with pytest.raises(ValueError, match="a slip"):
            dd.train(DATA, failing)
        with pytest.raises(UsageError, match=r"was not finished, .*: go on by another DeepDist.resume\(path\)"):
            dd.train(DATA, counting)
    with pytest.raises(UsageError, match="path is a NoneType, expected a folder or a URL"):
        DeepDist.resume(None)  # type: ignore[arg-type]


def test_the_user_s_home_is_where_checkpoints_go(tmp_path: Path, fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with DeepDist(fresh(), engine=SimulatedCluster(2), progress=False) as dd:
        dd.train(DATA, counting, checkpoint="~/run", every_s=60)
    assert (tmp_path / "run").is_dir()
    DeepDist.resume("~/run", engine=SimulatedCluster(2))


def test_another_seed_is_refused(written: Path) -> None:
    with pytest.raises(UsageError, match="seed=4, expected 0 as in the checkpoint at"):
        DeepDist.resume(written, seed=4)


# ------------------------------------------------------------------------------------------------------------- models


class Box:
    """Arrays, numbers and texts."""

    w: Any
    rate: Any
    names: Any
    layers: Any

    def __init__(self) -> None:
        raise AssertionError("nobody calls this")


class Odd(dict):
    """No plain dict."""


def box() -> Box:
    made = Box.__new__(Box)
    made.w, made.rate, made.names, made.layers = np.arange(3.0), 0.25, ["a", ("b", 2)], [{"b": np.ones(2, np.float32)}]
    return made


def add(model: Any, rows: Any) -> Any:
    return {"w": np.ones(3)}


def kept(model: Any, folder: Path, **options: Any) -> None:
    with DeepDist(model, engine=SimulatedCluster(peers=1), progress=False, **options) as dd:
        dd.train([[1]] * 4, add, checkpoint=folder, every_s=100.0)


def test_an_object_of_plain_attributes_needs_its_class_and_no_pickle(tmp_path: Path) -> None:
    kept(box(), tmp_path, parameters=["w"])
    assert not list(tmp_path.glob("*.pickle"))
    with pytest.raises(UsageError, match=r"of an object of class .*:Box, which is not looked for by its name: give"):
        DeepDist.resume(tmp_path)
    with DeepDist.resume(tmp_path, Box, engine=SimulatedCluster(peers=1), progress=False) as dd:
        assert isinstance(dd.model, Box)
        assert (dd.model.w.tolist(), dd.model.rate, dd.model.names) == ([4.0, 5.0, 6.0], 0.25, ["a", ("b", 2)])
        assert dd.model.layers[0]["b"].tolist() == [1.0, 1.0]
        assert dd.model.layers[0]["b"].dtype == np.float32
    other = box()
    with DeepDist.resume(tmp_path, other, engine=SimulatedCluster(peers=1), progress=False) as dd:
        assert other.w.tolist() == [4.0, 5.0, 6.0]


class Slotted:
    __slots__ = ("a",)


class Own:
    def __getstate__(self) -> Any:
        return {}


W = np.arange(3.0)
TWICE = [1, 2]


@pytest.mark.parametrize(
    "more",
    [Odd(a=1), Slotted(), Own(), [TWICE, TWICE], np.array(["text"]), W[1:], {(1, 2): 3}, len, 1j, float("nan")],
    ids=lambda more: type(more).__name__,
)
def test_what_would_not_come_back_as_it_was_is_not_plain(more: Any) -> None:
    with pytest.raises(NotPlainError):
        Plain({"w": W, "more": more}, {"w": W})


def test_a_model_that_is_not_plain_is_pickled_and_opened_by_who_says_so(tmp_path: Path) -> None:
    model = {"w": np.arange(3.0), "more": Odd(a=1)}
    kept(model, tmp_path)
    assert len(list(tmp_path.glob("*.pickle"))) == 2
    with pytest.raises(UsageError, match=r"as a pickle, which runs code of whoever wrote it: .* allow_pickle=True"):
        DeepDist.resume(tmp_path)
    with DeepDist.resume(tmp_path, allow_pickle=True, engine=SimulatedCluster(peers=1), progress=False) as dd:
        assert dd.model["w"].tolist() == [4.0, 5.0, 6.0]
        assert isinstance(dd.model["more"], Odd)
    with DeepDist.resume(tmp_path, {"w": np.zeros(3)}, engine=SimulatedCluster(peers=1), progress=False) as dd:
        assert dd.model["w"].tolist() == [4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"w": np.zeros(4)}, r"'w' of the model is float64 of shape \(4,\), expected float64 of shape \(3,\)"),
        ({"w": np.zeros(3, np.float32)}, "'w' of the model is float32 of shape"),
        ({"v": np.zeros(3)}, "'w' of the model is not there, expected float64"),
        ({"w": np.zeros(3), "v": np.zeros(3)}, "'v' of the model is float64 .* expected not there"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, model: Any, message: str) -> None:
    kept({"w": np.zeros(3)}, tmp_path)
    with pytest.raises(UsageError, match=message):
        DeepDist.resume(tmp_path, model)


def test_a_counter_goes_on_and_is_known_as_it_was_when_the_training_began(tmp_path: Path) -> None:
    class Counting(ByPath):
        def sending(self, model: Any, arrays: Any) -> None:
            model["before"] = float(arrays["count"][0])

    told: list[float] = []

    def count(model: Any, rows: Any) -> Any:
        told.append(model["before"])
        return {"count": np.ones(1)}

    adapter = Counting(counters=frozenset({"count"}))
    model = {"count": np.full(1, 40.0), "before": 0.0}
    engine = SimulatedCluster(peers=1)
    with DeepDist(model, engine=engine, adapter=adapter, parameters=["count"], progress=False) as dd:
        dd.train([[1]] * 8, count, checkpoint=tmp_path, every_s=2.0, keep=100)
    manifest = sorted(tmp_path.glob("*.json"))[2]
    assert 0 < body_of(manifest)["units"]["count"] < 8
    told.clear()
    with DeepDist.resume(manifest, engine=engine, adapter=adapter, progress=False) as dd:
        dd.train([[1]] * 8, count)
        assert dd.model["count"] == [48.0]
        assert set(told) == {40.0}
        dd.train([[1]] * 8, count)
        assert set(told) == {40.0, 48.0}


def test_word_vectors_go_on_with_the_words_that_were_trained(tmp_path: Path) -> None:
    """gensim's model is no plain one; its learning rate falls along all words of the training."""
    from gensim.models import Word2Vec

    from p2p.models.word2vec import build_vocab
    from p2p.models.word2vec import gradient as skipgram

    corpus = [[["a", "b", "c", "d"] * 25 for _ in range(4)] for _ in range(4)]
    options: dict[str, Any] = {"vector_size": 4, "min_count": 1, "sg": 1, "sample": 0, "workers": 1}
    model = Word2Vec(epochs=2, **options)
    build_vocab(model, [text for part in corpus for text in part])
    with DeepDist(model, engine=SimulatedCluster(peers=1), progress=False) as dd:
        dd.train(corpus, skipgram, epochs=2, chunk_rows=1, checkpoint=tmp_path, every_s=4.0, keep=100)
        total = float(dd.model.words_trained[0])
    assert total == 2 * 4 * 4 * 100
    manifest = sorted(tmp_path.glob("*.json"))[2]
    with pytest.raises(UsageError, match="as a pickle"):
        DeepDist.resume(manifest)
    other = Word2Vec(epochs=2, **options)
    build_vocab(other, [text for part in corpus for text in part])
    for given in ({"model": other}, {"allow_pickle": True}):
        with DeepDist.resume(manifest, engine=SimulatedCluster(peers=1), progress=False, **given) as dd:
            assert 0 < dd.model.words_trained[0] < total
            dd.train(corpus, skipgram)
            assert dd.model.words_trained[0] == total
            assert dd.model.words_trained_before == 0.0
            assert dd.model.wv.most_similar("a", topn=1)
