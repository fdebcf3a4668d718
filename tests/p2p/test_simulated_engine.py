"""Training on a simulated cluster: exact under faults, the same for the same seed, and errors as they are.

Updates are whole numbers where it is about exactness, so that every check is ==.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from p2p import DeepDist, Faults, Network, Report, SimulatedCluster, UsageError
from p2p.task import current

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = [list(range(10 * index, 10 * index + 10)) for index in range(12)]
CHUNKS = 2 * 12 * 4
"""Of two epochs, in chunks of three rows."""


def tell(model: Any, rows: Any) -> Any:
    rows = list(rows)
    return {"sum": np.array([sum(rows)]), "chunks": np.array([1])}


def integers() -> dict[str, np.ndarray]:
    return {"sum": np.zeros(1, np.int64), "chunks": np.zeros(1, np.int64)}


def train(cluster: SimulatedCluster, gradient: Any = tell, descent: Any = None) -> tuple[dict[str, Any], Report]:
    """Two epochs of `PARTITIONS`."""
    model = integers()
    with DeepDist(model, engine=cluster, drain_timeout_s=120.0) as dd:
        report = dd.train(PARTITIONS, gradient, descent, epochs=2, chunk_rows=3)
    return model, report


def check_exact(model: dict[str, Any], report: Report) -> None:
    assert report.missing == ()
    assert report.consensus_distance == 0
    assert report.updates_lost == 0
    assert model["sum"] == [2 * sum(range(120))]
    assert model["chunks"] == [CHUNKS]
    assert report.rows == 2 * 120


# --------------------------------------------------------------------------------------------------------- exactly once


def test_a_quiet_cluster_trains_every_chunk_once() -> None:
    model, report = train(SimulatedCluster(peers=4, seed=1))
    check_exact(model, report)
    assert report.updates == CHUNKS
    assert [peer.name for peer in report.peers] == ["p000", "p001", "p002", "p003", "observer"]
    assert sum(peer.published for peer in report.peers) == CHUNKS
    assert {peer.applied for peer in report.peers} == {CHUNKS}
    assert all(peer.bytes_out > 0 and peer.bytes_in > 0 for peer in report.peers)
    assert report.story == ()
    assert 20 < report.seconds < 40, "96 chunks of a second each on 4 peers"
    assert "simulated: seconds are virtual" in str(report)


ROUGH = Faults(partitions=((3.0, 12.0, True), (8.0, 20.0, False)), pauses=((5.0, 6.0), (10.0, 3.0)), joins=(4.0, 9.0))


@pytest.mark.parametrize("seed", range(6))
def test_without_crashes_every_unit_counts_once_whatever_else_goes_wrong(seed: int) -> None:
    cluster = SimulatedCluster(
        peers=4,
        seed=seed,
        network=Network(loss=0.3, duplication=0.3, delay_mean_s=0.2),
        faults=Faults(ROUGH.partitions, (), ROUGH.pauses, ROUGH.joins, clocks=seed % 2 == 1),
        fail=0.3,
        speculate=0.4,
    )
    model, report = train(cluster)
    check_exact(model, report)
    late = [peer for peer in report.peers if peer.name.startswith("q")]
    assert len(late) == 2
    assert any(peer.published > 0 for peer in late), "who comes late trains as well"


@pytest.mark.parametrize("seed", range(6))
def test_what_is_lost_in_a_crash_is_counted(seed: int) -> None:
    cluster = SimulatedCluster(
        peers=5, seed=seed, network=Network(loss=0.2), faults=Faults(crashes=(5.0,), joins=(6.0,)), fail=0.1
    )
    model, report = train(cluster)
    assert model["chunks"] == [CHUNKS - report.updates_lost]
    assert report.updates_lost < 10
    assert report.consensus_distance == 0
    (crashed,) = report.missing
    assert f"5.000 s: {crashed} crashed" in report.story


def test_crashes_spare_the_driver_program_and_the_last_peer() -> None:
    model, report = train(SimulatedCluster(peers=3, seed=1, faults=Faults(crashes=(2.0, 3.0, 4.0, 5.0))))
    assert len(report.missing) == 2
    assert "observer" not in report.missing
    assert report.consensus_distance == 0
    assert model["chunks"] >= CHUNKS - report.updates_lost


def test_attempts_that_fail_and_copies_that_race_are_made_up_for() -> None:
    attempts = []

    def gradient(model: Any, rows: Any) -> Any:
        task = current()
        attempts.append((task.epoch, task.partition, task.chunk))
        return tell(model, rows)

    model, report = train(SimulatedCluster(peers=4, seed=3, fail=0.4, speculate=0.5), gradient)
    check_exact(model, report)
    assert len(set(attempts)) == CHUNKS
    assert len(attempts) > CHUNKS, "some were computed twice"


def test_a_peer_gets_its_first_task_when_the_only_one_that_had_some_crashed() -> None:
    model = integers()
    with DeepDist(model, engine=SimulatedCluster(peers=3, seed=0)) as dd:

        def gradient(model: Any, rows: Any) -> Any:
            swarm = dd._session._swarm
            if len(swarm.live()) == len(swarm.peers):
                for me in [me for me, host in swarm.peers.items() if host.peer.replicator.n == 2]:
                    swarm.crash(me)
            return tell(model, rows)

        report = dd.train([range(8)], gradient, chunk_rows=1)
    assert model["chunks"] == [8]
    assert sorted(peer.published for peer in report.peers if peer.role == "peer") == [0, 2, 7], "and the second is made again"


def test_several_tasks_run_on_one_peer() -> None:
    model, report = train(SimulatedCluster(peers=2, seed=1, tasks_per_peer=3))
    check_exact(model, report)
    assert 10 < report.seconds < 30, "96 chunks of a second each, six at a time"


def test_a_single_peer_trains() -> None:
    model, report = train(SimulatedCluster(peers=1, seed=1, speculate=0.9, fail=0.2))
    check_exact(model, report)


# ------------------------------------------------------------------------------------------------ the same for the same


def wander(model: Any, rows: Any) -> Any:
    """Depends on what the replica holds, to the last bit."""
    random = np.random.default_rng([current().seed, current().partition, current().chunk])
    return {"w": np.float32(0.1) * (random.normal(size=50).astype(np.float32) - model["w"]) * len(list(rows))}


def wandered(seed: int) -> tuple[bytes, str]:
    model = {"w": np.zeros(50, np.float32)}
    cluster = SimulatedCluster(
        5, seed, Network(loss=0.2), Faults(crashes=(5.0,), joins=(3.0,)), speculate=0.3, fail=0.2
    )
    with DeepDist(model, engine=cluster) as dd:
        report = dd.train(PARTITIONS, wander, epochs=2, chunk_rows=3)
    return model["w"].tobytes(), report.digest


def test_the_same_seed_gives_the_same_run_and_the_same_model() -> None:
    assert wandered(1) == wandered(1)
    assert wandered(1) != wandered(2)


@pytest.mark.slow
def test_hashes_of_the_interpreter_change_nothing() -> None:
    program = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('story', {__file__!r})\n"
        "story = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(story)\n"
        "print(story.wandered(1))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{wandered(1)}\n"}


# ------------------------------------------------------------------------------------------------------- what tasks see


def test_an_update_is_as_old_as_its_chunk_took() -> None:
    """Two peers begin together: neither sees what the other learns meanwhile, and descent does."""
    seen: list[tuple[float, float]] = []

    def gradient(model: Any, rows: Any) -> Any:
        return float(model["w"][0])

    def descent(model: Any, update: Any) -> None:
        seen.append((update, float(model["w"][0])))
        model["w"] += 1

    model = {"w": np.zeros(1)}
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=4)) as dd:
        report = dd.train([[1], [2]], gradient, descent)
    assert [at_begin for at_begin, _ in seen] == [0, 0]
    assert sorted(at_end for _, at_end in seen) == [0, 1]
    assert model["w"] == [2]
    assert sorted(peer.staleness_p95 for peer in report.peers) == [0, 0, 1]


def test_the_state_of_an_optimizer_is_one_more_array() -> None:
    deltas = []

    def gradient(model: Any, rows: Any) -> Any:
        return np.arange(1.0, 4.0) * next(rows)

    def descent(model: Any, g: Any) -> None:
        before = model["w"].copy()
        model["squares"] += g**2
        model["w"] -= 0.5 * g / np.sqrt(model["squares"])
        deltas.append(model["w"] - before)

    model = {"w": np.zeros(3), "squares": np.zeros(3)}
    with DeepDist(model, engine=SimulatedCluster(peers=3, seed=1)) as dd:
        report = dd.train([[r] for r in range(1, 7)], gradient, descent, epochs=2)
    np.testing.assert_array_equal(model["squares"], 2 * 91 * np.array([1.0, 4.0, 9.0]))
    np.testing.assert_allclose(model["w"], np.sum(deltas, axis=0), rtol=1e-12)
    assert report.consensus_distance < 1e-12


def test_a_gradient_may_change_its_copy_and_hand_it_back() -> None:
    def gradient(model: Any, rows: Any) -> Any:
        model["w"] += 7
        return {"w": np.ones(2), "v": model["v"]}

    model = {"w": np.zeros(2), "v": np.zeros(1)}
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=1)) as dd:
        dd.train([[1], [2], [3]], gradient)
    np.testing.assert_array_equal(model["w"], [3, 3])


def test_two_trainings_of_one_session_add_up() -> None:
    model = integers()
    with DeepDist(model, engine=SimulatedCluster(peers=3, seed=1)) as dd:
        first = dd.train([[1], [2], []], tell)
        assert dd.model["sum"] == [3]
        assert dd.model is model
        second = dd.train([[10], [20]], tell)
    assert model["sum"] == [33]
    assert (first.updates, second.updates) == (2, 2)
    assert (first.rows, second.rows) == (2, 2)
    assert second.updates_lost == 0


def test_a_partition_is_any_iterable_or_a_function_that_returns_one() -> None:
    def made_there() -> Any:
        yield from (100, 200)

    model = integers()
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=1, fail=0.5)) as dd:
        report = dd.train([[1, 2], range(3, 5), made_there], tell, epochs=2)
    assert report.rows == 2 * 6
    assert model["sum"] == [2 * 310]


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_learned_is_no_update(nothing: Any) -> None:
    model = integers()
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=1)) as dd:
        report = dd.train([[1, 2], [3], []], lambda model, rows: nothing)
    assert (report.updates, report.rows) == (0, 3)


def test_replicas_that_are_not_level_in_time_are_named() -> None:
    cluster = SimulatedCluster(peers=3, seed=1, network=Network(delay_mean_s=3.0))
    with DeepDist(integers(), engine=cluster, drain_timeout_s=0.2) as dd:
        report = dd.train([[1], [2], [3]], tell)
    assert report.missing != ()
    assert report.updates_lost > 0
    assert "not level in time" in report.summary()


def test_faults_that_are_due_after_the_last_task_are_left_out() -> None:
    faults = Faults(partitions=((1.0, 1e9, True),), pauses=((1.5, 1e3),), crashes=(1e3,))
    model, report = train(SimulatedCluster(peers=3, seed=2, faults=Faults(faults.partitions, crashes=faults.crashes)))
    check_exact(model, report)
    assert len(report.story) == 1
    assert "cut off" in report.story[0]


# ------------------------------------------------------------------------------------------------ what errors look like


class UnreadableError(ValueError):
    """An exception of the user's own, which cannot be pickled."""

    def __init__(self, text: str, more: int) -> None:
        super().__init__(text)


def test_an_error_of_the_user_s_is_raised_itself_and_the_session_goes_on() -> None:
    error = UnreadableError("thirteen", 13)
    error.__cause__ = KeyError("why")

    def gradient(model: Any, rows: Any) -> Any:
        if 13 in rows:
            raise error
        return None

    model = integers()
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=5)) as dd:
        with pytest.raises(UnreadableError) as caught:
            dd.train([[1], [2], [12, 13], [3]], gradient)
        assert caught.value is error
        assert type(error.__cause__) is KeyError
        (note,) = error.__notes__
        assert "in partition 2, epoch 0, on p00" in note
        assert "seed 5" in note
        assert caught.traceback[-1].name == "gradient"
        report = dd.train([[1], [2]], tell)
    assert model["sum"] == [3]
    assert report.updates_lost == 0


def test_an_error_in_descent_leaves_the_replicas_whole() -> None:
    def descent(model: Any, update: Any) -> None:
        model["sum"] += 10**6
        raise LookupError("descent")

    model = integers()
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=1)) as dd:
        with pytest.raises(LookupError, match="descent"):
            dd.train([[1], [2]], tell, descent)
        dd.train([[1], [2]], tell)
    assert model["sum"] == [3]


def test_rows_that_cannot_be_read_are_named_by_partition() -> None:
    def broken() -> Any:
        yield 1
        raise OSError("row 2")

    with DeepDist(integers(), engine=SimulatedCluster(peers=1)) as dd, pytest.raises(OSError, match="row 2") as caught:
        dd.train([[1], broken], tell)
    assert "partition 1, epoch 0" in caught.value.__notes__[0]


def test_numbers_that_are_not_finite_reach_no_replica() -> None:
    model = {"w": np.zeros(1)}
    with DeepDist(model, engine=SimulatedCluster(peers=1)) as dd, pytest.raises(UsageError, match="NaN or infinite"):
        dd.train([[1]], lambda model, rows: {"w": np.array([np.nan])})
    assert model["w"] == [0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peers": 0}, "peers=0, expected at least 1"),
        ({"tasks_per_peer": 0}, "tasks_per_peer=0, expected at least 1"),
        ({"fail": 1.0}, "fail=1.0, expected a probability below 1"),
        ({"speculate": -0.1}, "speculate=-0.1, expected a probability below 1"),
        ({"seconds_per_chunk": 0}, "seconds_per_chunk=0, expected more than 0 seconds"),
        ({"advert_gap_s": float("nan")}, "advert_gap_s=nan, expected more than 0 seconds"),
        ({"network": Network(loss=1.0)}, "network.loss=1.0, expected a probability below 1"),
        ({"network": Network(delay_mean_s=0)}, "network.delay_mean_s=0, expected more than 0 seconds"),
        ({"faults": Faults(crashes=(-1.0,))}, "faults.crashes=-1.0, expected seconds from 0 on"),
        ({"faults": Faults(pauses=((1.0, float("inf")),))}, "faults.pauses=inf, expected seconds from 0 on"),
    ],
)
def test_a_cluster_that_makes_no_sense_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        SimulatedCluster(**settings)
    assert says in str(caught.value)


def test_what_does_not_go_with_a_simulated_cluster_is_refused() -> None:
    with pytest.raises(UsageError, match=r"peers=3 beside an engine.*SimulatedCluster\(peers=3\)"):
        DeepDist(integers(), peers=3, engine=SimulatedCluster())
    with pytest.raises(UsageError, match="mode='master' on a simulated cluster, expected 'p2p'"):
        DeepDist(integers(), "master", engine=SimulatedCluster())
    with pytest.raises(UsageError, match="engine is a str, expected a SimulatedCluster"):
        DeepDist(integers(), engine="simulated")

    class Rows:
        """Looks like an RDD."""

        def mapPartitionsWithIndex(self) -> None: ...  # noqa: N802

    with DeepDist(integers(), engine=SimulatedCluster()) as dd, pytest.raises(UsageError, match="not on an RDD"):
        dd.train(Rows(), tell)


# ---------------------------------------------------------------------------------------------------------- the example


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
def test_softmax_learns_as_much_as_on_this_machine_s_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("softmax_local", ROOT / "examples" / "softmax_local.py")
    assert spec is not None
    assert spec.loader is not None
    softmax = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(softmax)
    rows = [softmax.partition(index)[:1000] for index in range(4)]
    x, y = (np.array(column) for column in zip(*softmax.partition(99), strict=True))

    def accuracy(**options: Any) -> float:
        model = {"w": np.zeros((softmax.FEATURES, softmax.CLASSES)), "b": np.zeros(softmax.CLASSES)}
        with DeepDist(model, **options) as dd:
            dd.train(rows, softmax.gradient, softmax.descent, epochs=10, chunk_rows=100)
        return float(np.mean(softmax.probabilities(model, x).argmax(axis=1) == y))

    monkeypatch.setitem(sys.modules, softmax.__name__, softmax)
    cloudpickle.register_pickle_by_value(softmax)  # the workers cannot import it
    try:
        simulated = accuracy(engine=SimulatedCluster(peers=2, seed=1, network=Network(loss=0.1)))
        local = accuracy(peers=2)
    finally:
        cloudpickle.unregister_pickle_by_value(softmax)
    assert simulated > 0.9
    assert abs(simulated - local) < 0.01


# ---------------------------------------------------------------------------------------------------------- the fixture

JOB = """
    import numpy as np
    from p2p import DeepDist

    def test_job(simulated_cluster):
        model = {"w": np.zeros(1)}
        with DeepDist(model, engine=simulated_cluster(peers=2, seed=11, fail=0.1)) as dd:
            dd.train([[1], [2]], lambda model, rows: {"w": np.ones(1)})
        assert model["w"] == [EXPECTED]
"""


def test_the_fixture_makes_clusters_and_shows_them_when_a_test_fails(pytester: pytest.Pytester) -> None:
    plugin = ("-p", "p2p.pytest_plugin", "-p", "no:cacheprovider")
    pytester.makepyfile(test_good=JOB.replace("EXPECTED", "2"), test_bad=JOB.replace("EXPECTED", "3"))
    good = pytester.runpytest_inprocess(*plugin, "test_good.py")
    good.assert_outcomes(passed=1)
    good.stdout.no_fnmatch_line("*SimulatedCluster*")
    bad = pytester.runpytest_inprocess(*plugin, "test_bad.py")
    bad.assert_outcomes(failed=1)
    bad.stdout.fnmatch_lines(["*simulated clusters*", "SimulatedCluster(peers=2, seed=11, *fail=0.1, *"])
    other = pytester.runpytest_inprocess(*plugin, "--simulated-seed", "12", "test_bad.py")
    other.stdout.fnmatch_lines(["SimulatedCluster(peers=2, seed=12, *"])


def test_the_plugin_costs_other_runs_of_pytest_nothing() -> None:
    heavy = ("numpy", "zmq", "rich", "cloudpickle", "pyspark", "gensim", "gossip.peer")
    program = f"import sys, p2p.pytest_plugin; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
