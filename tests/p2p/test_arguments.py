"""What users pass in: taken, or refused by name at once. An argument without a row here fails: none is forgotten."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from gensim.models import Word2Vec
from pyspark import RDDBarrier

from gossip import compression, mixing, topology
from gossip.errors import UsageError
from gossip.mixing.strategies import bad
from gossip.mixing.strategy import Strategy
from gossip.sim.faults import Lie, Strike, Victim
from p2p import LBFGS, DeepDist, Faults, Network, SimulatedCluster
from p2p.adapters import ByPath
from p2p.descents import SGD, LocalSteps
from p2p.models.word2vec import build_vocab
from p2p.models.word2vec.training import Settings
from p2p.models.word2vec.training import train as train_word2vec
from p2p.worker.job import Rhythm

NAN, INF = math.nan, math.inf
NO_NUMBER: list[Any] = [True, np.bool_(True), "1", NAN, INF, [1], np.array(1), 1j]
NO_INTEGER = [*NO_NUMBER, 1.5, 2.0, np.float64(2)]
COUNT = [*NO_INTEGER, 0, -1, np.int64(0), None]
OR_NONE = [value for value in COUNT if value is not None]
SECONDS = [*NO_NUMBER, 0, -1.0, np.float32("nan"), 1e10, 10**400]
FROM_0 = [*NO_NUMBER, -1.0, None]
SHARE = [*NO_NUMBER, -0.1, 1.5, None]
SIZE, CHOICE, BELOW_ONE = [*NO_INTEGER, -1, None], [*NO_INTEGER, 2, -1, None], [*SHARE, 1.0]
FLAG = [1, 0, "yes", np.int64(1)]
WORD = ["other", "", 3, ["chunk"], np.array(["chunk"]), object()]
FUNCTION = [3, "name", {}]

Row = Mapping[str, list[Any]]

PANDAS = type("DataFrame", (), {"__module__": "pandas", "__iter__": lambda frame: iter(["text"]), "iloc": None})
"""What it looks like to who does not import it."""


def gradient(model: Any, rows: Any) -> Any:
    return {"w": np.ones(1)}


def session(**options: Any) -> Any:
    return DeepDist(**{"model": {"w": np.zeros(1)}, **options})


def mixed(**options: Any) -> Any:
    return session(discipline="mix", peers=4, **options)


def trained(**options: Any) -> Any:
    with DeepDist({"w": np.zeros(1)}, engine=SimulatedCluster(peers=1), progress=False) as dd:
        return dd.train(**{"data": [[1]], "gradient": gradient, **options})


def words(**options: Any) -> Any:
    return train_word2vec(**{"corpus": [["a", "b"]] * 9, "peers": 1, "progress": False, **options})


def vocabulary(**options: Any) -> Any:
    return build_vocab(**{"model": Word2Vec(min_count=1), "corpus": [["a"]], **options})


SESSION: Row = {
    "model": [None, 7, "w", {}, [None], []],
    "mode": WORD,
    "discipline": WORD,
    "parameters": ["w", [0], ("w", "w"), {"w": 1}, 3],
    "adapter": ["words", 3, ByPath],
    "codec": ["zip", 3, compression.Int8()],
    "peers": OR_NONE,
    "engine": ["simulated", 3, Network()],
    "optimizer": ["lbfgs", 3, LBFGS],
    "seed": [*NO_INTEGER, None],
    "progress": FLAG,
    "drain_timeout_s": FROM_0,
    "update_norm_max": [*(value for value in NO_NUMBER if value is not None), "car", 0.0, -1.0, INF],
    "master": [5000, "", "host", b"host:1", ["host:1"], True],
    "token": ["", 5, True, False, "a-token-of-thirty-two-characters"],
    "standbys": [*NO_INTEGER, None, -2, 1, 3, 2],
    "on_master_loss": [*WORD, "p2p"],
}
OPTIMIZER: Row = {
    "history": COUNT,
    "max_passes": COUNT,
    "line_search_passes": COUNT,
    "gradient_tolerance": [*FROM_0, INF],
    "decrease_tolerance": [*FROM_0, INF],
    "l2": [*FROM_0, INF],
    "sufficient_decrease": [*SHARE, 0.0, 1.0],
    "curvature": [*SHARE, 0.0, 1.0],
    "shards": OR_NONE,
    "backup_after": [*NO_NUMBER, 0.0, -1.0],
}
MIXED: Row = {
    "topology": [3, "rings", ["ring"], lambda peers: "ring"],
    "mixing": [3, "x", mixing.PushSum],
}
TRAINING: Row = {
    "data": [None, 3, "text", [], [3], {1: 2}, [iter([1])], ["text"], [{1: 2}]],
    "gradient": [*FUNCTION, None],
    "descent": FUNCTION,
    "epochs": OR_NONE,
    "chunk_rows": OR_NONE,
    "combine": WORD,
    "exchange": [*WORD, None],
    "exchange_s": SECONDS,
    "evaluate": FUNCTION,
    "evaluate_every_s": SECONDS,
    "stop_when": [*FUNCTION, lambda evaluations: True, dict],
    "checkpoint": [3, "", b"folder", ["folder"], {}],
    "every_s": SECONDS,
    "keep": OR_NONE,
    "watchers": [None, 3, "text", [3], [None], {1: 2}],
    "feeders": [None, 3, "text", [3], [None], {1: 2}],
    "on_incomplete": [*WORD, None],
    "max_staleness": [*NO_INTEGER, 0],
    "on_bad_update": [*WORD, "drop"],
    "staleness_weight": [*WORD, "inverse", lambda staleness: 1.0],
    "n_fetch": [*COUNT, 2],
    "n_push": [*COUNT, 2],
    "mode": [*WORD, "master"],
}
WORDS: Row = {
    "corpus": [None, 3, b"text", {"a"}, iter([["a"]])],
    "column": [3, "words", ["words"]],
    "encoding": [3, "utf-8", "klingon"],
    "start_from": [3, {}, "nowhere"],
    "peers": OR_NONE,
    "mode": WORD,
    "chunk_words": OR_NONE,
    "exchange": WORD,
    "exchange_s": SECONDS,
    "evaluate": [3, "wisdom", []],
    "evaluate_every_s": SECONDS,
    "sc": [3, object()],
    "engine": ["simulated", 3],
    "progress": FLAG,
    "on_report": FUNCTION,
    "stop_when": [*FUNCTION, lambda evaluations: True, dict],
    "checkpoint": [3, "", b"folder", ["folder"], {}],
    "every_s": SECONDS,
    "keep": OR_NONE,
    "resume": [*FLAG, True],
    **dict.fromkeys(("vector_size", "window", "epochs"), COUNT),
    **dict.fromkeys(("min_count", "negative", "seed"), SIZE),
    **dict.fromkeys(("sg", "hs"), CHOICE),
    **dict.fromkeys(("sample", "alpha", "min_alpha"), FROM_0),
    "max_final_vocab": OR_NONE,
}
CLUSTER: Row = {
    **dict.fromkeys(("peers", "tasks_per_peer"), COUNT),
    "seed": [*NO_INTEGER, None],
    "network": [None, 0.1, {}],
    "faults": [None, (), 0.1],
    "seconds_per_chunk": [*SECONDS, None],
    **dict.fromkeys(("fail", "speculate"), BELOW_ONE),
    "advert_gap_s": SECONDS,
}
NETWORK: Row = {
    **dict.fromkeys(("loss", "duplication", "late"), SHARE),
    **dict.fromkeys(("delay_mean_s", "replica_mean_s", "late_mean_s"), FROM_0),
}
TIMES: list[Any] = [1.0, "1", None, ("1",), (-1.0,), (NAN,), (True,), (INF,)]
PAIRS: list[Any] = [1.0, (1.0, 2.0), ((1.0,),), ((1.0, NAN),), ((-1.0, 1.0),), (("a", 1.0),)]
FAULTS: Row = {
    "partitions": [1.0, (1.0, 2.0, True), ((1.0, 2.0),), ((1.0, 2.0, 1),), ((NAN, 2.0, True),)],
    **dict.fromkeys(("crashes", "joins", "observer_crashes", "disconnections", "farewells"), TIMES),
    "short_lives": [1.0, ("1",), (-1.0,), (NAN,)],
    **dict.fromkeys(("pauses", "jumps", "observer_pauses", "observer_cuts"), PAIRS),
    "clocks": FLAG,
    "breaks": SHARE,
    "parts": [*NO_INTEGER, -1, None],
    "strikes": [1.0, (1.0,)],
    "lies": [1.0, (1.0,)],
}
LIE: Row = {
    "since": FROM_0,
    "factor": [*NO_NUMBER, 0.0, -1.0],
    **dict.fromkeys(("noise", "checks"), FLAG),
}
STRIKE: Row = {**dict.fromkeys(("since", "wait", "seconds"), FROM_0), "victim": [None, "the donor crashes"]}
RHYTHM: Row = {"when": [*WORD, None], "every_s": [*SECONDS, None]}
VOCABULARY: Row = {"model": [None, 3, []], "corpus": [None, 3, "text", b"text"]}

PEERS = [*NO_INTEGER, -1, 0, 1, None]
WEIGHTS = ["other", 3, None]
TOPOLOGY: Row = {
    "peers": PEERS,
    "weights": WEIGHTS,
    "rows": [*NO_INTEGER, 0, -1, 5],
    "k": COUNT,
    "degree": COUNT,
    "size": [*COUNT, 1],
    "fanout": COUNT,
    "seed": [*NO_INTEGER, -1, None],
    "probability": [*NO_NUMBER, 0.0, 1.5],
    "rewired": SHARE,
    "amount": [*NO_NUMBER, 0.0, 1.0, None],
}
STRATEGY: Row = {
    "rounds": COUNT,
    "strategy": [None, "x", mixing.DPsgd],
    "codec": ["x", 3, compression.Int8],
    "radius": [*NO_NUMBER, 0.0, -1.0, None],
    "gamma": [*NO_NUMBER, 0.0, -1.0, 2.0],
    "rate": [*NO_NUMBER, 0.0, None],
    "momentum": [*NO_NUMBER, -0.1, 1.0, None],
    "alpha": [*NO_NUMBER, -0.1, 1.0, None],
    "beta": [*NO_NUMBER, 0.0, None],
    "share": [*NO_NUMBER, 0.0, 0.7, None],
    "grid": [*NO_NUMBER, 0.0, 0.3],
    "peers": [value for value in PEERS if value is not None],
    "amount": [*NO_NUMBER, 0.0, 1.0, None],
    "scale": [*NO_NUMBER, None],
    "fraction": [*NO_NUMBER, 0.0, 1.5, None],
    "threshold": [*NO_NUMBER, 0.0, -1.0, None],
}
REQUIRED: Mapping[str, Any] = {
    "rounds": 2,
    "strategy": mixing.Choco(),
    "codec": compression.Int8(),
    "radius": 1.0,
    "peers": 9,
    "amount": 0.5,
    "fraction": 0.1,
    "threshold": 0.1,
}


def dataclasses_of(module: Any, base: type) -> list[type]:
    found = [vars(module)[name] for name in dir(module)]
    return [each for each in found if inspect.isclass(each) and issubclass(each, base) and _is_public(each)]


def _is_public(kind: type) -> bool:
    return (
        not inspect.isabstract(kind) and not kind.__name__.startswith("_") and bool(inspect.signature(kind).parameters)
    )


def with_peers(build: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **options: build(**{"peers": 16, **options})


def with_required(kind: type) -> Callable[..., Any]:
    needed = [name for name, each in inspect.signature(kind).parameters.items() if each.default is each.empty]
    return lambda **options: kind(**{**{name: REQUIRED[name] for name in needed}, **options})


def struck(**options: Any) -> Strike:
    return Strike(**{"since": 1.0, "victim": Victim.DONOR, "wait": 1.0, "seconds": 1.0, **options})


CALLS: list[tuple[str, Any, Callable[..., Any], Row]] = [
    ("DeepDist", DeepDist, session, SESSION),
    ("DeepDist, mixing", DeepDist, mixed, MIXED),
    ("train", DeepDist.train, trained, TRAINING),
    ("word2vec.train", train_word2vec, words, WORDS),
    ("build_vocab", build_vocab, vocabulary, VOCABULARY),
    ("SimulatedCluster", SimulatedCluster, SimulatedCluster, CLUSTER),
    ("Network", Network, Network, NETWORK),
    ("Faults", Faults, Faults, FAULTS),
    ("Strike", Strike, struck, STRIKE),
    ("Lie", Lie, lambda **options: Lie(**{"since": 1.0, **options}), LIE),
    ("Rhythm", Rhythm, Rhythm, RHYTHM),
    ("LBFGS", LBFGS, LBFGS, OPTIMIZER),
    *((name, build, with_peers(build), TOPOLOGY) for name, build in topology.NAMES.items()),
    *(
        (kind.__name__, kind, with_required(kind), STRATEGY)
        for module, base in ((mixing, Strategy), (bad, Strategy), (compression, compression.Codec))
        for kind in dataclasses_of(module, base)
        if kind not in (compression.Chain, bad.CompressedReplicas)
    ),
]


def parameters_of(function: Any) -> list[str]:
    """All but `self`, and the settings of word2vec one by one."""
    parameters = inspect.signature(function).parameters
    settings = list(Settings.__annotations__) if function is train_word2vec else []
    return [
        name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD and name != "self"
    ] + settings


ROWS = [
    pytest.param(call, name, value, id=f"{title}, {name}, {number}: {type(value).__name__}")
    for title, function, call, rows in CALLS
    for name, values in rows.items()
    for number, value in enumerate(values)
    if name in parameters_of(function)
]


@pytest.mark.parametrize(("call", "name", "value"), ROWS)
def test_what_an_argument_cannot_be_is_refused_by_name(call: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        call(**{name: value})
    assert name in str(caught.value)


def test_every_argument_has_its_row() -> None:
    missing = [
        f"{title}: {name}"
        for title, function, _, rows in CALLS
        for name in parameters_of(function)
        if name not in (SESSION.keys() | MIXED.keys() if function is DeepDist else rows)
    ]
    assert missing == []


def test_numpy_s_numbers_are_taken_and_become_python_s() -> None:
    cluster = SimulatedCluster(
        np.int64(3), np.int32(1), Network(np.float32(0.5)), Faults((), [np.float32(2)]), seconds_per_chunk=np.int8(2)
    )
    assert [type(value) for value in (cluster.peers, cluster.seed, cluster.network.loss)] == [int, int, float]
    assert cluster.faults.crashes == (2.0,)
    assert type(cluster.faults.crashes[0]) is float
    assert type(topology.ring(np.int64(5)).peers) is int
    assert repr(mixing.Every(np.int32(2), mixing.DiLoCo(rate=np.float64(0.5)))) == "Every(2, DiLoCo(rate=0.5))"
    assert repr(Rhythm("continuous", np.float64(0.5))) == "Rhythm(when='continuous', every_s=0.5)"
    report = trained(
        epochs=np.int64(2), chunk_rows=np.uint8(1), evaluate=lambda model: 1, evaluate_every_s=np.float32(9)
    )
    assert report.rows == 2
    model = words(
        epochs=np.int64(1),
        vector_size=np.int32(4),
        min_count=np.int8(1),
        chunk_words=np.int64(5),
        engine=SimulatedCluster(1),
        peers=None,
    )
    assert type(model.vector_size) is int


def test_a_training_that_may_be_incomplete_says_so() -> None:
    trained(on_incomplete="warn")
    with pytest.raises(UsageError, match="on_incomplete='ignore', expected 'raise' or 'warn'"):
        trained(on_incomplete="ignore")


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (trained, {"epochs": 2.0}, r"epochs=2.0, expected an integer, at least 1: got a float"),
        (trained, {"chunk_rows": 0}, r"chunk_rows=0, expected at least 1, or None for whole partitions"),
        (session, {"drain_timeout_s": None}, r"drain_timeout_s=None, expected seconds from 0 to 1e\+09$"),
        (session, {"parameters": "w"}, r"parameters='w', expected a tuple or list of names"),
        (vocabulary, {"corpus": "text"}, r"corpus is a str, expected an RDD or an iterable of texts"),
        (words, {"sg": 2}, r"sg=2, expected 0 or 1"),
        (
            mixed,
            {"topology": lambda peers: None},
            r"topology\(4\) returned a NoneType, expected a gossip.topology.Topol",
        ),
    ],
    ids=["epochs", "chunk_rows", "drain_timeout_s", "parameters", "corpus", "sg", "topology"],
)
def test_a_refusal_says_what_came_and_what_was_expected(call: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(**options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            PANDAS(),
            r"data is a DataFrame of pandas, .* make a list of partitions, such as .*, or spark.createDataFrame",
        ),
        (
            [PANDAS()],
            r"data\[0\] is a DataFrame of pandas, of which the rows would be .*: expected an iterable of rows",
        ),
        ([{"a": 1}], r"data\[0\] is a dict, of which the rows would be the keys"),
        (RDDBarrier(None), r"data is a RDDBarrier, expected an RDD: .* give the RDD itself"),
    ],
)
def test_data_that_looks_like_partitions_is_refused_with_what_to_do(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trained(data=data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_fetch": 2}, r"n_fetch=2 without chunk_rows, expected both"),
        ({"n_push": 2}, r"n_push=2 without chunk_rows, expected both"),
        (
            {"n_fetch": 2, "chunk_rows": 1, "max_staleness": 3},
            r"max_staleness=3 with n_fetch=2 and n_push=1, expected both to be the same",
        ),
    ],
)
def test_what_a_master_cannot_combine_is_told(options: dict[str, Any], message: str) -> None:
    with session(mode="master", peers=1) as dd, pytest.raises(UsageError, match=message):
        dd.train([[1]], gradient, **options)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("n_fetch", 2, "1"), ("n_push", 2, "1"), ("max_staleness", 3, "None"), ("staleness_weight", "inverse", "None")],
)
def test_what_is_for_a_master_is_refused_without_one(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=f"{name}={value!r} with mode='p2p', expected {expected}, or mode='master'"):
        trained(chunk_rows=1, **{name: value})


def test_a_gradient_and_a_descent_in_each_other_s_place_are_told() -> None:
    step, local = SGD(0.1), LocalSteps(lambda model, rows: None, SGD(0.1), rows=2)
    with pytest.raises(
        UsageError, match=r"gradient is SGD\(...\), a descent, expected train\(data, gradient, descent\)"
    ):
        trained(gradient=step, descent=lambda model, rows: None)
    with pytest.raises(UsageError, match=r"descent is LocalSteps\(...\), a gradient, expected train\("):
        trained(descent=local)


def test_a_column_of_pandas_becomes_a_corpus_as_the_error_says() -> None:
    with pytest.raises(
        UsageError, match=r"corpus is a DataFrame of pandas, .*; of a column of pandas, frame\['text'\]"
    ):
        words(corpus=PANDAS())
    with pytest.raises(
        UsageError, match=r"corpus is a DataFrame, of which the rows .* such as list\(corpus\['text'\]\)"
    ):
        vocabulary(corpus=PANDAS())
