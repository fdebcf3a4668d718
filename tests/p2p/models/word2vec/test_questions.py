"""Analogies and similarity of word vectors, by the files that come with gensim and by others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gensim.models import Word2Vec

from gossip.errors import UsageError
from p2p.models.word2vec.questions import Analogies, Similarity, of

PLACES = {"athens": (3, 0), "greece": (3, 2), "oslo": (0, 3), "norway": (0, 5), "rome": (5, 5), "italy": (5, 7)}


@pytest.fixture
def model() -> Word2Vec:
    """Countries lie beyond their capitals, always in the same direction."""
    model = Word2Vec(vector_size=2, min_count=1)
    model.build_vocab([list(PLACES)])
    for word, place in PLACES.items():
        model.wv.vectors[model.wv.key_to_index[word]] = place
    return model


def test_analogies_are_the_share_of_right_answers_that_can_be_given(model: Word2Vec, tmp_path: Path) -> None:
    path = tmp_path / "questions"
    path.write_text(": capitals\nathens greece oslo norway\nathens oslo greece italy\nathens greece paris france\n")
    measure = of(path)
    assert measure == Analogies(str(path))
    assert measure(model) == {"analogies": 0.5, "asked": 2}


def test_analogies_are_answered_as_by_gensim(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    words = [f"Word{number}" for number in range(60)]
    model = Word2Vec(vector_size=4, min_count=1)
    model.build_vocab([words])
    model.wv.vectors[:] = chance.normal(size=(60, 4))
    questions = [chance.choice(words, 3, replace=False).tolist() for _ in range(200)]
    answers = [model.wv.most_similar(positive=[b, c], negative=[a], topn=2) for a, b, c in questions]
    lines = [" ".join([*q, found[chance.integers(2)][0]]) for q, found in zip(questions, answers, strict=True)]
    path = tmp_path / "questions"
    path.write_text(": all\n" + "\n".join(lines) + "\n")
    share, _ = model.wv.evaluate_word_analogies(str(path))
    assert 0.3 < share < 0.7
    assert Analogies(str(path))(model) == {"analogies": share, "asked": 200}


def test_similarity_is_the_correlation_with_what_people_said(model: Word2Vec, tmp_path: Path) -> None:
    path = tmp_path / "pairs"
    path.write_text("# word\tword\tscore\nathens\toslo\t1\nathens\trome\t5\noslo\tnorway\t9\noslo\tparis\t3\n")
    measure = of(str(path))
    assert measure == Similarity(str(path))
    found = measure(model)
    assert found == {"similarity": pytest.approx(1.0), "asked": 3}


def test_where_no_word_is_known_nothing_is_asked(model: Word2Vec) -> None:
    analogies, similarity = of("analogies"), of("similarity")
    assert analogies is not None
    assert similarity is not None
    model.wv.key_to_index, model.wv.index_to_key = {f"x{i}": i for i in range(6)}, [f"x{i}" for i in range(6)]
    assert similarity(model) == {"similarity": 0, "asked": 0}
    assert analogies(model) == {"analogies": 0, "asked": 0}


def test_functions_are_taken_as_they_are() -> None:
    assert of(None) is None
    assert of(np.mean) is np.mean


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some words\n")
    with pytest.raises(UsageError, match=r"begins with 'some words\\n', expected ': name' of a section"):
        of(tmp_path / "text")
    with pytest.raises(UsageError, match=r"nowhere': no such file, expected 'analogies', 'similarity', or the path"):
        of("nowhere")
    with pytest.raises(UsageError, match=r"evaluate is a int, expected 'analogies', 'similarity', the path"):
        of(3)
