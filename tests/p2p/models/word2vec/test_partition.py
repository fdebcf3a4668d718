"""One partition at a time is the same training as gensim's: same words, same learning rate, other random numbers."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gensim.models import Word2Vec
from gensim.models.word2vec import MAX_WORDS_IN_BATCH, train_batch_cbow, train_batch_sg
from gensim.test.utils import common_texts
from pyspark import Row as SparkRow

from gossip.errors import UsageError
from p2p.adapters.model import Model
from p2p.models.word2vec import build_vocab, gradient, skipgram
from p2p.models.word2vec import partition as module
from p2p.models.word2vec.lexicon import Lexicon
from p2p.models.word2vec.light import LightWord2Vec
from p2p.worker import task

KINDS: dict[str, dict[str, Any]] = {
    "skip-gram, negative sampling": {"sg": 1},
    "skip-gram, hierarchical softmax": {"sg": 1, "hs": 1, "negative": 0},
    "CBOW, negative sampling": {"sg": 0},
    "CBOW, hierarchical softmax": {"sg": 0, "hs": 1, "negative": 0},
    "skip-gram, both": {"sg": 1, "hs": 1},
}
LAYERS = ("wv.vectors", "syn1neg", "syn1")
ANIMALS, TOOLS = ["cat", "dog", "cow", "hen", "pig"], ["saw", "axe", "file", "drill", "plane"]


def two_topics(rows: int = 400) -> list[list[str]]:
    """Sentences of eight words about animals or about tools, never both."""
    chance = random.Random(5)
    return [chance.choices(topic, k=8) for _ in range(rows // 2) for topic in (ANIMALS, TOOLS)]


def make_model(corpus: Iterable[list[str]] = common_texts, **settings: Any) -> Word2Vec:
    model = Word2Vec(**{"sg": 1, "vector_size": 8, "min_count": 1, "sample": 0, "epochs": 1, **settings})
    build_vocab(model, corpus)
    model.words_trained = np.zeros(1)
    return model


def arrays_of(model: Word2Vec) -> dict[str, np.ndarray]:
    named = {"wv.vectors": model.wv.vectors, "syn1neg": getattr(model, "syn1neg", None)}
    named["syn1"] = getattr(model, "syn1", None)
    return {name: array for name, array in named.items() if array is not None}


def merge(model: Word2Vec, update: dict[str, np.ndarray]) -> None:
    for name, array in {**arrays_of(model), "words_trained": model.words_trained}.items():
        array += update[name]


Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Make the calls that follow a task of a run: `run(epoch=1, chunk=2)`."""

    def become(**fields: Any) -> None:
        defaults = {"epoch": 0, "epochs": 1, "partition": 0, "partitions": 4, "chunk": 0, "peers": 1, "seed": 3}
        current = task.TaskInfo(run="test", **{**defaults, **fields})
        monkeypatch.setattr(task, "current", lambda: current)

    become()
    return become


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[list[str]], float, int]]:
    """What the kernel is called with: batch, learning rate, and the number it would seed itself by."""
    calls: list[tuple[list[list[str]], float, int]] = []

    def kernel_of(model: Any) -> tuple[Callable[[Any], Any], Callable[[Any, float], int]]:
        def kernel(batch: Any, alpha: float) -> int:
            calls.append((batch, alpha, int(model.random.randint(0, 2**24))))
            return sum(map(len, batch))

        return module._tokens, kernel

    monkeypatch.setattr(module, "_kernel", kernel_of)
    return calls


# ---------------------------------------------------------------------------------------------------- the update


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_is_what_training_changed(kind: str, run: Run) -> None:
    model = make_model(common_texts * 20, **KINDS[kind])
    before = {name: array.copy() for name, array in arrays_of(model).items()}
    update = gradient(model, iter(common_texts * 20))
    words = update.pop("words_trained")
    assert update.keys() == before.keys()
    for name, array in arrays_of(model).items():
        assert np.array_equal(update[name], array - before[name])
        assert update[name].dtype == np.float32
        assert np.abs(update[name]).max() > 1e-4
        assert not np.shares_memory(update[name], array)
    assert words.tolist() == [20 * sum(map(len, common_texts))]
    assert words.dtype == np.float64


def test_the_update_trains_the_model_that_it_is_added_to(run: Run) -> None:
    """Two replicas that get each other's updates learn which words go together, and end with the same numbers."""
    corpus = two_topics()
    first = make_model(corpus, alpha=0.05, window=3)
    second = copy.deepcopy(first)
    for epoch in range(4):
        for chunk in range(4):
            updates = []
            for partition, model in enumerate((first, second)):
                run(epoch=epoch, epochs=4, partition=partition, partitions=2, chunk=chunk, peers=2)
                updates.append(gradient(copy.deepcopy(model), corpus[chunk * 100 + partition * 50 :][:50]))
            for model in (first, second):
                for update in updates:
                    merge(model, update)
    for name, array in arrays_of(first).items():
        np.testing.assert_allclose(array, arrays_of(second)[name])
    assert first.words_trained.tolist() == [4 * 400 * 8]
    similarity = first.wv.similarity
    together = [similarity(a, b) for topic in (ANIMALS, TOOLS) for a in topic for b in topic if a < b]
    apart = [similarity(a, b) for a in ANIMALS for b in TOOLS]
    assert min(together) > max(apart)


def test_a_light_model_trains_as_the_whole_one_does(run: Run) -> None:
    model = make_model(sample=1e-2, window=3)
    whole, light = (
        Model.from_skeleton(Model(model).skeleton()),
        Model.from_skeleton(Model(model).skeleton(gradient.light)),
    )
    assert isinstance(whole.model, Word2Vec)
    assert isinstance(light.model, LightWord2Vec)
    assert light.adapter == whole.adapter
    for copied in (whole, light):
        copied.load(Model(model).arrays())
    updates = [gradient(copied.model, common_texts) for copied in (whole, light)]
    assert updates[0].keys() == updates[1].keys()
    for name, array in updates[0].items():
        np.testing.assert_array_equal(updates[1][name], array)


@pytest.mark.parametrize("kind", ["CBOW, negative sampling", "skip-gram, both"])
def test_a_model_that_gensim_trains_travels_whole(kind: str) -> None:
    sent = Model.from_skeleton(Model(make_model(**KINDS[kind])).skeleton(gradient.light))
    assert isinstance(sent.model, Word2Vec)


def test_a_model_of_a_class_of_its_own_travels_whole() -> None:
    class Mine(Word2Vec):
        pass

    model = Mine(sg=1, min_count=1)
    build_vocab(model, common_texts)
    assert gradient.light(model) is None
    assert gradient.light({"w": np.zeros(3)}) is None


def test_batches_are_as_long_as_the_kernels_of_gensim_take() -> None:
    assert module.MAX_WORDS_IN_BATCH == MAX_WORDS_IN_BATCH


def test_a_model_without_words_trained_gets_no_such_update(run: Run) -> None:
    model = make_model()
    del model.words_trained
    assert gradient(model, common_texts).keys() == {"wv.vectors", "syn1neg"}


GENSIMS: dict[str, dict[str, Any]] = {
    **{kind: settings for kind, settings in KINDS.items() if kind != "skip-gram, negative sampling"},
    "skip-gram with its loss": {"sg": 1, "compute_loss": True},
    "skip-gram with lock factors": {"sg": 1},
}


@pytest.mark.parametrize("kind", GENSIMS)
def test_what_is_not_plain_skip_gram_is_trained_by_the_kernels_of_gensim(kind: str, run: Run) -> None:
    """Bit for bit, from the same state of the generator and at the same learning rate."""
    settings = GENSIMS[kind]
    ours = make_model(common_texts * 20, alpha=0.05, min_alpha=0.05, **settings)
    if kind == "skip-gram with lock factors":
        ours.wv.vectors_lockf = np.linspace(0, 1, len(ours.wv), dtype=np.float32)
    theirs = copy.deepcopy(ours)
    gradient(ours, common_texts * 20)
    entropy = np.random.SeedSequence((theirs.seed, task.current().seed), spawn_key=(0, 0, 0))
    theirs.random = np.random.RandomState(np.random.MT19937(entropy))
    work, neu1 = np.zeros(8, np.float32), np.zeros(8, np.float32)
    if theirs.sg:
        train_batch_sg(theirs, common_texts * 20, 0.05, work, theirs.compute_loss)
    else:
        train_batch_cbow(theirs, common_texts * 20, 0.05, work, neu1, theirs.compute_loss)
    for name, array in arrays_of(theirs).items():
        assert np.array_equal(arrays_of(ours)[name], array)
    assert ours.running_training_loss == theirs.running_training_loss
    assert bool(ours.running_training_loss) == theirs.compute_loss


def test_plain_skip_gram_is_trained_by_the_kernel_of_shared_negatives(run: Run) -> None:
    ours = make_model(common_texts * 20, alpha=0.05, min_alpha=0.05)
    theirs = copy.deepcopy(ours)
    gradient(ours, common_texts * 20)
    entropy = np.random.SeedSequence((theirs.seed, task.current().seed), spawn_key=(0, 0, 0))
    state = skipgram.random_state(np.random.RandomState(np.random.MT19937(entropy)))
    skipgram.train_batch(theirs, *Lexicon(theirs.wv.index_to_key).numbers(common_texts * 20), 0.05, state)
    for name, array in arrays_of(theirs).items():
        assert np.array_equal(arrays_of(ours)[name], array)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_trained_on_like_their_tokens(kind: str, run: Run) -> None:
    rows = [["human", "unheard"] * 8_000, *common_texts]
    tokens = make_model(rows, alpha=0.05, **KINDS[kind])
    texts = make_model(map(" ".join, rows), alpha=0.05, **KINDS[kind])
    assert texts.wv.index_to_key == tokens.wv.index_to_key
    update, other = gradient(tokens, rows), gradient(texts, [" ".join(rows[0]), *map("\t\n ".join, rows[1:])])
    assert update.keys() == other.keys()
    for name, change in update.items():
        np.testing.assert_allclose(other[name], change, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [[], [[], []], ["", " \n"]])
def test_rows_without_words_give_an_empty_update(rows: list[list[str]], run: Run) -> None:
    assert gradient(make_model(), rows) == {}


def test_words_outside_the_vocabulary_count_as_progress(run: Run) -> None:
    """The total of the learning rate counts them as well."""
    update = gradient(make_model(), [["human", "unheard", "of"]])
    assert update["words_trained"].tolist() == [3]


def test_cached_norms_are_dropped(run: Run) -> None:
    model = make_model()
    model.wv.fill_norms()
    gradient(model, common_texts)
    assert model.wv.norms is None


def test_it_trains_outside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "current", lambda: None)
    model = make_model()
    first, second = (gradient(copy.deepcopy(model), common_texts) for _ in range(2))
    assert np.array_equal(first["syn1neg"], second["syn1neg"])
    assert not np.array_equal(gradient(model, common_texts)["syn1neg"], gradient(model, common_texts)["syn1neg"])


# ---------------------------------------------------------------------------------------------------- randomness


def test_a_task_that_runs_again_computes_the_same(run: Run) -> None:
    model = make_model()
    used = copy.deepcopy(model)
    used.random.randint(10)  # the generator of the replica does not matter
    assert np.array_equal(gradient(model, common_texts)["syn1neg"], gradient(used, common_texts)["syn1neg"])


@pytest.mark.parametrize("change", ["epoch", "partition", "chunk", "seed"])
def test_no_two_tasks_draw_the_same_negative_samples(change: str, run: Run) -> None:
    model = make_model()
    update = gradient(copy.deepcopy(model), common_texts)
    run(**{change: 1})
    other = gradient(copy.deepcopy(model), common_texts)
    touched = [np.flatnonzero(np.abs(each["syn1neg"]).sum(axis=1)) for each in (update, other)]
    assert all(len(rows) for rows in touched)
    assert not np.array_equal(update["syn1neg"], other["syn1neg"])


def test_all_tasks_of_a_run_are_seeded_differently(run: Run, kernel_calls: list[Any]) -> None:
    model = make_model()
    tasks = [(epoch, partition, chunk) for epoch in range(5) for partition in range(5) for chunk in range(5)]
    for epoch, partition, chunk in tasks:
        run(epoch=epoch, partition=partition, chunk=chunk)
        gradient(model, common_texts)
    assert len({seed for _, _, seed in kernel_calls}) == len(tasks)


# ------------------------------------------------------------------------------------------------- learning rate


def test_the_learning_rate_falls_along_one_line_over_all_calls(run: Run, kernel_calls: list[Any]) -> None:
    rows = [["human"] * 6_000] * 8
    model = make_model(rows, alpha=0.05, min_alpha=0.01)
    for epoch in range(2):
        for partition in range(2):
            for chunk in range(2):
                run(epoch=epoch, epochs=2, partition=partition, partitions=2, chunk=chunk)
                model.words_trained += gradient(model, iter(rows[:2]))["words_trained"]
    rates = [alpha for _, alpha, _ in kernel_calls]
    np.testing.assert_allclose(rates, np.linspace(0.05, 0.01, 17)[:-1])  # a batch takes the rate at its beginning
    gradient(model, rows[:1])
    assert kernel_calls[-1][1] == pytest.approx(0.01)


def test_within_a_call_the_progress_of_the_other_peers_is_estimated(run: Run, kernel_calls: list[Any]) -> None:
    rows = [["human"] * 10_000] * 8
    model = make_model(rows, alpha=0.05, min_alpha=0.01)
    run(peers=4)
    gradient(model, rows[:3])
    assert [alpha for _, alpha, _ in kernel_calls] == pytest.approx([0.05, 0.03, 0.01])


def test_a_second_training_begins_its_own_schedule(run: Run, kernel_calls: list[Any]) -> None:
    model = make_model(alpha=0.05)
    run(epochs=1)
    model.words_trained[0] = model.words_trained_before = float(model.corpus_total_words)
    gradient(model, common_texts)
    assert kernel_calls[0][1] == 0.05


def test_the_learning_rate_stays_at_its_minimum_after_the_end(run: Run, kernel_calls: list[Any]) -> None:
    model = make_model(alpha=0.05, min_alpha=0.01)
    model.words_trained += 1e9
    gradient(model, common_texts)
    assert kernel_calls[0][1] == pytest.approx(0.01)


# ------------------------------------------------------------------------------------------------------- batches


def test_a_long_row_is_trained_to_its_end(run: Run) -> None:
    row = ["human"] * 24_000 + ["late", "later"] * 500
    model = make_model([row])
    before = model.wv.vectors.copy()
    assert gradient(model, [row])["words_trained"].tolist() == [25_000]
    for word in ("late", "later"):
        index = model.wv.key_to_index[word]
        assert not np.array_equal(model.wv.vectors[index], before[index])


def test_batches_hold_all_words_in_order_and_no_more_than_a_kernel_takes(run: Run, kernel_calls: list[Any]) -> None:
    chance = random.Random(7)
    rows = [
        [str(chance.randrange(50)) for _ in range(length)] for length in (1, 0, 9_999, 1, 25_000, 10_000, 3, 30_000)
    ]
    model = make_model(rows)
    gradient(model, tuple(map(tuple, rows)))
    batches = [[list(piece) for piece in batch] for batch, _, _ in kernel_calls]
    assert [word for batch in batches for piece in batch for word in piece] == [word for row in rows for word in row]
    assert max(sum(map(len, batch)) for batch in batches) == 10_000
    assert [len(piece) for batch in batches for piece in batch][:5] == [1, 9_999, 1, 10_000, 10_000]


def test_rows_are_read_as_a_stream(run: Run, kernel_calls: list[Any]) -> None:
    rows = [["human"] * 5_000] * 6
    read_before_calls: list[int] = []

    def stream() -> Iterator[list[str]]:
        for row in rows:
            read_before_calls.append(len(kernel_calls))
            yield row

    gradient(make_model(rows), stream())
    assert read_before_calls == [0, 0, 0, 1, 1, 2]


# -------------------------------------------------------------------------------------------------- the vocabulary


class Partitions:
    """As much of an RDD as counting needs, partition by partition."""

    context = SimpleNamespace(master="spark://host:7077", _jsc=object())

    def __init__(self, partitions: list[list[Any]]) -> None:
        self.partitions = partitions

    def mapPartitions(self, function: Callable[[Iterator[Any]], Iterable[Any]]) -> Partitions:  # noqa: N802
        return self.mapPartitionsWithIndex(lambda _, rows: function(rows))

    def mapPartitionsWithIndex(  # noqa: N802
        self, function: Callable[[int, Iterator[Any]], Iterable[Any]]
    ) -> Partitions:
        return Partitions([list(function(number, iter(part))) for number, part in enumerate(self.partitions)])

    def map(self, function: Callable[[Any], Any]) -> Partitions:
        return self.mapPartitions(lambda rows: map(function, rows))

    def getNumPartitions(self) -> int:  # noqa: N802
        return len(self.partitions)

    def groupByKey(self, parts: int) -> Partitions:  # noqa: N802
        groups: dict[Any, list[Any]] = {}
        for key, value in self.collect():
            groups.setdefault(key, []).append(value)
        return Partitions([[item for item in groups.items() if item[0] % parts == part] for part in range(parts)])

    def collect(self) -> list[Any]:
        return [item for part in self.partitions for item in part]


def many_ties() -> list[list[str]]:
    chance = random.Random(11)
    words = [f"{chance.randrange(300):03}" for _ in range(3_000)]
    return [words[start : start + 10] for start in range(0, 3_000, 10)]


def test_words_that_utf8_cannot_say_are_counted_on_spark_too() -> None:
    rows = [["\ud800", "a"]] * 6
    assert make_model(Partitions([rows[:3], rows[3:]])).wv.index_to_key == make_model(rows).wv.index_to_key


def test_the_vocabulary_does_not_depend_on_the_order_of_the_text() -> None:
    corpus = many_ties()
    expected = make_model(corpus, min_count=8, hs=1)
    counts = Counter(word for row in corpus for word in row)
    assert len(set(counts.values())) < len(counts) / 5  # most words are tied
    frequent = [word for word, count in counts.items() if count >= 8]
    assert expected.wv.index_to_key == sorted(frequent, key=lambda word: (-counts[word], word))
    shuffled = random.Random(1).sample(corpus, len(corpus))
    many = Partitions([corpus[start::40] for start in range(40)])  # more than the driver program would add up
    for other in (shuffled, iter(shuffled), Partitions([shuffled[:7], [], shuffled[7:]]), Partitions([corpus]), many):
        model = make_model(other, min_count=8, hs=1)
        assert model.wv.index_to_key == expected.wv.index_to_key
        assert model.wv.key_to_index == expected.wv.key_to_index
        assert (model.corpus_count, model.corpus_total_words) == (300, 3_000)
        assert np.array_equal(model.wv.vectors, expected.wv.vectors)
        assert np.array_equal(model.cum_table, expected.cum_table)
        assert all(map(np.array_equal, model.wv.expandos["code"], expected.wv.expandos["code"]))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_count": 9, "sample": 1e-3},
        {"sample": 0},
        {"sample": 3},
        {"max_final_vocab": 50},
        {"max_final_vocab": 50, "min_count": 12},
        {"sorted_vocab": 0},
        {"hs": 1, "negative": 0},
        {"ns_exponent": -0.5},
        {"null_word": 1},
    ],
    ids=str,
)
def test_the_vocabulary_is_that_of_gensim_but_for_the_order_of_ties(settings: dict[str, Any]) -> None:
    corpus = many_ties()
    theirs = Word2Vec(**{"min_count": 1, "vector_size": 8, **settings})
    theirs.build_vocab(corpus)
    ours = Word2Vec(**{"min_count": 1, "vector_size": 8, **settings})
    build_vocab(ours, Partitions([corpus[:100], corpus[100:]]))
    assert sorted(ours.wv.index_to_key) == sorted(theirs.wv.index_to_key)
    for word in theirs.wv.index_to_key:
        for attribute in ("count", "sample_int"):
            assert ours.wv.get_vecattr(word, attribute) == theirs.wv.get_vecattr(word, attribute)
    if settings.get("sorted_vocab") is None and ours.negative:
        assert np.array_equal(ours.cum_table, theirs.cum_table)
    assert ours.effective_min_count == theirs.effective_min_count
    assert (ours.corpus_count, ours.corpus_total_words) == (theirs.corpus_count, theirs.corpus_total_words)
    for name, array in arrays_of(ours).items():
        assert array.shape == arrays_of(theirs)[name].shape
        assert array.dtype == arrays_of(theirs)[name].dtype
    assert np.array_equal(ours.wv.vectors, theirs.wv.vectors)
    assert ours.sorted_vocab == theirs.sorted_vocab


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"human", r"expected rows that are texts \(str\) or lists of tokens, got bytes b'human'"),
        (7, r"expected rows that are texts \(str\) or lists of tokens, got int 7"),
        ((["human"],), r"got a tuple of list; for a DataFrame"),
        ({"text": "human"}, r"got a dict \{'text': 'human'\}: take one of its values, such as row\['text'\]"),
        ({"human"}, r"got a set \{'human'\}: take one"),
        (SparkRow(text="human"), r"got a Row Row\(text='human'\): .* its column: frame.rdd.map"),
        (["human", 7], r"lists of tokens \(str\), got one with a int: 7"),
    ],
)
def test_a_row_that_is_neither_text_nor_tokens_is_refused(row: Any, message: str, run: Run) -> None:
    for attempt in (lambda: gradient(make_model(), [row]), lambda: build_vocab(Word2Vec(), [row])):
        with pytest.raises(UsageError, match=message):
            attempt()


def test_a_model_that_cannot_be_trained_is_refused(run: Run) -> None:
    def refused(message: str, spoil: Callable[[Any], None]) -> None:
        model = make_model()
        spoil(model)
        with pytest.raises(UsageError, match=message):
            gradient(model, common_texts)

    with pytest.raises(UsageError, match=r"got an empty one; call build_vocab\(model, corpus\)"):
        gradient(Word2Vec(), common_texts)
    refused(r"corpus_total_words > 0.* got 0", lambda model: setattr(model, "corpus_total_words", 0))
    refused(r"min_alpha=0.1 and alpha=0.025", lambda model: setattr(model, "min_alpha", 0.1))
    refused(r"got hs=0 and negative=0", lambda model: setattr(model, "negative", 0))
    refused(r"'syn1neg': .* got float64", lambda model: setattr(model, "syn1neg", model.syn1neg.astype(float)))
    refused(r"'syn1neg': .* got float32 \(3, 8\)", lambda model: setattr(model, "syn1neg", model.syn1neg[:3]))
    refused(r"'wv.vectors': .* writable False", lambda model: model.wv.vectors.setflags(write=False))


def test_a_vocabulary_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(UsageError, match=r"got one with 12 words; make a new Word2Vec"):
        build_vocab(make_model(), common_texts)
    with pytest.raises(UsageError, match=r"min_count=5 times, got none among 29 words in 9 rows"):
        build_vocab(Word2Vec(min_count=5), common_texts)
    with pytest.raises(UsageError, match=r"none among 0 words in 0 rows"):
        build_vocab(Word2Vec(), Partitions([]))
    with pytest.raises(UsageError, match=r"max_vocab_size=None, got 10"):
        build_vocab(Word2Vec(max_vocab_size=10), common_texts)
    with pytest.raises(UsageError, match=r"max_final_vocab=1 leaves no word"):
        build_vocab(Word2Vec(max_final_vocab=1, min_count=1), [["a", "b"]])
