"""Bounded staleness, in a simulation of workers of any speed that may die."""

from __future__ import annotations

import heapq
import random
from typing import Any

import pytest

from p2p.driver.tickets import Tickets


class Day:
    """Workers that compute for random times, some for very long, and of which some die; all is drawn from a seed."""

    def __init__(
        self, seed: int, max_staleness: int | None, workers: int = 6, updates: int = 60, agreed_s: float = 0.0
    ) -> None:
        """`agreed_s`: until an update is applied, others agree on it for so long."""
        self.agreed_s = agreed_s
        self.pending = 0
        self.random = random.Random(seed)
        self.tickets = Tickets(max_staleness)
        self.version = 0
        self.staleness: list[int] = []
        self.base: dict[Any, int] = {}
        self.events: list[tuple[float, int, str, Any]] = []
        self.now = 0.0
        self.count = 0
        self.attempts = [0] * workers
        self.slow = {number: self.random.choice([1.0, 1.0, 8.0]) for number in range(workers)}
        self.updates = updates
        for number in range(workers):
            self.tickets.ask((number, 0), (0, number), 0)
        self.go_on()

    def later(self, seconds: float, what: str, worker: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + seconds, self.count, what, worker))

    def go_on(self) -> None:
        while (step := self.tickets.next(self.version, self.pending)) is not None:
            what, worker = step
            if what == "give":
                self.base[worker] = self.version
                dies = self.random.random() < 0.1
                self.later(self.random.expovariate(1 / self.slow[worker[0]]), "dies" if dies else "pushes", worker)
            elif self.agreed_s:
                self.pending += 1
                self.later(self.agreed_s, "applied", worker)  # in order
            else:
                self.applied(worker)

    def applied(self, worker: Any) -> None:
        self.staleness.append(self.version - self.base[worker])
        self.version += 1
        self.later(0.01, "asks", worker)

    def run(self) -> None:
        while self.version < self.updates:
            assert self.events, "nobody waits for ever"
            self.now, _, what, worker = heapq.heappop(self.events)
            number = worker[0]
            if what == "dies":  # the engine tries again, a little later
                self.attempts[number] += 1
                self.later(2.0, "asks", (number, self.attempts[number]))
            elif what == "applied":
                self.pending -= 1
                self.applied(worker)
            elif what == "asks":
                self.tickets.ask(worker, (0, number), worker[1])
            else:
                assert self.tickets.push(worker)
            self.go_on()


@pytest.mark.parametrize("agreed_s", [0.0, 0.5])
@pytest.mark.parametrize("max_staleness", [0, 1, 2, 5])
def test_no_applied_update_is_older_than_it_may_be(max_staleness: int, agreed_s: float) -> None:
    for seed in range(300):
        day = Day(seed, max_staleness, agreed_s=agreed_s)
        day.run()
        assert max(day.staleness) <= max_staleness, seed


def test_without_a_bound_nobody_waits_and_some_updates_are_old() -> None:
    assert max(max(_run(seed).staleness) for seed in range(20)) > 5


def _run(seed: int) -> Day:
    day = Day(seed, None)
    day.run()
    return day


def test_with_none_at_all_one_computes_at_a_time() -> None:
    tickets = Tickets(0)
    tickets.ask("a", (0, 0), 0)
    tickets.ask("b", (0, 1), 0)
    assert [tickets.next(0), tickets.next(0)] == [("give", "a"), None]
    assert tickets.push("a")
    assert [tickets.next(0), tickets.next(1), tickets.next(1)] == [("apply", "a"), ("give", "b"), None]


def test_an_update_waits_for_one_that_is_due() -> None:
    tickets = Tickets(1)
    tickets.ask("slow", (0, 0), 0)
    tickets.ask("fast", (0, 1), 0)
    assert [tickets.next(0) for _ in range(3)] == [("give", "slow"), ("give", "fast"), None]
    tickets.push("fast")
    assert [tickets.next(0), tickets.next(1)] == [("apply", "fast"), None]
    tickets.ask("fast", (0, 1), 0)
    assert tickets.next(1) == ("give", "fast")
    tickets.push("fast")
    assert tickets.next(1) is None, "the slow one would be two versions old"
    tickets.push("slow")
    assert [tickets.next(1), tickets.next(2)] == [("apply", "slow"), ("apply", "fast")]


def test_who_leaves_or_is_tried_again_holds_nobody_up() -> None:
    tickets = Tickets(0)
    tickets.ask("dead", (0, 0), 0)
    tickets.ask("waits", (0, 1), 0)
    assert tickets.next(0) == ("give", "dead")
    tickets.ask("again", (0, 0), 1)
    assert tickets.next(0) == ("give", "waits")
    tickets.leave("waits")
    assert tickets.next(0) == ("give", "again")
    assert not tickets.push("dead"), "its ticket went to another attempt"
    assert not tickets.push("waits")
