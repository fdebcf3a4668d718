"""The driver program's side of a group of masters, with standbys that are played here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import zmq

from p2p.standby import launch
from p2p.standby.launch import Followed, Standbys
from p2p.standby.messages import Here, OfHouse, Open, Opened, Place
from p2p.standby.ties import Ties

pytestmark = pytest.mark.sockets


class Played:
    """A standby that says that it is there ten times a second, and does with messages as it is told."""

    def __init__(self, standbys: Standbys, hears: Callable[[Ties, OfHouse], None]) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._ties = Ties(self._context, "the run", 0, 0, "127.0.0.1", None)
        self._ties.connect(standbys.count, standbys._ties.endpoint)
        self.here = Here(place=Place(self._ties.endpoint, "tcp://nowhere:1"), pid=1)
        self._hears = hears
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            self._ties.say(2, self.here)
            for _, message, _ in self._ties.hear():
                if isinstance(message, OfHouse):
                    self._hears(self._ties, message)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._ties.close()
        self._context.term()


@pytest.fixture
def standbys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standbys]:
    monkeypatch.setattr(launch, "AGAIN_S", 0.3)
    found = Standbys(Followed(2), "the run", "127.0.0.1", None)
    yield found
    found.close()


def test_one_that_missed_that_a_training_begins_is_told_again(standbys: Standbys) -> None:
    """It was with the one before."""
    told: list[Open] = []

    def hears(ties: Ties, message: OfHouse) -> None:
        if isinstance(message, Open):
            told.append(message)
            if len(told) > 1:
                ties.say(2, Opened(training=message.training))

    played = Played(standbys, hears)
    try:
        standbys._hear(0, played.here)
        standbys._alive = {0: lambda: True}
        standbys.count = 1
        assert standbys._open((Place(),) * 3, b"the training") == []
    finally:
        played.close()
    assert len(told) == 2
