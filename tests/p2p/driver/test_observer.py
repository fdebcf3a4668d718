"""The driver program's own agent is one replica among others: it may die, stand still or be cut off."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import zmq

from gossip.messages import PeerId, Pull
from gossip.wire import encode_header
from gossip.zmq.sockets import Keys, open_socket
from p2p import DeepDist, DeepDistWarning, IncompleteTraining, UsageError
from p2p.driver.level import Stillness, furthest, lacks
from p2p.driver.observer import Observer
from p2p.sessions import agents
from p2p.worker.task import in_place

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.usefixtures("place")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

LONG_S = 60.0
PARTS, CHUNKS = 4, 40


def ones(model, rows):
    list(rows)
    return {"n": np.ones(3)}


class Slow:
    """A gradient that leaves a sign that it runs, and takes a while."""

    def __init__(self, folder: Path, seconds: float = 0.03) -> None:
        self.sign, self.seconds = folder / "runs", seconds

    def __call__(self, model, rows):
        list(rows)
        self.sign.touch()
        time.sleep(self.seconds)
        return {"n": np.ones(3)}

    def runs(self) -> bool:
        return self.sign.exists()


@pytest.fixture
def beside(eventually: Callable[..., bool]) -> Callable[[Slow, Callable[[], None]], threading.Thread]:
    """`beside(gradient, act)`: act in a thread as soon as the gradient runs."""

    def start(gradient: Slow, act: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            assert eventually(gradient.runs, LONG_S)
            act()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    return start


def observer_of(dd: Any) -> Any:
    return dd._session._observer


def train(dd: Any, gradient: Any, **settings: Any) -> Any:
    return dd.train([range(CHUNKS) for _ in range(PARTS)], gradient, chunk_rows=1, **settings)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_an_observer_that_dies_or_stands_still_costs_nothing(how: Any, beside: Any, tmp_path: Path) -> None:
    gradient = Slow(tmp_path, 0.03 if how == signal.SIGKILL else 0.1)  # to stand still is seen after five seconds
    with DeepDist({"n": np.zeros(3)}, peers=2) as dd:
        thread = beside(gradient, lambda: os.kill(observer_of(dd).pid, how))
        report = train(dd, gradient)
        thread.join()
        assert dd.model["n"].tolist() == [PARTS * CHUNKS] * 3
        assert report.updates_lost == 0
        assert report.consensus_distance == 0
        assert observer_of(dd).alive
        train(dd, ones)
        assert dd.model["n"].tolist() == [2 * PARTS * CHUNKS] * 3


@pytest.mark.long
def test_one_observer_after_the_other_may_die(eventually: Any, beside: Any, tmp_path: Path) -> None:
    gradient = Slow(tmp_path, 0.1)
    killed = []

    def kill_two() -> None:
        for _ in range(2):
            alive = eventually(lambda: observer_of(dd) is not None and observer_of(dd).pid not in killed, LONG_S)
            assert alive
            killed.append(observer_of(dd).pid)
            os.kill(killed[-1], signal.SIGKILL)

    with DeepDist({"n": np.zeros(3)}, peers=2) as dd:
        thread = beside(gradient, kill_two)
        train(dd, gradient)
        thread.join()
        assert len(killed) == 2
        assert dd.model["n"].tolist() == [PARTS * CHUNKS] * 3


def test_the_model_can_be_read_while_there_is_no_observer(beside: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(agents, "Watch", Nobody)
    gradient, seen = Slow(tmp_path), []

    def look() -> None:
        os.kill(observer_of(dd).pid, signal.SIGKILL)
        observer_of(dd)._process.wait()
        before = dd._session._shown.model.arrays()["n"][0]
        give_up = time.monotonic() + LONG_S
        while dd.model["n"][0] < before + 5 and time.monotonic() < give_up:
            pass
        seen.append(dd.model["n"][0] - before)

    with DeepDist({"n": np.zeros(3)}, peers=2) as dd:
        thread = beside(gradient, look)
        train(dd, gradient)
        thread.join()
        assert seen
        assert seen[0] >= 5
        assert dd.model["n"].tolist() == [PARTS * CHUNKS] * 3, "at the end, too, it comes from a peer"
        train(dd, ones)  # which begins with the next observer
        assert dd.model["n"].tolist() == [2 * PARTS * CHUNKS] * 3


class Nobody:
    """A watch that looks after nothing."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass


class Hesitant(Observer):
    """The next one has told the registrar where it is, and does not get any further."""

    def adopt(self, given_up: Callable[[], bool]) -> None:
        while not given_up():
            time.sleep(0.01)
        raise UsageError("it did not begin")


def test_a_training_that_ends_while_the_next_observer_begins_does_not_wait_for_it(
    beside: Any, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(agents, "Observer", Hesitant)
    gradient = Slow(tmp_path)
    with DeepDist({"n": np.zeros(3)}, peers=2) as dd:
        thread = beside(gradient, lambda: os.kill(observer_of(dd).pid, signal.SIGKILL))
        report = train(dd, gradient)
        thread.join()
        assert dd.model["n"].tolist() == [PARTS * CHUNKS] * 3
        assert report.updates_lost == 0
        assert report.missing == (), "nor is it one of those whose replicas are compared"
        assert [peer.role for peer in report.peers] == ["peer", "peer"]
    assert "was not replaced" not in caplog.text


def test_an_observer_that_dies_between_trainings_is_replaced(tmp_path: Path) -> None:
    with DeepDist({"n": np.zeros(3)}, peers=2) as dd:
        train(dd, ones)
        os.kill(observer_of(dd).pid, signal.SIGKILL)
        observer_of(dd)._process.wait()
        dd.model["n"][1] = 1000
        train(dd, ones)
        assert dd.model["n"].tolist() == [2 * PARTS * CHUNKS, 1000 + PARTS * CHUNKS, 2 * PARTS * CHUNKS]


def test_a_pull_in_the_name_of_the_observer_is_not_believed(beside: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Of a process of the run, which knows all keys but the observer's secret, with a number that it will never reach:
    an origin that believed it would take all that the observer asks for old requests."""
    monkeypatch.setattr(agents, "STUCK_S", 1.0)
    gradient = Slow(tmp_path)

    def forge() -> None:
        name = PeerId(observer_of(dd).peer)
        for member in dd._session._registrar.by_role("peer"):
            with zmq.Context() as context:
                mine = Keys.generate()
                with open_socket(context, zmq.DEALER, mine, server_key=member.key) as stranger:
                    stranger.setsockopt(zmq.ROUTING_ID, name.encode())
                    stranger.setsockopt(zmq.LINGER, 1000)
                    stranger.connect(member.pulls)
                    stranger.send(encode_header(Pull(name, 0, 10**9)))

    with DeepDist({"n": np.zeros(3)}, peers=2) as dd:
        before: list[int] = []
        thread = beside(gradient, lambda: (before.append(observer_of(dd).pid), forge()))
        report = train(dd, gradient)
        thread.join()
        assert observer_of(dd).pid == before[0]
        assert dd.model["n"].tolist() == [PARTS * CHUNKS] * 3
        assert report.updates_lost == 0


def test_evaluations_go_on_with_the_next_observer(beside: Any, tmp_path: Path) -> None:
    gradient = Slow(tmp_path)
    with DeepDist({"n": np.zeros(3)}, peers=2) as dd:
        thread = beside(gradient, lambda: os.kill(observer_of(dd).pid, signal.SIGKILL))
        report = train(dd, gradient, evaluate=lambda model: model["n"][0], evaluate_every_s=0.2)
        thread.join()
    values = [point.values["value"] for point in report.evaluations]
    assert values == sorted(values)
    assert values[-1] == PARTS * CHUNKS
    assert len(set(values)) > 3


# ------------------------------------------------------------------------------------------------------ what is missing


class Choreography:
    """A worker publishes once more while nobody hears its agent, and that stands still then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, model, rows):
        (row,) = rows
        if row == "rest":
            return None
        self.sign(f"{row}-runs").touch()
        give_up = time.monotonic() + LONG_S
        while not self.sign(f"{row}-go").exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        return {"n": np.ones(3)} if row != "accepted" else None

    def sign(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Pids that are woken in the end."""
    pids: set[int] = set()
    yield pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


@pytest.mark.long
@pytest.mark.parametrize("on_incomplete", ["raise", "warn"])
def test_what_an_agent_holds_that_stands_still_is_told(
    on_incomplete: Any, place: Any, eventually: Any, tmp_path: Path, stopped: set[int]
) -> None:
    step = Choreography(tmp_path)
    first: list[int] = []

    def conduct() -> None:
        assert eventually(step.sign("publish-runs").exists, LONG_S)
        agents = place.agents()
        first.extend(agents - {observer_of(dd).pid})
        stopped.update(agents)
        os.kill(observer_of(dd).pid, signal.SIGSTOP)
        step.sign("publish-go").touch()
        assert eventually(step.sign("accepted-runs").exists, LONG_S)
        os.kill(first[0], signal.SIGSTOP)
        os.kill(observer_of(dd).pid, signal.SIGCONT)
        step.sign("accepted-go").touch()

    with DeepDist({"n": np.zeros(3)}, peers=1, drain_timeout_s=2.0) as dd:
        thread = threading.Thread(target=conduct, daemon=True)
        thread.start()
        data = [["publish", "accepted"]]
        if on_incomplete == "raise":
            with pytest.raises(IncompleteTraining, match="lacks 1 updates of agents that stand still") as caught:
                dd.train(data, step, chunk_rows=1)
            text, report = str(caught.value), caught.value.report
        else:
            with pytest.warns(DeepDistWarning) as heard:
                report = dd.train(data, step, chunk_rows=1, on_incomplete="warn")
            text = " ".join(str(warning.message) for warning in heard)
        thread.join()
        assert f":{first[0]}" in text
        assert "drain_timeout_s" in text
        assert report.updates_lost == 1
        assert dd.model["n"].tolist() == [0, 0, 0]


def test_fronts_are_compared_lane_by_lane() -> None:
    fronts = [{"a": 3, "b": 1}, {"a": 2, "b": 4}, {"c": 1}]
    assert furthest(fronts) == {"a": 3, "b": 4, "c": 1}
    assert lacks(fronts[0], furthest(fronts)) == {"b": 3, "c": 1}
    assert lacks(furthest(fronts), furthest(fronts)) == {}


def test_who_lacks_something_and_does_not_move_stands_still() -> None:
    still, all_of = Stillness(), {"a": 5}
    assert still.seconds({"a": 1}, all_of, 10.0) == 0
    assert still.seconds({"a": 1}, all_of, 12.0) == 2
    assert still.seconds({"a": 2}, all_of, 13.0) == 0, "it moved"
    assert still.seconds({"a": 2}, all_of, 15.0) == 2
    assert still.seconds({"a": 5}, all_of, 17.0) == 0, "it lacks nothing"
    assert still.seconds({"a": 5}, all_of, 99.0) == 0


# ---------------------------------------------------------------------------------------------- what the user writes


@pytest.mark.parametrize(
    "settings",
    [{}, {"mode": "master"}, pytest.param({"discipline": "mix"}, marks=pytest.mark.long)],
    ids=["p2p", "master", "mix"],
)
def test_what_is_written_between_trainings_counts(settings: Any) -> None:
    """Mixing, an update moves the mean of two replicas by half of itself."""
    step = PARTS * CHUNKS / (2 if "discipline" in settings else 1)
    with DeepDist({"n": np.zeros(3)}, peers=2, **settings) as dd:
        train(dd, ones)
        dd.model["n"][:] = [100, 200, 300]
        assert dd.model["n"].tolist() == [100, 200, 300], "to read it again changes nothing"
        train(dd, ones)
        np.testing.assert_allclose(dd.model["n"], [100 + step, 200 + step, 300 + step], rtol=1e-6)
        dd.model["n"][:] = 7
    assert dd.model["n"].tolist() == [7, 7, 7], "nor does the end of the session"


def test_workers_begin_with_what_was_written(tmp_path: Path) -> None:
    def first(model, rows):
        list(rows)
        return {"n": np.array([1e8, 1, 1], np.float32)}

    def second(model, rows):
        list(rows)
        (tmp_path / str(os.getpid())).write_text(repr(model["n"].tolist()))
        return {"n": np.zeros(3)}

    with DeepDist({"n": np.zeros(3, np.float32)}, peers=2) as dd:
        dd.train([[1]], first)
        dd.model["n"][:] = written = np.array(
            [0.1, 3e38, -1e-30], np.float32
        )  # a plain difference would be rounded away
        dd.train([[1], [2], [3], [4]], second)
        assert dd.model["n"].tolist() == written.tolist()
    seen = {path.read_text() for path in tmp_path.iterdir()}
    assert seen == {repr(written.tolist())}


def test_what_was_written_waits_for_whoever_stands_still(place: Any, tmp_path: Path, stopped: set[int]) -> None:
    """Its two parts must not be summed on the way: rounded, nothing of the smaller numbers would be left."""

    def first(model, rows):
        list(rows)
        return {"n": np.array([1e8, 1, 1], np.float32)}

    def second(model, rows):
        list(rows)
        (tmp_path / "seen").write_text(repr(model["n"].tolist()))

    with DeepDist({"n": np.zeros(3, np.float32)}, peers=1) as dd:
        dd.train([[1]], first)
        dd.model["n"][:] = written = np.array([0.1, 3e38, -1e-30], np.float32)
        stopped.update(place.agents() - {observer_of(dd).pid})
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        wake = threading.Timer(1.5, lambda: [os.kill(pid, signal.SIGCONT) for pid in stopped])
        wake.start()
        dd.train([[1]], second)
        wake.join()
        assert (tmp_path / "seen").read_text() == repr(written.tolist())
        assert dd.model["n"].tolist() == written.tolist()


def test_a_worker_that_trains_in_place_begins_with_what_was_written(tmp_path: Path) -> None:
    """It keeps its copy from task to task, and loads it anew only in another training."""

    def gradient(model, rows):
        copy = in_place(model)
        with (tmp_path / "seen").open("a") as file:
            print(model["n"].tolist(), file=file)
        for _ in rows:
            model["n"] += 1
        return copy.trained({})

    with DeepDist({"n": np.zeros(3)}, peers=1) as dd:
        dd.train([[1], [2]], gradient)
        dd.model["n"][:] = 100
        dd.train([[3]], gradient)
        assert dd.model["n"].tolist() == [101] * 3
    assert (tmp_path / "seen").read_text().splitlines() == [repr([value] * 3) for value in (0.0, 1.0, 100.0)]


def test_what_cannot_be_written_is_refused() -> None:
    with DeepDist({"n": np.zeros(3)}, peers=1) as dd:
        train(dd, ones)
        dd.model["n"][1] = np.nan
        with pytest.raises(UsageError, match="the model's 'n'"):
            train(dd, ones)
        dd.model["n"][1] = np.finfo(float).max  # a difference of more than that is none
        dd.train([[1]], lambda model, rows: None)
        dd.model["n"][1] = -np.finfo(float).max
        with pytest.raises(UsageError, match="given numbers that cannot be published: 'n'"):
            train(dd, ones)
        dd.model["n"][1] = 0
        train(dd, ones)
        assert dd.model["n"].tolist() == [2 * PARTS * CHUNKS, PARTS * CHUNKS, 2 * PARTS * CHUNKS]


# ---------------------------------------------------------------------------------------------------- one at a time


def test_a_second_training_at_a_time_is_refused(beside: Any, tmp_path: Path) -> None:
    gradient, refused = Slow(tmp_path), []

    def train_too() -> None:
        try:
            train(dd, ones)
        except UsageError as error:
            refused.append(str(error))

    with DeepDist({"n": np.zeros(3)}, peers=2) as dd:
        thread = beside(gradient, train_too)
        train(dd, gradient)
        thread.join()
        assert len(refused) == 1
        assert "another training of this session is running" in refused[0]
        assert dd.model["n"].tolist() == [PARTS * CHUNKS] * 3
        train(dd, ones)


def test_the_model_can_be_read_while_the_first_training_begins() -> None:
    errors: list[Exception] = []
    ended = threading.Event()

    def read() -> None:
        try:
            while not ended.is_set():
                dd.model["n"].sum()
        except Exception as error:  # noqa: BLE001 - any is one too many
            errors.append(error)

    with DeepDist({"n": np.zeros(3)}, peers=1) as dd:
        thread = threading.Thread(target=read)
        thread.start()
        try:
            train(dd, ones)
        finally:
            ended.set()
            thread.join()
        assert errors == []


def test_a_model_is_trained_by_one_open_session() -> None:
    model = {"n": np.zeros(3), "m": np.zeros(2)}
    with DeepDist(model, peers=1) as outer:
        train(outer, ones)
        view = {"k": model["n"][:2]}
        for other in (model, dict(model), view):
            with pytest.raises(UsageError, match="trained by another session that is still open"), DeepDist(other):
                pass
        with DeepDist({"n": np.zeros(3)}, peers=1) as inner:
            train(inner, ones)
    with DeepDist(model, peers=1) as later:
        train(later, ones)
    assert model["n"].tolist() == [2 * PARTS * CHUNKS] * 3


# ------------------------------------------------------------------------------------------------------------- a master


def add(model, update):
    model["n"] += update["n"]


def fail(model, update):
    raise ValueError("bad")


def test_a_training_after_one_that_failed_has_its_own_updates_only() -> None:
    with DeepDist({"n": np.zeros(3)}, "master", peers=2) as dd:
        for _ in range(3):
            with pytest.raises(ValueError, match="bad"):
                train(dd, ones, descent=fail)
            before = dd.model["n"].tolist()
            report = train(dd, ones, descent=add)
            assert dd.model["n"].tolist() == [value + PARTS * CHUNKS for value in before]
            assert report.updates == PARTS * CHUNKS
            assert report.updates_lost == 0


def test_workers_wait_for_a_master_that_does_not_keep_up() -> None:
    def slow(model, update):
        time.sleep(0.2)
        add(model, update)

    with DeepDist({"n": np.zeros(3)}, "master", peers=3, drain_timeout_s=0.1) as dd:
        report = dd.train([range(3)] * 3, ones, slow, chunk_rows=1)
        assert dd.model["n"].tolist() == [9] * 3
        assert (report.updates, report.updates_lost) == (9, 0)
        assert max(peer.staleness_median for peer in report.peers) <= 2, (
            "those of the two others that computed meanwhile"
        )
