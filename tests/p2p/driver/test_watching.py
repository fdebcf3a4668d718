"""The thread in which watchers look, on a training that is no more than a number of updates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.adapters.model import Model
from p2p.driver.watchers import Done, Moment, Seen, Watching, check_watchers, look

SOON_S = 60.0
LONG_S = 3600.0


class Eye:
    """It keeps what it saw, and tells when it has seen enough."""

    def __init__(self, every_s: float = LONG_S, enough: int = 1) -> None:
        self.every_s = every_s
        self.seen: list[tuple[float, Moment]] = []
        self.has_enough = threading.Event()
        self._enough = enough

    def __str__(self) -> str:
        return "the eye"

    def look(self, model: Any, moment: Moment) -> None:
        self.seen.append((float(model["w"][0]), moment))
        if len(self.seen) >= self._enough:
            self.has_enough.set()


class Training:
    """Each time that it is read it has learned two updates more."""

    def __init__(self) -> None:
        self.merged = 10
        self.cancelled = 0
        self.is_cancelled = threading.Event()
        self.skeletons = 0
        self.progress: list[tuple[int, int]] = []
        self.done = Done(lambda done, of: self.progress.append((done, of)), 6)

    def skeleton(self) -> bytes:
        self.skeletons += 1
        return Model({"w": np.zeros(1)}).skeleton()

    def read(self, model: Model) -> Seen:
        merged, self.merged = self.merged, self.merged + 2
        model.load({"w": np.full(1, float(merged))})
        return Seen(merged=merged, consensus_distance=0.5, spread=0.25)

    def cancel(self) -> None:
        self.cancelled += 1
        if self.cancelled == 2:  # it is asked again and again, as the engine may not have begun
            self.is_cancelled.set()

    def watched_by(self, *watchers: Any) -> Watching:
        return Watching(watchers, self.skeleton, self.read, self.done, self.cancel)


def test_each_looks_at_the_beginning_and_at_the_end() -> None:
    training, eyes = Training(), (Eye(), Eye())
    with training.watched_by(*eyes) as watching:
        for eye in eyes:
            assert eye.has_enough.wait(SOON_S)
        training.done(4, 6)
    watching.finish()
    assert watching.error is None
    assert training.skeletons == 1
    assert [value for value, _ in eyes[0].seen] == [10, 12], "at first all see the model of the beginning"
    assert [value for value, _ in eyes[1].seen] == [10, 14]
    first, last = (moment for _, moment in eyes[0].seen)
    assert (first.updates, last.updates) == (0, 2), "of this training: those of before are in the model from the start"
    assert (first.partitions_done, first.partitions, first.ended) == (0, 6, False)
    assert (last.partitions_done, last.partitions, last.ended) == (4, 6, True)
    assert (last.consensus_distance, last.spread) == (0.5, 0.25)
    assert 0.0 == first.seconds < last.seconds < SOON_S
    assert training.progress == [(0, 6), (4, 6)]


def test_each_looks_in_a_period_of_its_own() -> None:
    training, often, seldom = Training(), Eye(0.001, enough=5), Eye()
    with training.watched_by(seldom, often):
        assert often.has_enough.wait(SOON_S)
    assert len(seldom.seen) == 1
    seconds = [moment.seconds for _, moment in often.seen]
    assert seconds == sorted(seconds)


def test_who_waits_for_the_next_look_ends_with_the_training() -> None:
    training, eye = Training(), Eye()
    watching = training.watched_by(eye)
    with watching:
        assert eye.has_enough.wait(SOON_S)
    assert not watching._thread.is_alive()
    assert len(eye.seen) == 1


def test_without_watchers_nothing_is_read() -> None:
    training = Training()
    with training.watched_by() as watching:
        assert not watching._thread.is_alive()
    watching.finish()
    assert (training.skeletons, training.merged) == (0, 10)


def test_updates_are_not_fewer_than_none() -> None:
    training, eye = Training(), Eye()
    with training.watched_by(eye) as watching:
        assert eye.has_enough.wait(SOON_S)
    training.merged = 3  # another replica, that has less
    watching.finish()
    assert [moment.updates for _, moment in eye.seen] == [0, 0]
    assert eye.seen[1][0] == 3


def test_what_a_watcher_changes_the_next_one_does_not_see() -> None:
    class Spoils(Eye):
        def look(self, model: Any, moment: Moment) -> None:
            super().look(model, moment)
            model["w"][:] = -1

    training, eyes = Training(), (Spoils(), Spoils(), Spoils())
    with training.watched_by(*eyes):
        for eye in eyes:
            assert eye.has_enough.wait(SOON_S)
    assert [eye.seen[0][0] for eye in eyes] == [10, 10, 10]


def fails(error: BaseException) -> Callable[[Any, Moment], None]:
    def look(model: Any, moment: Moment) -> None:
        raise error

    return look


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no")])
def test_a_watcher_that_fails_ends_the_training(error: BaseException) -> None:
    training, eye = Training(), Eye()
    eye.look = fails(error)  # type: ignore[method-assign]
    with training.watched_by(eye) as watching:
        assert training.is_cancelled.wait(SOON_S)
    assert isinstance(watching.error, ValueError if isinstance(error, ValueError) else RuntimeError)
    assert error.__notes__ == ["in the eye, while the training ran"]
    with pytest.raises(type(watching.error)):
        watching.finish()


def test_a_look_that_takes_long_is_not_waited_for_where_the_training_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.driver.watchers.STOP_TIMEOUT_S", 0.01)
    training, eye, go_on = Training(), Eye(), threading.Event()
    begun = threading.Event()

    def slow(model: Any, moment: Moment) -> None:
        begun.set()
        go_on.wait(SOON_S)

    eye.look = slow  # type: ignore[method-assign]
    watching = training.watched_by(eye)
    watching.__enter__()
    assert begun.wait(SOON_S)
    watching.__exit__(KeyError, KeyError(), None)
    assert watching._thread.is_alive()
    go_on.set()
    watching._thread.join(SOON_S)
    assert not watching._thread.is_alive()


def test_an_error_at_the_end_says_so() -> None:
    eye = Eye()
    eye.look = fails(ValueError("no"))  # type: ignore[method-assign]
    moment = Moment(seconds=0.0, updates=0, partitions_done=0, partitions=0, ended=True)
    with pytest.raises(ValueError, match="no") as caught:
        look(eye, {}, moment)
    assert caught.value.__notes__ == ["in the eye, at the end of the training"]


def test_a_watcher_without_a_name_is_called_by_its_class() -> None:
    class Nameless(Eye):
        def __str__(self) -> str:
            raise KeyError

    eye = Nameless()
    eye.look = fails(ValueError("no"))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no") as caught:
        look(eye, {}, Moment(seconds=0.0, updates=0, partitions_done=0, partitions=0))
    assert caught.value.__notes__ == ["in Nameless, while the training ran"]


class Asynchronous(Eye):
    async def look(self, model: Any, moment: Moment) -> None:  # type: ignore[override]
        """Nobody awaits it."""


class Blind:
    every_s = 1.0


@pytest.mark.parametrize(
    ("watchers", "words"),
    [
        (None, "watchers is a NoneType, expected a list of p2p.Watcher"),
        ([Eye(), 1], r"watchers\[1\] is a int, expected a p2p.Watcher"),
        ([Blind()], r"watchers\[0\] is a Blind"),
        ([Eye], r"watchers\[0\] is a type"),
        ([Asynchronous()], r"watchers\[0\] is a Asynchronous"),
        ([Eye(), Eye(-1.0)], r"watchers\[1\].every_s"),
    ],
)
def test_what_is_no_watcher_is_refused(watchers: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_watchers(watchers)


def test_watchers_are_what_they_were() -> None:
    eye = Eye()
    assert check_watchers([eye]) == check_watchers((eye,)) == (eye,)
