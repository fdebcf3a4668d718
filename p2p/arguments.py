"""Arguments of `DeepDist` and `train`: refused by name where they cannot be, before anything is started.

The checks of single values are those of `gossip.arguments`; the checks of values that must go together are here.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from gossip.arguments import flag, function, integer, number, one_of, seconds
from gossip.errors import UsageError
from gossip.trust.norms import AUTO, NormMax
from p2p.adapters.model import Model
from p2p.caution import warn
from p2p.checkpoint.writing import Place
from p2p.driver import evaluation
from p2p.driver.stopping import Stopping
from p2p.driver.watchers import check_watchers
from p2p.engines import Engine
from p2p.engines.choice import is_rdd
from p2p.master.coordinator import check_feeders
from p2p.master.staleness import Staleness, Weight, weight_of
from p2p.report import Evaluated
from p2p.server.messages import UNITS_MAX
from p2p.sessions.cluster import SimulatedCluster
from p2p.sessions.training import Training
from p2p.worker.combine import OUTER, check_rule
from p2p.worker.job import Progress, Pushes, Rhythm

if TYPE_CHECKING:  # where nothing is mixed, scipy and networkx are not imported: half a second, and 40 MB
    from gossip.mixing import Strategy
    from gossip.topology import Topology

CHECKPOINT_EVERY_S, CHECKPOINTS_KEPT = 30.0, 3
INCOMPLETE = ("raise", "warn")
Mode = Literal["p2p", "master", "sync", "averaging"]
MODES = get_args(Mode)
STEP_RULES = ("mean", "sum")
"""What the updates of a synchronous step may come to."""
EVALUATE_EVERY_S = 60.0
"""An evaluation of word vectors by analogies takes some ten seconds of a core."""


def of_session(
    mode: Any, peers: Any, engine: Any, seed: Any, progress: Any, drain_timeout_s: Any
) -> tuple[int | None, int, bool | None, float]:
    """`peers`, `seed`, `progress` and `drain_timeout_s` as they are to be used."""
    one_of("mode", mode, MODES)
    peers = None if peers is None else integer("peers", peers, 1)
    if engine is not None:
        _check_engine(engine, mode, peers)
    return (
        peers,
        integer("seed", seed),
        None if progress is None else flag("progress", progress),
        seconds("drain_timeout_s", drain_timeout_s, zero=True),
    )


def norm_max_of(value: Any, mode: str, mixes: bool, optimizes: bool) -> NormMax:
    """How long updates may be."""
    if value is None:
        return None
    expected = "a number above 0, 'auto', or None for updates of any length"
    limit: NormMax = AUTO
    if not (isinstance(value, str) and value == AUTO):
        limit = number("update_norm_max", value, expected, lambda each: 0.0 < each < math.inf)
    if mode != "p2p" or mixes or optimizes:
        where = "discipline='mix'" if mixes else "an optimizer" if optimizes else f"mode={mode!r}"
        advice = ", and mixing=gossip.mixing.ClippedGossip(radius)" if mixes else ""
        raise UsageError(
            f"update_norm_max={value!r} with {where}, expected None{advice}: it is for peers that have every update of "
            "each other"
        )
    return limit


def mode_of_training(
    value: Any, own: str, *, engine: Any, discipline: str, codec: Any, listens: bool, limit: NormMax
) -> Mode:
    """`train(mode=...)`, as it is to be used in a session with these arguments; None is for the session's `own`."""
    mode: Mode = one_of("mode", own if value is None else value, MODES)
    if mode == own:
        return mode
    if engine is not None:
        _check_engine(engine, mode, None)
    mixed(discipline, None, None, mode, engine)
    check_coded(codec, discipline, mode)
    norm_max_of(limit, mode, False, False)
    if listens:
        raise UsageError(
            f"mode={mode!r} in a session with master=..., expected None: who listens over HTTP takes updates for a "
            "master"
        )
    return mode


def training(
    *,
    mode: str,
    any_data: bool,
    coded: bool,
    stopping: Stopping,
    data: Any,
    gradient: Any,
    descent: Any,
    epochs: Any,
    chunk_rows: Any,
    combine: Any,
    exchange: Any,
    exchange_s: Any,
    evaluate: Any,
    evaluate_every_s: Any,
    watchers: Any,
    feeders: Any,
    on_incomplete: Any,
    max_staleness: Any,
    on_bad_update: Any,
    staleness_weight: Any,
    n_fetch: Any,
    n_push: Any,
    progress: Progress,
    tell: Callable[[Evaluated], object],
) -> Training:
    """What `train` was asked for. `any_data`: the engine knows what can be trained on. `coded`: the model has a codec.
    `tell` is called with each evaluation as it comes."""
    function("gradient", gradient, "gradient(model, rows)")
    for role, other, given in (("gradient", "descent", gradient), ("descent", "gradient", descent)):
        if getattr(given, "role", role) == other:
            raise UsageError(
                f"{role} is {type(given).__name__}(...), a {other}, expected train(data, gradient, descent), in this "
                "order"
            )
    if descent is not None:
        function("descent", descent, "descent(model, update) or None")
    epochs = 1 if epochs is None else integer("epochs", epochs, 1)
    if chunk_rows is not None:
        chunk_rows = integer("chunk_rows", chunk_rows, 1, "at least 1, or None for whole partitions")
    _check_combine(combine, mode)
    _check_steps(mode, gradient, descent)
    _check_continuous(
        exchange, combine or getattr(descent, "combine", None) or getattr(gradient, "combine", None), coded
    )
    one_of("on_incomplete", on_incomplete, INCOMPLETE)
    n_fetch, n_push = (_chunks(*each, mode, chunk_rows) for each in (("n_fetch", n_fetch), ("n_push", n_push)))
    evaluate_s = evaluation.checked(evaluate, evaluate_every_s, EVALUATE_EVERY_S)
    return Training(
        stopping=stopping,
        rhythm=rhythm(exchange, exchange_s, mode, descent, chunk_rows),
        watchers=check_watchers(watchers),
        feeders=check_feeders(feeders, mode),
        data=data if any_data else partitions(data),
        gradient=gradient,
        descent=descent,
        epochs=epochs,
        chunk_rows=chunk_rows,
        combine=combine,
        evaluation=None if evaluate is None else evaluation.Evaluation(evaluate, evaluate_s, tell, stopping),
        on_incomplete=on_incomplete,
        staleness=Staleness(
            _max_staleness(max_staleness, mode, n_fetch, n_push), _staleness_weight(staleness_weight, mode)
        ),
        pushes=Pushes(n_fetch, n_push, _drops_bad(on_bad_update, mode)),
        progress=progress,
    )


def standbys_of(value: Any, mode: str, optimizes: bool) -> int:
    """How many masters more there are."""
    count = integer("standbys", value, 0, "an even number, or 0")
    if count % 2:
        raise UsageError(
            f"standbys={count}, expected an even number: with k of them and the driver program's master k / 2 may be "
            "lost, and an odd one does not help"
        )
    if count and (mode != "master" or optimizes):
        where = "an optimizer" if optimizes else f"mode={mode!r}"
        raise UsageError(f"standbys={count} with {where}, expected 0, or mode='master'")
    return count


def goes_on(value: Any, standbys: int, listens: bool) -> bool:
    """Whether peers train on where masters are lost."""
    if one_of("on_master_loss", value, ("raise", "p2p")) == "raise":
        return False
    if not standbys:
        raise UsageError(
            "on_master_loss='p2p' with standbys=0, expected standbys=2 or more: the only master is in the driver "
            "program, and what ends that ends the training; DeepDist.resume goes on with a checkpoint in any mode"
        )
    if listens:
        raise UsageError(
            "on_master_loss='p2p' with master=, expected one of them: processes from elsewhere that bring updates have "
            "nobody to bring them to where there is no master"
        )
    return True


def _staleness_weight(value: Any, mode: str) -> Weight | None:
    found = weight_of(value)
    if found is not None and mode != "master":
        raise UsageError(
            f"staleness_weight={value!r} with mode={mode!r}, expected None, or mode='master': peers add up updates in "
            "any order"
        )
    return found


def _chunks(name: str, value: Any, mode: str, chunk_rows: int | None) -> int:
    """How many chunks go together."""
    count = integer(name, value, 1)
    if count > UNITS_MAX:
        raise UsageError(f"{name}={count}, expected at most {UNITS_MAX}: one message names all these chunks")
    if count > 1 and mode != "master":
        raise UsageError(
            f"{name}={count} with mode={mode!r}, expected 1, or mode='master': without a master a worker has the "
            "replica beside it, and neither fetches nor pushes"
        )
    if count > 1 and chunk_rows is None:
        raise UsageError(f"{name}={count} without chunk_rows, expected both: it counts chunks of so many rows")
    return count


def _drops_bad(value: Any, mode: str) -> bool:
    one_of("on_bad_update", value, ("raise", "drop"))
    if value == "drop" and mode == "p2p":
        raise UsageError(
            f"on_bad_update='drop' with mode={mode!r}, expected 'raise', or mode='master', where descent takes updates "
            "one by one"
        )
    return bool(value == "drop")


def _check_combine(combine: Any, mode: str) -> None:
    check_rule(combine)
    if combine is None or mode == "p2p" or (mode == "sync" and combine in STEP_RULES):
        return
    expected, why = {
        "master": ("None", "there `descent` adds updates up"),
        "sync": ("'mean', 'sum', or None for the mean", "`descent` is given that of all updates of a step"),
        "averaging": ("None", "models are averaged there, by their rows"),
    }[mode]
    raise UsageError(f"combine={combine!r} with mode={mode!r}, expected {expected}: {why}")


def _max_staleness(value: Any, mode: str, n_fetch: int, n_push: int) -> int | None:
    if value is None:
        return None
    if mode != "master":
        raise UsageError(
            f"max_staleness={value!r} with mode={mode!r}, expected None, or mode='master': "
            + ("without a master nobody says whose update is next" if mode == "p2p" else "no update is stale there")
        )
    if n_fetch != n_push:
        raise UsageError(
            f"max_staleness={value!r} with n_fetch={n_fetch} and n_push={n_push}, expected both to be the same: it "
            "bounds what is pushed once after each fetch"
        )
    return integer("max_staleness", value, 0, "at least 0, or None for any")


def _check_continuous(exchange: Any, rule: Any, coded: bool) -> None:
    """Exchanges in the middle of a gradient go with rows that are added up."""
    if rule == OUTER and exchange == "continuous":
        raise UsageError(
            f"combine={rule!r} with exchange='continuous', expected exchange='chunk' or 'partition', or another rule: "
            "an outer step is one of whole updates"
        )
    if coded and exchange == "continuous":
        raise UsageError(
            "a codec with exchange='continuous', expected exchange='chunk' or 'partition', or codec=None: what travels "
            "in the middle of a gradient are rows"
        )


def stopping(stop_when: Any, evaluate: Any, model: Model) -> Stopping:
    """What ends the training early."""
    if stop_when is None:
        return Stopping()
    function("stop_when", stop_when, "stop_when(evaluations), such as p2p.Patience(metric, mode=...)")
    if isinstance(stop_when, type):
        raise UsageError(f"stop_when is the class {stop_when.__name__}, expected a function or an object of it")
    if evaluate is None:
        raise UsageError("stop_when without evaluate, expected both: it goes by the evaluations so far")
    return Stopping(stop_when, model.arrays_of)


def place(checkpoint: Any, every_s: Any, keep: Any) -> Place | None:
    """Where checkpoints go."""
    if checkpoint is None:
        for name, value in (("every_s", every_s), ("keep", keep)):
            if value is not None:
                raise UsageError(f"{name}={value!r} without checkpoint, expected both: say where checkpoints go")
        return None
    return Place(
        path=path_of("checkpoint", checkpoint),
        every_s=CHECKPOINT_EVERY_S if every_s is None else seconds("every_s", every_s),
        keep=CHECKPOINTS_KEPT if keep is None else integer("keep", keep, 1),
    )


def path_of(name: str, value: Any) -> str:
    """A folder or URL; "~" is the user's home."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise UsageError(f"{name} is a {type(value).__name__}, expected a folder or a URL, as text or a path")
    return os.path.expanduser(str(os.fspath(value)))


def _check_steps(mode: str, gradient: Any, descent: Any) -> None:
    """A gradient that says how what it comes to adds up has taken steps by itself."""
    rule, name = getattr(gradient, "combine", None), type(gradient).__name__
    if rule is not None and descent is not None:
        raise UsageError(f"{name} with a descent, expected none: it takes its own steps, and gives what they came to")
    if rule not in (None, "sum") and mode == "master":
        raise UsageError(
            f"{name} with mode='master', expected mode='p2p', or a gradient and a descent: a master would add up the "
            "whole steps of all workers"
        )


def rhythm(exchange: Any, exchange_s: Any, mode: str, descent: Any, chunk_rows: int | None) -> Rhythm:
    """When tasks exchange."""
    one_of("exchange", exchange, ("chunk", "partition", "continuous"))
    if mode == "averaging" and exchange != "chunk":
        raise UsageError(
            f"exchange={exchange!r} with mode='averaging', expected 'chunk': models are averaged after each epoch, and "
            "`chunk_rows` are those of a worker's own steps"
        )
    if exchange_s is not None:
        exchange_s = seconds("exchange_s", exchange_s)
    if exchange != "chunk" and chunk_rows is not None:
        raise UsageError(
            f"chunk_rows={chunk_rows} with exchange={exchange!r}, expected None: leave it out, or choose 'chunk'"
        )
    if exchange != "continuous":
        if exchange_s is not None:
            raise UsageError(f"exchange_s={exchange_s!r} with exchange={exchange!r}, expected exchange='continuous'")
        return Rhythm(exchange)
    if mode != "p2p":
        raise UsageError(f"exchange='continuous' with mode={mode!r}, expected 'chunk' or 'partition'")
    if descent is not None:
        raise UsageError(
            "a descent with exchange='continuous', expected None: the gradient changes the model itself, and what it "
            "changed is the update; or choose exchange='chunk'"
        )
    return Rhythm(exchange) if exchange_s is None else Rhythm(exchange, exchange_s)


def _check_engine(engine: Any, mode: str, peers: int | None) -> None:
    wanted = [name for name in vars(Engine) if not name.startswith("_")] + list(Engine.__annotations__)
    lacking = [] if isinstance(engine, SimulatedCluster) else [name for name in wanted if not hasattr(engine, name)]
    if lacking:
        raise UsageError(
            f"engine is a {type(engine).__name__} without {', '.join(sorted(lacking))}, expected a SimulatedCluster, "
            "one that has what p2p.Engine says, or None for Spark and lists"
        )
    if peers is not None:
        raise UsageError(f"peers={peers} beside an engine, expected one of them: the engine says how many there are")
    if not isinstance(engine, SimulatedCluster):
        return
    if mode != "p2p":
        raise UsageError(f"mode={mode!r} on a simulated cluster, expected 'p2p': a master is not simulated")


def check_coded(codec: Any, discipline: str, mode: str) -> None:
    """A codec goes with replicas that take updates of each other."""
    if codec in (None, "auto"):
        return
    if discipline == "mix":
        raise UsageError(
            "a codec with discipline='mix', expected None: there replicas travel, and "
            "mixing=gossip.mixing.Compressed(...) makes these smaller"
        )
    if mode != "p2p":
        raise UsageError(f"a codec with mode={mode!r}, expected None: what a gradient returned travels as it is there")


def mixed(
    discipline: str, topology: Any, mixing: Any, mode: str, engine: Any
) -> tuple[Strategy[Any], Callable[[int], Topology]] | None:
    """The strategy, and the topology for a number of peers; None where every update is replicated."""
    if one_of("discipline", discipline, ("replicate", "mix")) == "replicate":
        for name, value in (("topology", topology), ("mixing", mixing)):
            if value is not None:
                raise UsageError(f"{name}={value!r} with discipline='replicate', which has none: add discipline='mix'")
        return None
    if mode != "p2p":
        raise UsageError(f"discipline='mix' with mode={mode!r}, expected 'p2p': where there is a master, nobody mixes")
    if isinstance(engine, SimulatedCluster):
        raise UsageError("discipline='mix' on a simulated cluster, expected Spark or a list of partitions")
    from gossip.mixing import PushSum, Strategy

    if mixing is not None and not isinstance(mixing, Strategy):
        raise UsageError(f"mixing is a {type(mixing).__name__}, expected a strategy of gossip.mixing such as PushSum()")
    return mixing if mixing is not None else PushSum(), _topologies(topology if topology is not None else "exponential")


def _topologies(topology: Any) -> Callable[[int], Topology]:
    from gossip.topology import NAMES, Topology, named

    if isinstance(topology, str):
        if topology not in NAMES:
            raise UsageError(f"topology={topology!r} is not known, expected one of {', '.join(NAMES)}")
        return partial(named, topology)
    if isinstance(topology, Topology):
        return partial(_just, topology)
    if not callable(topology):
        raise UsageError(
            f"topology is a {type(topology).__name__}, expected a name, a gossip.topology.Topology, or a function of "
            "the number of peers that returns one"
        )
    return partial(_built, topology)


def _built(build: Callable[[int], Any], peers: int) -> Topology:
    from gossip.topology import Topology

    topology = build(peers)
    if not isinstance(topology, Topology):
        raise UsageError(
            f"topology({peers}) returned a {type(topology).__name__}, expected a gossip.topology.Topology for {peers} "
            "peers"
        )
    return topology


def _just(topology: Topology, peers: int) -> Topology:
    """It is for one number of peers; `Plan` looks whether it is this one."""
    return topology


def warn_of_captured(model: Model, gradient: Any, descent: Any) -> None:
    """Warn if a function of the user's holds on to the model or an array of it, where it should use its argument."""
    ours = {id(model.model), *map(id, model.arrays().values())}
    for role, called in (("gradient", gradient), ("descent", descent)):
        if name := _captured(called, ours):
            warn(
                f"{role} uses {name!r}, which is of the model given to DeepDist: what it sees where it runs is a copy "
                f"that nobody trains. Use its own argument, as in def {role}(model, ...)"
            )


def _captured(function: Any, ours: Collection[int]) -> str | None:
    """The name by which a function reaches what is ours, if it does so by other ways than its argument."""
    if id(getattr(function, "__self__", None)) in ours:
        return str(function.__name__)
    try:
        seen = inspect.getclosurevars(function)
    except (TypeError, ValueError):  # no function in Python, or one that is not complete yet
        return None
    return next((name for name, value in {**seen.globals, **seen.nonlocals}.items() if id(value) in ours), None)


def partitions(data: Any) -> Any:
    """An RDD as it is, a DataFrame as its RDD, a list of partitions as a list."""
    if is_rdd(data):
        from p2p.engines.spark import check_no_barrier

        check_no_barrier(data)
        return data
    if hasattr(data, "schema") and hasattr(data, "rdd"):
        return data.rdd
    if isinstance(data, list | tuple):
        if not data:
            raise UsageError("data is an empty list, expected a list of partitions")
        for index, partition in enumerate(data):
            if hasattr(partition, "__next__"):
                raise UsageError(
                    f"data[{index}] is a {type(partition).__name__}, which can be neither sent to a worker nor read "
                    "again: expected a list of rows, or a function that returns an iterable"
                )
            if isinstance(partition, Mapping) or is_pandas(partition):
                raise UsageError(
                    f"data[{index}] is {kind_of(partition)}, of which the rows would be the keys or the names of "
                    "columns: expected an iterable of rows, such as list(frame.itertuples(index=False)), or [frame] "
                    "for all of it as one row"
                )
            if isinstance(partition, str | bytes) or not (callable(partition) or hasattr(partition, "__iter__")):
                raise UsageError(
                    f"data[{index}] is a {type(partition).__name__}, expected a partition: an iterable of rows, or a "
                    "function that returns one"
                )
        return list(data)
    hint = (
        ": of pandas make a list of partitions, such as [list(frame.itertuples(index=False))], or "
        "spark.createDataFrame(frame)"
    )
    raise UsageError(
        f"data is {kind_of(data)}, expected a Spark RDD or DataFrame, or a list of partitions"
        + (hint if is_pandas(data) else "")
    )


def is_pandas(value: Any) -> bool:
    """Whether it is an object of pandas, which is not imported for that."""
    return type(value).__module__.partition(".")[0] == "pandas"


def kind_of(value: Any) -> str:
    """What a message calls `value`: several packages have a DataFrame."""
    return f"a {type(value).__name__}" + (" of pandas" if is_pandas(value) else "")
