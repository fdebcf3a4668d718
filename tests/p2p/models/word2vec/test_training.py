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
from p2p import DeepDist, Report, SimulatedCluster
from p2p.models.word2vec import corpus, gradient, train

ANIMALS, TOOLS = ["cat", "dog", "cow", "hen", "pig"], ["saw", "axe", "file", "drill", "plane"]
SMALL: dict[str, Any] = {"vector_size": 16, "min_count": 1, "sample": 0, "alpha": 0.1, "epochs": 8}
KINDS: dict[str, dict[str, Any]] = {
    "skip-gram, negative sampling": {"sg": 1, "alpha": 0.025, "epochs": 24},
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
    untrained = Word2Vec(two_topics(), **{**settings, "epochs": 1, "alpha": 1e-9, "min_alpha": 1e-9})
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
    settings = {**settings, "alpha": settings["alpha"] / 4, "epochs": 2 * settings["epochs"]}
    model = train(path, peers=2, chunk_words=400, on_report=reports.append, **settings)
    # On a loaded machine each process may not hear of the other's work for twenty chunks, and each word is in all of
    # them: simulated with that delay, larger steps give margins of 0.17 to 0.9, these 0.66 and more.
    assert margin(model) > 0.3
    assert [peer.role for peer in reports[0].peers] == ["peer", "peer", "observer"]
    assert reports[0].rows == 400 * settings["epochs"]
    assert reports[0].updates == 8 * settings["epochs"]
    assert reports[0].updates_lost == 0


def test_a_model_is_shaped_as_by_gensim() -> None:
    """Defaults are gensim's, and settings reach it."""
    settings: dict[str, Any] = {"vector_size": 8, "max_final_vocab": 6, "epochs": 1, "window": 3, "seed": 4}
    model = train(two_topics(), engine=cluster(), **settings)
    theirs = Word2Vec(two_topics(), workers=1, **settings)
    assert len(model.wv) == len(theirs.wv) <= 6
    for name in ("window", "min_count", "sg", "hs", "negative", "sample", "alpha", "min_alpha", "epochs", "seed"):
        assert getattr(model, name) == getattr(theirs, name)


def test_the_same_seed_gives_the_same_model(trained: Word2Vec) -> None:
    again = train(two_topics(), engine=cluster(), chunk_words=400, **{**SMALL, "sg": 1})
    other = train(two_topics(), engine=cluster(), chunk_words=400, **{**SMALL, "sg": 1, "seed": 2})
    assert np.array_equal(again.wv.vectors, trained.wv.vectors)
    assert not np.array_equal(other.wv.vectors, trained.wv.vectors)


@pytest.mark.parametrize(("words", "updates"), [(80, 40), (160, 24), (10**9, 8)])
def test_peers_exchange_after_so_many_words(words: int, updates: int) -> None:
    reports: list[Report] = []
    train(two_topics(), engine=cluster(), chunk_words=words, on_report=reports.append, **{**SMALL, "epochs": 1})
    assert reports[0].updates == updates  # of 3,200 words in sentences of 8 and in 8 partitions


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
def test_two_processes_exchange_continuously(tmp_path: Path) -> None:
    """A kernel takes 10,000 words: a partition of 20,000 is trained in two pieces, with an exchange between them."""
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(row) + "\n" for row in two_topics(20_000)))
    reports: list[Report] = []
    options: dict[str, Any] = {**SMALL, "sg": 1, "epochs": 1, "alpha": 0.005}
    model = train(path, peers=2, exchange="continuous", exchange_s=1e-4, on_report=reports.append, **options)
    assert reports[0].updates > 8
    assert reports[0].rows == 20_000
    assert (reports[0].updates_lost, reports[0].missing) == (0, ())
    assert model.words_trained == [160_000]
    assert reports[0].consensus_distance < 1e-5
    assert margin(model) > 0.3


def test_peers_exchange_once_a_partition() -> None:
    reports: list[Report] = []
    model = train(two_topics(), engine=cluster(), exchange="partition", on_report=reports.append, **{**SMALL, "sg": 1})
    assert reports[0].updates == 8 * 8
    assert margin(model) > 0.3


# -------------------------------------------------------------------------------------------------- while it is trained


def test_a_model_is_evaluated_while_it_is_trained() -> None:
    reports: list[Report] = []
    options: dict[str, Any] = {"evaluate": margin, "evaluate_every_s": 5, "on_report": reports.append}
    model = train(two_topics(), engine=cluster(), chunk_words=400, **options, **{**SMALL, "sg": 1})
    first, *between, last = (result.values["value"] for result in reports[0].evaluations)
    assert first < 0.2
    assert len(between) > 3
    assert last == pytest.approx(margin(model))
    assert last > first + 0.3


def test_it_can_be_asked_analogies() -> None:
    reports: list[Report] = []
    train(two_topics(), engine=cluster(), evaluate="analogies", on_report=reports.append, **{**SMALL, "epochs": 1})
    assert [result.values for result in reports[0].evaluations] == [{"analogies": 0, "asked": 0}] * 2


# ---------------------------------------------------------------------------------------------------------- as a file


def test_saved_as_gensim_s_model_it_is_the_same(trained: Word2Vec, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "model"))
    loaded = Word2Vec.load(str(tmp_path / "model"))
    assert loaded.wv.index_to_key == trained.wv.index_to_key
    assert np.array_equal(loaded.wv.vectors, trained.wv.vectors)
    assert np.array_equal(loaded.syn1neg, trained.syn1neg)
    assert loaded.wv.most_similar("cat") == trained.wv.most_similar("cat")


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_saved_in_word2vec_s_formats_the_vectors_are_the_same(binary: bool, trained: Word2Vec, tmp_path: Path) -> None:
    trained.wv.save_word2vec_format(str(tmp_path / "vectors"), binary=binary)
    loaded = KeyedVectors.load_word2vec_format(str(tmp_path / "vectors"), binary=binary)
    assert loaded.index_to_key == trained.wv.index_to_key
    assert np.array_equal(loaded.vectors, trained.wv.vectors)


# ------------------------------------------------------------------------------------------------------ to be gone on


def goes_on(start_from: Any, **settings: Any) -> Word2Vec:
    return train(two_topics(), start_from=start_from, engine=cluster(), chunk_words=400, **settings)


def test_training_goes_on_from_a_saved_model(tmp_path: Path) -> None:
    first = train(two_topics(), engine=cluster(), chunk_words=400, **{**SMALL, "sg": 1, "epochs": 2, "alpha": 0.05})
    first.save(str(tmp_path / "model"))
    before = first.wv.vectors.copy()
    given, loaded = goes_on(first, epochs=6), goes_on(tmp_path / "model", epochs=6)
    assert np.array_equal(given.wv.vectors, loaded.wv.vectors)
    assert np.array_equal(first.wv.vectors, before)
    assert (given.epochs, first.epochs, given.alpha) == (6, 2, 0.05)
    assert given.wv.index_to_key == first.wv.index_to_key
    assert margin(given) > margin(first) + 0.1


def test_going_on_with_hardly_any_rate_changes_hardly_anything(trained: Word2Vec) -> None:
    """It begins where the model is, and its schedule is its own."""
    near = goes_on(trained, alpha=1e-8, min_alpha=1e-8, epochs=1)
    assert np.abs(near.wv.vectors - trained.wv.vectors).max() < 1e-4
    assert not np.array_equal(near.wv.vectors, trained.wv.vectors)


def test_training_goes_on_on_another_text(trained: Word2Vec) -> None:
    rows = [["cat", "saw", "unheard"]] * 100
    mixed = train(rows, start_from=trained, engine=cluster(), epochs=20, window=2)
    assert (mixed.corpus_count, mixed.corpus_total_words) == (100, 300)
    assert not np.array_equal(mixed.wv["cat"], trained.wv["cat"])
    assert np.array_equal(mixed.wv["dog"], trained.wv["dog"])
    assert "unheard" not in mixed.wv


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectorsize": 3}, r"unknown settings vectorsize, expected some of vector_size, window, "),
        ({"compute_loss": True}, r"compute_loss is for gensim's own training in one process, .* by evaluate="),
        ({"callbacks": []}, r"callbacks is for gensim's own training in one process"),
        ({"vector_size": 0}, r"vector_size=0, expected at least 1"),
        ({"epochs": "5"}, r"epochs='5', expected an integer, at least 1"),
        ({"chunk_words": 0}, r"chunk_words=0, expected a number of words"),
        ({"exchange": "always"}, r"exchange='always', expected 'chunk', 'partition' or 'continuous'"),
        ({"exchange": "partition", "chunk_words": 9}, r"chunk_words=9 with exchange='partition', expected None"),
        ({"evaluate": "wisdom"}, r"evaluate='wisdom': no such file, expected 'analogies', 'similarity', or the path"),
        ({"evaluate_every_s": 1}, r"evaluate_every_s=1 without evaluate"),
        ({"on_report": 3}, r"on_report is a int, expected a function"),
        ({"negative": 0}, r"got hs=0 and negative=0"),
        ({"min_alpha": 1.0}, r"min_alpha=1.0 and alpha=0.025"),
        ({"min_count": 10_000}, r"min_count=10000 times, got none among 3200 words in 400 rows"),
        ({"start_from": "nowhere"}, r"start_from='nowhere': no such file"),
        ({"start_from": {}}, r"start_from is a dict, expected a gensim Word2Vec or the path"),
        ({"mode": "master-less"}, r"mode='master-less', expected"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(two_topics(), engine=cluster(), **options)


@pytest.mark.parametrize("sg", [0, 1])
def test_a_model_that_is_to_sum_up_its_loss_is_refused_before_anything_is_started(sg: int) -> None:
    model = Word2Vec(two_topics(), sg=sg, min_count=1, vector_size=4, compute_loss=True)
    with pytest.raises(UsageError, match="compute_loss=True, expected False"):
        train(two_topics(), start_from=model, engine=cluster())
    with DeepDist(model, peers=1) as dd:
        with pytest.raises(UsageError, match="compute_loss=True, expected False"):
            dd.train([two_topics()], gradient)
        assert not dd._session._registrar


def test_whole_texts_in_lists_of_one_are_no_tokens() -> None:
    texts = [["the cat sat"], ["the dog ran"]]
    for least in (1, 5):
        with pytest.raises(UsageError, match=r"got one token in each of 2 rows: .* split it, as by row\[0\].split"):
            train(texts, min_count=least, engine=cluster())
    assert train([["New York", "Rome"]] * 5, engine=cluster()).wv.index_to_key == ["New York", "Rome"]


def test_a_list_of_texts_is_a_corpus() -> None:
    assert train(["the cat", "the  dog"], min_count=2, engine=cluster()).wv.index_to_key == ["the"]


def test_a_model_that_does_not_fit_is_refused(trained: Word2Vec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"vector_size=17, expected the 16 of start_from"):
        goes_on(trained, vector_size=17)
    with pytest.raises(UsageError, match=r"vocabulary of start_from \(10 words\), got none among 2 words in 1 rows"):
        train([["other", "words"]], start_from=trained, engine=cluster())
    trained.wv.save_word2vec_format(str(tmp_path / "vectors"))
    trained.wv.save(str(tmp_path / "keyed"))
    for name in ("vectors", "keyed"):
        with pytest.raises(UsageError, match=rf"{name}': expected a Word2Vec that model.save\(path\) wrote"):
            goes_on(tmp_path / name)


def test_every_row_of_the_corpus_that_a_training_goes_on_with_is_counted(trained: Word2Vec) -> None:
    rows = [[], [], ["cat", "unheard"] * 7_000, "", "dog  saw"]
    model = train(rows, start_from=trained, engine=cluster(), epochs=1)
    assert (model.corpus_count, model.corpus_total_words) == (5, 14_002)
