"""Bounded staleness, in a simulation of workers of any speed that may die, and be tried twice at the same time."""

from __future__ import annotations

import heapq
import random
from typing import Any

import pytest

from gossip.marks import Unit
from p2p.master.tickets import Tickets

CHUNKS = 6


class Day:
    """Partitions of a few chunks, in attempts that compute for random times, some for very long, and of which some die.

    A partition is tried again when all its attempts are gone, and with `speculates` also while they compute. Attempts
    begin at the first chunk, and do not compute those that count. All is drawn from a seed.
    """

    def __init__(self, seed: int, max_staleness: int | None, partitions: int = 6, speculates: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.tickets = Tickets[Any](max_staleness)
        self.speculates = speculates
        self.version = 0
        self.counted: set[Unit] = set()
        self.staleness: list[int] = []
        self.overtaken = 0
        """Updates of earlier attempts that counted, though another one was computing the same unit."""
        self.refused = 0
        self.events: list[tuple[float, int, str, Any]] = []
        self.now = 0.0
        self.count = 0
        self.base: dict[Any, int] = {}
        self.at: dict[Any, Unit] = {}
        """By living attempt: where it is."""
        self.attempts = [-1] * partitions
        self.slow = {partition: self.random.choice([1.0, 1.0, 8.0]) for partition in range(partitions)}
        for partition in range(partitions):
            self.try_again(partition)
        self.go_on()

    def later(self, seconds: float, what: str, worker: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + seconds, self.count, what, worker))

    def try_again(self, partition: int) -> None:
        self.attempts[partition] += 1
        worker = partition, self.attempts[partition]
        self.at[worker] = Unit(0, partition, 0)
        self.ask(worker)

    def ask(self, worker: Any) -> None:
        """For the first unit, from where it is, that does not count."""
        unit = self.at[worker]
        while unit in self.counted:
            unit = unit._replace(chunk=unit.chunk + 1)
        if unit.chunk < CHUNKS:
            self.at[worker] = unit
            self.tickets.ask(worker, unit, worker[1])
            return
        del self.at[worker]
        self.tickets.leave(worker)

    def push(self, worker: Any) -> None:
        """As the server does."""
        if self.tickets.push(worker, self.version):
            return
        if self.at[worker] in self.counted:
            self.ask(worker)
        else:
            self.refused += 1
            self.tickets.leave(worker)
            self.dies(worker)

    def dies(self, worker: Any) -> None:
        del self.at[worker]
        if not any(other[0] == worker[0] for other in self.at):
            self.later(2.0, "tried", worker[0])

    def go_on(self) -> None:
        while (step := self.tickets.next(self.version)) is not None:
            what, worker = step
            if what == "give" and self.at[worker] in self.counted:
                self.ask(worker)
            elif what == "give":
                self.base[worker] = self.version
                dies = self.random.random() < 0.1
                self.later(self.random.expovariate(1 / self.slow[worker[0]]), "dies" if dies else "pushes", worker)
                if self.random.random() < self.speculates:
                    self.later(self.random.expovariate(1.0), "copied", worker[0])
            elif what == "settle":
                self.push(worker)
            elif self.random.random() < 0.5:
                self.apply(worker)
            else:  # models are given meanwhile
                self.later(self.random.expovariate(2.0), "applied", worker)

    def apply(self, worker: Any) -> None:
        unit = self.at[worker]
        if unit not in self.counted:
            self.counted.add(unit)
            self.staleness.append(self.version - self.base[worker])
            self.version += 1
            others = (other for other, at in self.at.items() if at == unit)
            self.overtaken += any(other[1] > worker[1] for other in others)
        self.tickets.applied(worker)
        self.ask(worker)

    def run(self) -> None:
        while self.events:
            self.now, _, what, worker = heapq.heappop(self.events)
            if what == "tried" or (what == "copied" and sum(at[0] == worker for at in self.at) == 1):
                self.try_again(worker)
            elif what == "copied":
                pass  # Spark has one copy at a time
            elif what == "applied":
                self.apply(worker)
            elif what == "dies":  # its ticket stays, as nobody tells
                self.dies(worker)
            else:
                self.push(worker)
            self.go_on()
        assert len(self.counted) == len(self.attempts) * CHUNKS, "nobody waits for ever"
        assert self.version == len(self.counted)


@pytest.mark.parametrize("speculates", [0.0, 0.2])
@pytest.mark.parametrize("max_staleness", [0, 1, 2, 5])
def test_no_applied_update_is_older_than_it_may_be(max_staleness: int, speculates: float) -> None:
    for seed in range(150):
        day = Day(seed, max_staleness, speculates=speculates)
        day.run()
        assert max(day.staleness) <= max_staleness, seed


@pytest.mark.parametrize("max_staleness", [0, 1, 5])
def test_of_two_attempts_at_a_unit_the_first_that_comes_counts(max_staleness: int) -> None:
    days = [Day(seed, max_staleness, speculates=0.3) for seed in range(50)]
    for day in days:
        day.run()
    assert sum(day.overtaken for day in days) > 100
    assert sum(day.refused for day in days) == 0, "they share a place, so none is ever too old"


def test_without_a_bound_nobody_waits_and_some_updates_are_old() -> None:
    assert max(max(_run(seed).staleness) for seed in range(20)) > 5


def _run(seed: int) -> Day:
    day = Day(seed, None)
    day.run()
    return day


A, B, C = (Unit(0, partition, 0) for partition in range(3))


def applied(tickets: Tickets[str], version: int) -> str:
    """Whose update is to be applied next, and is."""
    step = tickets.next(version)
    assert step is not None
    assert step[0] == "apply"
    tickets.applied(step[1])
    return step[1]


def test_models_are_given_and_nothing_is_applied_while_an_update_is() -> None:
    tickets = Tickets[str](2)
    for worker, unit in (("a", A), ("b", B)):
        tickets.ask(worker, unit, 0)
        assert tickets.next(0) == ("give", worker)
    assert tickets.push("a", 0)
    assert tickets.push("b", 0)
    assert tickets.next(0) == ("apply", "a")
    tickets.ask("c", C, 0)
    assert [tickets.next(0), tickets.next(0)] == [("give", "c"), None]
    tickets.ask("d", Unit(0, 3, 0), 0)
    assert tickets.next(0) is None, "two are before it by the time that it has an update, and one that is applied now"
    tickets.applied("a")
    assert [tickets.next(1), tickets.next(1)] == [("apply", "b"), ("give", "d")]
    tickets.leave("b")
    assert tickets.next(1) is None


def test_with_none_at_all_one_computes_at_a_time() -> None:
    tickets = Tickets[str](0)
    tickets.ask("a", A, 0)
    tickets.ask("b", B, 0)
    assert [tickets.next(0), tickets.next(0)] == [("give", "a"), None]
    assert tickets.push("a", 0)
    assert applied(tickets, 0) == "a"
    assert [tickets.next(1), tickets.next(1)] == [("give", "b"), None]


def test_an_update_waits_for_one_that_is_due() -> None:
    tickets = Tickets[str](1)
    tickets.ask("slow", A, 0)
    tickets.ask("fast", B, 0)
    assert [tickets.next(0) for _ in range(3)] == [("give", "slow"), ("give", "fast"), None]
    tickets.push("fast", 0)
    assert applied(tickets, 0) == "fast"
    assert tickets.next(1) is None
    tickets.ask("fast", Unit(0, 1, 1), 0)
    assert tickets.next(1) == ("give", "fast")
    tickets.push("fast", 1)
    assert tickets.next(1) is None, "the slow one would be two versions old"
    tickets.push("slow", 1)
    assert [applied(tickets, 1), applied(tickets, 2)] == ["slow", "fast"]


def test_attempts_at_one_unit_share_a_place_and_either_may_come_first() -> None:
    for first, second in (("early", "late"), ("late", "early")):
        tickets = Tickets[str](0)
        tickets.ask("early", A, 0)
        tickets.ask("waits", B, 0)
        assert tickets.next(0) == ("give", "early")
        tickets.ask("late", A, 1)
        assert [tickets.next(0), tickets.next(0)] == [("give", "late"), None]
        assert tickets.push(first, 0)
        assert applied(tickets, 0) == first
        assert [tickets.next(1), tickets.next(1)] == [("give", "waits"), None]
        assert not tickets.push(second, 1), "its unit is applied, and the other's place is taken"
        tickets.ask(second, Unit(0, 0, 1), 1)
        assert tickets.next(1) is None
        assert tickets.push("waits", 1)
        assert applied(tickets, 1) == "waits"
        assert tickets.next(2) == ("give", second)


def test_who_waits_for_a_unit_that_counts_by_now_is_told_so_at_once() -> None:
    tickets = Tickets[str](0)
    tickets.ask("first", A, 1)
    tickets.ask("second", B, 0)
    assert tickets.next(0) == ("give", "first")
    tickets.counts(B)
    assert [tickets.next(0), tickets.next(0)] == [("give", "second"), None]
    tickets.ask("third", B, 1)
    assert tickets.next(0) is None, "the second one's place is none"


def test_one_that_was_pushed_before_another_of_its_unit_was_applied_is_settled_then() -> None:
    tickets = Tickets[str](1)
    for worker, unit, attempt in (("slow", B, 0), ("early", A, 0), ("late", A, 1)):
        tickets.ask(worker, unit, attempt)
        assert tickets.next(0) == ("give", worker)
    for worker in ("early", "late"):
        assert tickets.push(worker, 0)
    assert applied(tickets, 0) == "early"
    assert [tickets.next(1), tickets.next(1)] == [("settle", "late"), None]
    assert not tickets.push("late", 1), "with the slow one it would come too late"
    tickets.push("slow", 1)
    assert applied(tickets, 1) == "slow"


def test_who_leaves_or_is_tried_again_holds_nobody_up() -> None:
    tickets = Tickets[str](0)
    tickets.ask("dead", A, 0)
    tickets.ask("waits", B, 0)
    assert tickets.next(0) == ("give", "dead")
    tickets.ask("again", Unit(0, 0, 1), 1)
    assert tickets.next(0) == ("give", "waits"), "the partition is tried again, from another unit on"
    assert not tickets.push("dead", 0), "its place is taken"
    tickets.leave("waits")
    assert tickets.push("dead", 0), "and is free now"
    assert applied(tickets, 0) == "dead"
    assert tickets.next(1) == ("give", "again")
    assert not tickets.push("waits", 1)
