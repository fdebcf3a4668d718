"""Training on a simulated cluster: exact under faults, the same for the same seed, and errors as they are.

Updates are whole numbers where it is about exactness, so that every check is ==.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from gossip.arrays import Packed
from gossip.events import Computed, Deliver, Effect, Event, Negative, Own
from gossip.messages import PeerId
from gossip.sim.faults import Disruption, Strike, Victim
from gossip.sim.simulator import Simulation
from p2p import (
    DeepDist,
    DeepDistWarning,
    Faults,
    IncompleteTraining,
    Network,
    Report,
    SimulatedCluster,
    UsageError,
)
from p2p.adapters.model import Model
from p2p.sessions.simulated import SimulatedSession
from p2p.sessions.training import Training
from p2p.worker.task import current

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[3]
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


@pytest.mark.filterwarnings("ignore:.*are lost with agents that died")
def test_crashes_spare_the_last_peer_and_nobody_else() -> None:
    crashes = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    model, report = train(SimulatedCluster(peers=3, seed=1, faults=Faults(crashes=crashes, observer_crashes=(8.0,))))
    peers = {peer.name for peer in report.peers if peer.role == "peer"}
    assert len(peers & set(report.missing)) == 2
    assert "observer" in report.missing
    assert report.consensus_distance == 0
    assert model["chunks"] >= CHUNKS - report.updates_lost


@pytest.mark.filterwarnings("ignore:.*are lost with agents that died")
def test_one_peer_of_many_is_left_and_has_all_that_anybody_had_pulled() -> None:
    crashes = tuple(float(time) for time in range(5, 25))
    model, report = train(SimulatedCluster(peers=5, seed=3, faults=Faults(crashes=crashes)))
    assert sum(peer.name not in report.missing for peer in report.peers if peer.role == "peer") == 1
    assert model["chunks"] == [CHUNKS - report.lost.get("agent gone", 0)]


def test_many_updates_that_are_lost_are_warned_of() -> None:
    one_of_two = SimulatedCluster(peers=2, seed=1, network=Network(delay_mean_s=5.0), faults=Faults(crashes=(10.0,)))
    with pytest.warns(DeepDistWarning, match=r"\d+ of \d+ updates are lost with agents that died"):
        model, report = train(one_of_two)
    assert model["chunks"] == [CHUNKS - report.lost["agent gone"]]
    assert report.updates_lost == report.lost["agent gone"] > 0


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
    assert sorted(peer.published for peer in report.peers if peer.role == "peer") == [0, 2, 7], (
        "and the second is made again"
    )


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


SLOW = SimulatedCluster(peers=3, seed=1, network=Network(delay_mean_s=3.0))


def test_a_model_that_lacks_updates_of_living_peers_is_no_success() -> None:
    model = integers()
    with DeepDist(model, engine=SLOW, drain_timeout_s=0.2) as dd:
        with pytest.raises(
            IncompleteTraining, match=r"lacks 2 updates of living peers \(1 of p\d+, 1 of p\d+\)"
        ) as caught:
            dd.train([[1], [2], [3]], tell)
        report = caught.value.report
        assert report.missing != ()
        assert report.lost == {"not read in time": report.updates_lost}
        assert "not level in time" in report.summary()
        assert model["chunks"] == [1], "the best there is"
        assert "drain_timeout_s=0.4" in str(caught.value)
        assert "on_incomplete='warn'" in str(caught.value)
    assert model["chunks"] == [1]


def training(data: Any, **options: Any) -> Training:
    return Training(data=data, gradient=tell, progress=lambda done, of: None, **options)


def test_an_incomplete_model_is_taken_by_who_asks_for_it() -> None:
    model = Model(integers())
    session = SimulatedSession(SLOW, model, 0, 0.2)
    with pytest.warns(DeepDistWarning, match="lacks 2 updates of living peers"):
        report = session.train(training([[1], [2], [3]], on_incomplete="warn"))
    assert report.updates == 3
    session.stop()


def test_training_on_completes_what_was_not_read_in_time() -> None:
    model = integers()
    with DeepDist(model, engine=SLOW, drain_timeout_s=0.2) as dd:
        with pytest.raises(IncompleteTraining):
            dd.train([[1], [2], [3]], tell)
        with pytest.raises(IncompleteTraining):
            dd.train([[1]] * 30, tell)
        assert model["sum"] > 6, "what was under way has arrived since"


# --------------------------------------------------------------------------------------------------------- the observer


def watched(faults: Faults) -> tuple[dict[str, Any], Report]:
    """Two epochs by three peers; evaluated every second."""
    model = integers()
    cluster = SimulatedCluster(peers=3, seed=2, faults=faults)
    with DeepDist(model, engine=cluster, drain_timeout_s=120.0) as dd:
        report = dd.train(
            PARTITIONS,
            tell,
            epochs=2,
            chunk_rows=3,
            evaluate=lambda model: float(model["chunks"][0]),
            evaluate_every_s=1.0,
        )
    return model, report


def check_seen(report: Report) -> None:
    """What was shown never stood still: a chunk takes a second and a half at most."""
    assert all(point.updates == point.values["value"] for point in report.evaluations)
    seen = [point.updates for point in report.evaluations]
    assert all(earlier < later for earlier, later in zip(seen, seen[3:], strict=False))


def test_an_observer_that_is_killed_takes_nothing_with_it() -> None:
    model = {"sum": np.zeros(1, np.int64)}
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=1)) as dd:
        count = 0

        def gradient(model: Any, rows: Any) -> Any:
            nonlocal count
            count += 1
            if count == 60:
                dd._session._swarm.crash("observer")
            return {"sum": np.array([len(list(rows))])}

        report = dd.train([range(20)] * 12, gradient, chunk_rows=1)
        assert dd.model["sum"] == [240]
    assert model["sum"] == [240]
    assert report.missing == ("observer",)
    assert report.lost == {}
    (another,) = [peer for peer in report.peers if peer.name == "observer-2"]
    assert (another.role, another.applied) == ("observer", 240)


def test_observers_are_killed_again_and_again() -> None:
    model, report = watched(Faults(observer_crashes=(4.0, 4.6, 9.0, 31.0)))
    assert model["chunks"] == [CHUNKS]
    assert "observer" in report.missing
    assert "observer-2" in report.missing
    assert "9.000 s: observer-2 crashed" in report.story or "9.000 s: observer-3 crashed" in report.story
    check_seen(report)


@pytest.mark.parametrize("faults", [Faults(observer_pauses=((2.0, 1e9),)), Faults(observer_cuts=((2.0, 1e9),))])
def test_an_observer_that_hears_nothing_to_the_end_is_not_what_the_user_sees(faults: Faults) -> None:
    model, report = watched(faults)
    assert (model["chunks"], report.missing) == ([CHUNKS], ())
    check_seen(report)


@pytest.mark.parametrize("faults", [Faults(observer_pauses=((2.0, 1e9),)), Faults(observer_cuts=((2.0, 1e9),))])
def test_a_peer_is_the_source_where_the_observer_stays_behind(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Disruption, "end", lambda self: None)
    model, report = watched(faults)
    assert (model["chunks"], report.missing) == ([CHUNKS], ("observer",))
    assert report.lost == {}


def test_an_observer_that_dies_between_trainings_is_replaced_in_the_next() -> None:
    model = integers()
    with DeepDist(model, engine=SimulatedCluster(peers=3, seed=1)) as dd:
        dd.train(PARTITIONS, tell)
        dd._session._swarm.crash("observer")
        assert dd.model["chunks"] == [12]
        report = dd.train(PARTITIONS, tell)
        assert dd.model["chunks"] == [24]
    assert report.missing == ()
    assert {peer.name for peer in report.peers} == {"p000", "p001", "p002", "observer-2"}
    assert {peer.applied for peer in report.peers} == {24}


# ----------------------------------------------------------------------------------------------- what the user writes


def test_what_is_written_between_two_trainings_counts() -> None:
    model = integers()
    with DeepDist(model, engine=SimulatedCluster(peers=3, seed=1)) as dd:
        dd.train([[1], [2], [1]], tell)
        dd.model["sum"][0] = 100
        assert dd.model["sum"] == [100], "reading it again leaves it"
        report = dd.train([[5], [3]], tell)
        assert dd.model["sum"] == [108]
    assert model["chunks"] == [5]
    assert (report.updates, report.lost, report.consensus_distance) == (2, {}, 0)


def test_what_is_written_stays_when_a_replica_moves_on() -> None:
    model = integers()
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=1)) as dd:
        dd.train([[1], [2]], tell)
        dd.model["sum"][0] = 100
        late = Packed.of({"sum": np.array([1000]), "chunks": np.array([1])})
        dd._session._swarm.happen(PeerId("p000"), Computed(late))
        assert (dd.model["sum"], dd.model["chunks"]) == ([100], [3])
        dd.train([[5]], tell)
    assert (model["sum"], model["chunks"]) == ([105], [4])


def test_what_is_written_counts_whoever_dies() -> None:
    model = integers()
    with DeepDist(model, engine=SimulatedCluster(peers=4, seed=1)) as dd:
        dd.train([[1], [2]], tell)
        dd.model["sum"] = np.array([100])
        swarm = dd._session._swarm
        swarm.crash("observer")
        assert dd.model["sum"] == [100]
        swarm.at(swarm.now + 0.005, lambda: swarm.crash("p000"))
        report = dd.train([[5]] * 10, tell)
        lane = swarm.peers["p000"].peer.replicator.n
        assert all(host.peer.replicator.frontiers()["p000"] < lane for host in swarm.live().values()), (
            "published, in vain"
        )
    assert model["sum"] == [150]
    assert "p000" in report.missing


def test_what_is_written_is_had_by_all_to_the_last_bit() -> None:
    """The sum of a difference and of what rounding left of it would be the difference."""
    model = {"w": np.zeros(4, np.float32), "v": np.zeros(2, np.float32)}
    written = np.array([1e-10, 3.3333333, -1e10, 0.1], np.float32)
    with DeepDist(model, engine=SimulatedCluster(peers=3, seed=1)) as dd:
        dd.train([[1], [2]], lambda model, rows: {"w": np.ones(4, np.float32), "v": np.ones(2, np.float32)})
        dd.model["w"][:] = written
        report = dd.train([[1]], lambda model, rows: None)
        np.testing.assert_array_equal(dd.model["w"], written)
        np.testing.assert_array_equal(dd.model["v"], [2, 2])
    assert report.consensus_distance == 0
    assert report.updates == 0


def test_workers_begin_with_what_was_written() -> None:
    seen = []

    def gradient(model: Any, rows: Any) -> Any:
        seen.append(float(model["w"][0]))
        return {"w": np.array([1.0])}

    with DeepDist({"w": np.zeros(1)}, engine=SimulatedCluster(peers=3, seed=1)) as dd:
        dd.train([[1], [2], [3]], gradient)
        dd.model["w"][0] = -1000
        dd.train([[1], [2], [3]], gradient)
        assert dd.model["w"] == [-997]
    assert all(value < -990 for value in seen[3:])


def test_what_cannot_be_published_is_refused_and_said() -> None:
    model = {"w": np.zeros(2)}
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=1)) as dd:
        dd.train([[1]], lambda model, rows: {"w": np.ones(2)})
        dd.model["w"][0] = np.nan
        with pytest.raises(UsageError, match=r"the model's 'w': 1 of 2 numbers are NaN"):
            dd.train([[1]], lambda model, rows: None)
        dd.model["w"][0] = np.finfo(float).max  # a difference of more than that is none
        dd.train([[1]], lambda model, rows: None)
        dd.model["w"][0] = -np.finfo(float).max
        with pytest.raises(UsageError, match=r"given numbers that cannot be published: 'w'"):
            dd.train([[1]], lambda model, rows: None)
        dd.model["w"] = np.zeros(3)
        with pytest.raises(UsageError, match=r"'w': shape \(3,\), expected \(2,\)"):
            dd.train([[1]], lambda model, rows: None)
        dd.model["w"] = np.array([5.0, 6.0])
        dd.train([[1]], lambda model, rows: {"w": np.ones(2)})
    np.testing.assert_array_equal(model["w"], [6, 7])


# ----------------------------------------------------------------------------------------- an oracle looks at the model


class Ledger:
    """What was published by whom, as a session's swarm tells it; knows nothing of who is asked for the model."""

    def __init__(self, swarm: Simulation) -> None:
        self.swarm = swarm
        self.lanes: dict[PeerId, list[tuple[int, int, Any, int]]] = {}
        """By lane its updates: sum, chunks, unit of work, and how often the update makes that count."""
        swarm.observers.append(self._observe)

    def _observe(self, now: float, me: PeerId, event: Event, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Deliver) and effect.lane == me and not isinstance(effect.payload, Own):
                lane = self.lanes.setdefault(me, [])
                assert effect.lo == len(lane) + 1
                if isinstance(effect.payload, Negative):
                    total, chunks, unit, count = lane[effect.payload.number - 1]
                    lane.append((-total, -chunks, unit, -count))
                else:
                    arrays = effect.payload.arrays()
                    lane.append((int(arrays["sum"][0]), int(arrays["chunks"][0]), event.unit, 1))

    def at(self, frontiers: Mapping[PeerId, int]) -> list[tuple[int, int, Any, int]]:
        """All updates of a replica."""
        return [update for lane, updates in self.lanes.items() for update in updates[: frontiers.get(lane, 0)]]

    def living(self) -> dict[PeerId, dict[PeerId, int]]:
        """The frontiers of each replica that there still is."""
        return {me: host.peer.replicator.frontiers() for me, host in self.swarm.live().items() if host.peer.ready}


def drawn(seed: int) -> tuple[SimulatedCluster, float]:
    """A cluster on a bad day, and how long it may take at the end."""
    chance = random.Random(f"cluster {seed}")

    def times(most: int) -> tuple[float, ...]:
        return tuple(sorted(chance.uniform(0, 25) for _ in range(chance.randint(0, most))))

    peers = chance.randint(1, 6)
    faults = Faults(
        partitions=tuple((begin, begin + chance.uniform(1, 30), chance.random() < 0.7) for begin in times(2)),
        crashes=times(peers),
        pauses=tuple((begin, chance.uniform(1, 30)) for begin in times(2)),
        joins=times(2),
        clocks=chance.random() < 0.5,
        strikes=tuple(Strike(begin, chance.choice(list(Victim)), chance.uniform(0, 1), 10.0) for begin in times(2)),
        observer_crashes=times(3),
        observer_pauses=tuple((begin, chance.choice([5.0, 1e9])) for begin in times(1)),
        observer_cuts=tuple((begin, chance.choice([begin + 5.0, 1e9])) for begin in times(1)),
    )
    cluster = SimulatedCluster(
        peers,
        seed,
        Network(loss=chance.choice([0.0, 0.3]), duplication=0.2, delay_mean_s=chance.choice([0.05, 0.5])),
        faults,
        fail=chance.choice([0.0, 0.2]),
        speculate=chance.choice([0.0, 0.3]),
    )
    return cluster, chance.choice([300.0, 300.0, 0.3])


def check_what_the_user_gets(seed: int) -> Counter[str]:
    """Two trainings with something written between them; what happened, for who wants to know whether it was much."""
    cluster, level_timeout_s = drawn(seed)
    model = Model(integers())
    session = SimulatedSession(cluster, model, 0, level_timeout_s)
    swarm, _ = session._start()
    ledger = Ledger(swarm)
    counts = Counter({"seeds": 1})
    written = 0
    before: set[Any] = set()
    with warnings.catch_warnings(record=True):
        for _ in range(2):
            incomplete = ""
            try:
                report = session.train(training(PARTITIONS, epochs=2, chunk_rows=3))
            except IncompleteTraining as error:
                incomplete, report = str(error), error.report
            living = ledger.living()
            most: Counter[PeerId] = Counter()
            for front in living.values():
                most |= Counter(front)
            total, chunks = int(model.arrays()["sum"][0]), int(model.arrays()["chunks"][0])
            n = {me: len(ledger.lanes.get(me, ())) for me in swarm.live()}
            full = ledger.at({**most, **n})
            if incomplete:
                counts["incomplete"] += 1
                level = len({tuple(sorted((+Counter(front)).items())) for front in living.values()}) == 1
                assert not level or any(swarm.peers[me].peer.pending or me not in living for me in swarm.live()), seed
                fronts = [
                    f for f in living.values() if sum(f.values()) == max(sum(f.values()) for f in living.values())
                ]
                assert (total, chunks) in [
                    (sum(u[0] for u in ledger.at(f)), sum(u[1] for u in ledger.at(f))) for f in fronts
                ], f"seed {seed}: not one of the best replicas"
                lacking = [sum(n[me] - f.get(me, 0) for me in n) for f in fronts]
                assert any(f"lacks {count} updates of living" in incomplete if count else True for count in lacking)
                break
            assert (total, chunks) == (sum(u[0] for u in full), sum(u[1] for u in full)), f"seed {seed}"
            standing: Counter[Any] = Counter()
            for _, _, unit, count in full:
                if unit is not None and unit not in before:
                    standing[unit] += count
            there = sum(1 for count in standing.values() if count > 0)
            assert there == CHUNKS - report.lost.get("agent gone", 0), f"seed {seed}: the report does not explain it"
            assert total - written == sum(u[0] for u in full if u[2] is not None), f"seed {seed}: what was written"
            before |= standing.keys()
            counts["doubled"] += sum(count > 1 for count in standing.values())
            counts["lost"] += report.lost.get("agent gone", 0)
            model.arrays()["sum"][0] += 10**6
            written += 10**6
    dead = [me for me, host in swarm.peers.items() if not host.alive]
    counts["peers crashed"] = sum(me not in swarm.observing for me in dead)
    counts["observers crashed"] = sum(me in swarm.observing for me in dead)
    counts["observers adopted"] = sum(
        swarm.peers[me].peer.adopter.done > 0 for me in swarm.observing if swarm.peers[me].peer.adopter
    )
    session.stop()
    return counts


@pytest.mark.long
@pytest.mark.slow
def test_the_user_s_model_is_the_sum_of_what_living_peers_accepted() -> None:
    counts = sum((check_what_the_user_gets(seed) for seed in range(12)), start=Counter[str]())
    for happened in ("incomplete", "peers crashed", "observers crashed", "observers adopted"):
        assert counts[happened] > 0, happened


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
        ({"advert_gap_s": float("nan")}, "advert_gap_s=nan, expected a finite number"),
        ({"network": Network(loss=1.0)}, "network.loss=1.0, expected a probability below 1"),
        ({"network": Network(delay_mean_s=0)}, "network.delay_mean_s=0, expected more than 0 seconds"),
    ],
)
def test_a_cluster_that_makes_no_sense_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        SimulatedCluster(**settings)
    assert says in str(caught.value)


def test_what_does_not_go_with_a_simulated_cluster_is_refused() -> None:
    with pytest.raises(UsageError, match=r"peers=3 beside an engine, expected one of them"):
        DeepDist(integers(), peers=3, engine=SimulatedCluster())
    with pytest.raises(UsageError, match="mode='master' on a simulated cluster, expected 'p2p'"):
        DeepDist(integers(), "master", engine=SimulatedCluster())
    with pytest.raises(UsageError, match=r"engine is a str without address, .*expected a SimulatedCluster"):
        DeepDist(integers(), engine="simulated")

    class Rows:
        """Looks like an RDD."""

        def mapPartitionsWithIndex(self) -> None: ...  # noqa: N802

    with DeepDist(integers(), engine=SimulatedCluster()) as dd, pytest.raises(UsageError, match="not on an RDD"):
        dd.train(Rows(), tell)


# ---------------------------------------------------------------------------------------------------------- the example


@pytest.mark.long
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
    heavy = ("numpy", "zmq", "rich", "cloudpickle", "pyspark", "gensim", "gossip.lanes.peer")
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
