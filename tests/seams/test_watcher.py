"""A watcher of one's own: it is shown the model as it is trained, on agents that replicate or mix, and simulated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from gossip.mixing import DPsgd, Every
from p2p import DeepDist, IncompleteTraining, SimulatedCluster
from p2p.driver.watchers import Moment


@dataclass
class Diary:
    """Writes down what it sees, and spoils the model that it is shown."""

    every_s: float
    moments: list[Moment] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def look(self, model: Any, moment: Moment) -> None:
        self.moments.append(moment)
        self.values.append(float(model["w"][0]))
        model["w"][0] = -1e9


class Impatient(Diary):
    """Has seen enough when something was learned."""

    kind: type[BaseException] = TimeoutError

    def look(self, model: Any, moment: Moment) -> None:
        if model["w"][0]:
            raise self.kind("that will do")

    def __str__(self) -> str:
        return "impatience"


class Leaving(Impatient):
    kind = SystemExit


class Nameless(Impatient):
    def __str__(self) -> str:
        raise KeyError("no name")


class Last(Diary):
    def look(self, model: Any, moment: Moment) -> None:
        if moment.ended:
            raise TimeoutError("that will do")


def one_each(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    time.sleep(0.02)
    return {"w": np.full(1, float(len(list(rows))))}


def simulated(watchers: Any, **options: Any) -> float:
    with DeepDist({"w": np.zeros(1)}, engine=SimulatedCluster(peers=3, seed=4), progress=False) as dd:
        dd.train([[1, 2]] * 6, one_each, epochs=3, watchers=watchers, **options)
        return float(dd.model["w"][0])


def test_watchers_of_a_simulated_training_look_in_virtual_time_each_in_its_own_period() -> None:
    often, seldom = Diary(0.5), Diary(2.0)
    assert simulated([often, seldom]) == 36.0
    for diary in (often, seldom):
        first, *between, last = diary.moments
        assert (first.seconds, first.updates, first.partitions_done, first.ended) == (0.0, 0, 0, False)
        assert (last.updates, last.partitions_done, last.ended) == (18, 18, True)
        assert not any(moment.ended for moment in between)
        assert {moment.partitions for moment in diary.moments} == {18}
        assert np.allclose(np.diff([moment.seconds for moment in diary.moments[:-1]]), diary.every_s)
        assert diary.values == [2.0 * moment.updates for moment in diary.moments]
    assert len(often.moments) > 2 * len(seldom.moments)


def test_watchers_look_beside_an_evaluation() -> None:
    diary = Diary(1.0)
    seen: list[float] = []
    simulated((diary,), evaluate=lambda model: seen.append(model["w"][0]) or 0.0, evaluate_every_s=1.0)
    assert seen == diary.values, "who looks later is not shown what the one before made of it"


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "options", [{}, {"mode": "master"}, {"discipline": "mix", "mixing": Every(3, DPsgd()), "topology": "complete"}]
)
def test_watchers_of_agents_look_while_they_train(options: dict[str, Any]) -> None:
    def add(model: Any, update: Any) -> None:
        model["w"] += update["w"]

    diary, other = Diary(0.1), Diary(0.3)
    with DeepDist({"w": np.zeros(1)}, peers=2, progress=False, **options) as dd:
        dd.train([[1]] * 60, one_each, add if options.get("mode") else None, watchers=[diary, other])
        result = float(dd.model["w"][0])
    for each in (diary, other):
        last = each.moments[-1]
        assert (last.ended, last.partitions_done, last.partitions) == (True, 60, 60)
        assert each.values[-1] == pytest.approx(result)
        assert each.values[0] == 0.0
    assert any(0 < moment.partitions_done < 60 for moment in diary.moments)
    assert any(0.0 < value < result for value in diary.values)
    assert len(diary.moments) > len(other.moments)
    mixes = "mixing" in options
    assert all((moment.consensus_distance is not None) == mixes for moment in diary.moments)


class Auditor(Diary):
    """Is told which units of work count in what it sees."""

    wants_units = True


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("where", [{"peers": 2}, {"engine": SimulatedCluster(2)}], ids=["agents", "simulated"])
def test_a_watcher_that_wants_units_sees_the_model_that_they_make(where: Any) -> None:
    auditor, diary = Auditor(0.1), Diary(0.1)
    with DeepDist({"w": np.zeros(1)}, progress=False, **where) as dd:
        dd.train([[1]] * 40, one_each, watchers=[diary, auditor])
    assert all(moment.counted is None for moment in diary.moments)
    for moment, value in zip(auditor.moments, auditor.values, strict=True):
        assert moment.counted is not None
        assert moment.counted.units == value
        of_partitions = [series.size for series in moment.counted.series]
        assert sum(of_partitions) == (value if not moment.counted.closed else 0)
    assert len({*auditor.values}) > 2


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("watcher", "kind", "name"),
    [
        (Impatient, TimeoutError, "impatience"),
        (Leaving, RuntimeError, "impatience"),
        (Nameless, TimeoutError, "Nameless"),
    ],
)
def test_a_watcher_that_raises_ends_the_training_by_its_name(watcher: Any, kind: Any, name: str) -> None:
    with DeepDist({"w": np.zeros(1)}, peers=1, progress=False) as dd:
        with pytest.raises(kind, match="that will do") as caught:
            dd.train([[1]] * 1000, one_each, watchers=[watcher(np.float32(0.05))])
        assert caught.value.__notes__ == [f"in {name}, while the training ran"]
        assert 0 < dd.model["w"][0] < 1000


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("where", [{"peers": 1}, {"engine": SimulatedCluster(2)}], ids=["agents", "simulated"])
def test_a_last_look_that_fails_says_so(where: Any) -> None:
    with DeepDist({"w": np.zeros(1)}, progress=False, **where) as dd:
        with pytest.raises(TimeoutError) as caught:
            dd.train([[1]], one_each, watchers=[Last(9.0)])
        assert [note.partition("Last(")[0] for note in caught.value.__notes__] == ["in "]
        assert caught.value.__notes__[0].endswith(", at the end of the training")


def test_an_incomplete_training_has_its_evaluations() -> None:
    cluster = SimulatedCluster(peers=3, seed=4)
    with DeepDist({"w": np.zeros(1)}, engine=cluster, progress=False, drain_timeout_s=0.0) as dd:
        with pytest.raises(IncompleteTraining) as caught:
            dd.train([[1, 2]] * 6, one_each, evaluate=lambda model: 1.0)
        assert caught.value.report.evaluations


@pytest.mark.parametrize(
    ("watchers", "message"),
    [
        (Diary(1.0), r"watchers is a Diary, expected a list of p2p\.Watcher"),
        ([Diary(1.0), 3], r"watchers\[1\] is a int, expected a p2p\.Watcher: every_s, and a function look"),
        ([Diary], r"watchers\[0\] is a type, expected"),
        ([Diary(0)], r"watchers\[0\]\.every_s=0, expected more than 0 seconds"),
    ],
    ids=["no list", "no watcher", "a class", "no time"],
)
def test_what_is_no_watcher_is_refused(watchers: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        simulated(watchers)
