"""One call trains: the words that belong together come together, and what comes back is a gensim model."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gensim.models import KeyedVectors, Word2Vec

from gossip.errors import UsageError
from p2p import Report, SimulatedCluster
from p2p.models import corpus
from p2p.models.word2vec import train

ANIMALS, TOOLS = ["cat", "dog", "cow", "hen", "pig"], ["saw", "axe", "file", "drill", "plane"]
SMALL: dict[str, Any] = {"vector_size": 16, "min_count": 1, "sample": 0, "alpha": 0.1, "epochs": 8, "progress": False}
KINDS: dict[str, dict[str, Any]] = {
    "skip-gram, negative sampling": {"sg": 1},
    "skip-gram, hierarchical softmax": {"sg": 1, "hs": 1, "negative": 0},
    "CBOW, negative sampling": {"epochs": 20},
    "CBOW, hierarchical softmax": {"hs": 1, "negative": 0, "epochs": 20},
}


def two_topics(rows: int = 400) -> list[list[str]]:
    """Sentences of eight words about animals or about tools, never both."""
    chance = random.Random(5)
    return [chance.choices(topic, k=8) for _ in range(rows // 2) for topic in (ANIMALS, TOOLS)]


def cluster() -> SimulatedCluster:
    return SimulatedCluster(peers=2, seed=1)


def margin(model: Word2Vec) -> float:
    """How much more similar words of one topic are than words of two, on average."""
    similarity = model.wv.similarity
    together = [similarity(a, b) for topic in (ANIMALS, TOOLS) for a in topic for b in topic if a < b]
    return float(np.mean(together) - np.mean([similarity(a, b) for a in ANIMALS for b in TOOLS]))


@pytest.fixture(autouse=True)
def no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_active_context", lambda: None)


@pytest.fixture(scope="module")
def trained() -> Word2Vec:
    return train(two_topics(), engine=cluster(), chunk_words=400, **{**SMALL, "sg": 1})


# ---------------------------------------------------------------------------------------------------- what is learned


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_belong_together_come_together(kind: str) -> None:
    settings = {**SMALL, **KINDS[kind]}
    model = train(two_topics(), engine=cluster(), chunk_words=400, **settings)
    untrained = Word2Vec(two_topics(), **{**settings, "epochs": 1, "alpha": 1e-9, "min_alpha": 1e-9, "progress": None})
    assert margin(untrained) < 0.2
    assert margin(model) > margin(untrained) + 0.3


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", ["skip-gram, negative sampling", "CBOW, hierarchical softmax"])
def test_two_processes_train_on_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "text.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(" ".join(row) + "\n" for row in two_topics())
    reports: list[Report] = []
    settings = {**SMALL, **KINDS[kind]}
    model = train(path, peers=2, chunk_words=400, on_report=reports.append, **settings)
    assert margin(model) > 0.3
    assert [peer.role for peer in reports[0].peers] == ["peer", "peer", "observer"]
    assert reports[0].rows == 400 * settings["epochs"]
    assert reports[0].updates == 8 * settings["epochs"]
    assert reports[0].updates_lost == 0
