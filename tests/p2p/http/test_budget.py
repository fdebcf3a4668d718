"""The memory that bodies of requests share."""

from __future__ import annotations

import threading

import pytest

from p2p.http.budget import Budget
from p2p.http.messages import Refused

TIMEOUT_S = 60.0


def test_what_is_reserved_is_given_back() -> None:
    budget = Budget(100, wait_s=0.0)
    with budget.share() as one, budget.share() as other:
        one.grow(60)
        one.grow(50)
        one.grow(70)
        assert budget.used == 70
        with pytest.raises(Refused, match="other updates take 70 of the 100 bytes") as caught:
            other.grow(31)
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
        other.grow(30)
        assert budget.used == 100
    assert budget.used == 0


def test_who_has_nothing_waits_for_room_and_who_has_some_does_not() -> None:
    budget = Budget(100, wait_s=TIMEOUT_S)
    waits = threading.Event()

    def second() -> None:
        with budget.share() as share:
            waits.set()
            share.grow(80)
            assert budget.used == 80

    with budget.share() as first, budget.share() as third:
        first.grow(50)
        third.grow(10)
        with pytest.raises(Refused):
            third.grow(60)
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(TIMEOUT_S)
        assert thread.is_alive()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert budget.used == 0
