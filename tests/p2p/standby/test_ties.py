"""The sockets between the members of a group: who is heard, and who is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import zmq

from p2p.standby.messages import Leave, Silent
from p2p.standby.ties import Ties

HEARD_S = 10.0
Opens = Callable[..., Ties]


@pytest.fixture
def opened() -> Iterator[Opens]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    all_ties: list[Ties] = []

    def open_ties(me: int, life: int = 0, run: str = "the run") -> Ties:
        ties = Ties(context, run, me, life, "127.0.0.1", None)
        all_ties.append(ties)
        return ties

    yield open_ties
    for ties in all_ties:
        ties.close()
    context.term()


def said(sender: Ties, listener: Ties, message: Silent | Leave) -> None:
    """To a listener."""
    sender.connect(0, listener.endpoint)
    sender.say(0, message)


def heard(listener: Ties, until: int) -> list[int]:
    """Who was heard, up to the member `until`."""
    found: list[int] = []
    while until not in found and listener.inbox.poll(int(HEARD_S * 1e3)):
        found += [sender for sender, _, _ in listener.hear()]
    return found


def test_an_earlier_life_is_not_heard_once_another_is_expected(opened: Opens) -> None:
    """Though the later one has said nothing yet."""
    listener, early, late = opened(0), opened(1), opened(1, life=1)
    listener.expect(1, 1)
    said(early, listener, Leave())
    assert listener.inbox.poll(int(HEARD_S * 1e3))
    assert list(listener.hear()) == []
    said(late, listener, Leave())
    assert heard(listener, 1) == [1]


def test_an_earlier_life_is_not_heard_after_a_later_one(opened: Opens) -> None:
    listener, early, late = opened(0), opened(1), opened(1, life=1)
    said(late, listener, Leave())
    assert heard(listener, 1) == [1]
    said(early, listener, Leave())
    assert listener.inbox.poll(int(HEARD_S * 1e3))
    assert list(listener.hear()) == []


def test_who_does_not_know_the_run_is_not_heard(opened: Opens) -> None:
    listener, stranger = opened(0), opened(1, run="another")
    said(stranger, listener, Leave())
    assert listener.inbox.poll(int(HEARD_S * 1e3))
    assert list(listener.hear()) == []


def test_what_is_said_in_another_training_is_not_heard(opened: Opens) -> None:
    """But for what is of no training."""
    listener, other = opened(0), opened(1)
    other.training = 3
    said(other, listener, Silent(view=0))
    assert listener.inbox.poll(int(HEARD_S * 1e3))
    assert list(listener.hear()) == []
    said(other, listener, Leave())
    assert heard(listener, 1) == [1]


def test_frames_that_are_none_are_not_heard(opened: Opens) -> None:
    listener = opened(0)
    with zmq.Context() as context, context.socket(zmq.PUSH) as stranger:
        stranger.connect(listener.endpoint)
        for frames in ([b""], [b"\xc1", b"\xc1"], [b"x" * 1000] * 20):
            stranger.send_multipart(frames)
        said(opened(1), listener, Leave())
        assert heard(listener, 1) == [1]
