"""Synchronous steps, in a simulation of workers of any speed that may die, and of clusters with too few of them."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from gossip.fields import COUNT_MAX
from gossip.marks import Unit
from p2p.master import barrier as module
from p2p.master.barrier import Barrier, Place
from p2p.row_order import numbered

SLOTS_SHORT = 500.0
"""Virtual seconds that a step may take where slots are lacking: it is found out by waiting."""


@dataclass
class Task:
    """One attempt at a partition in one run."""

    partition: int
    number: int
    chunk: int = 0
    dead: bool = False

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class Cluster:
    """An engine with `slots`, whose tasks compute for random times, and of which some die; all is drawn from a seed."""

    def __init__(
        self,
        seed: int,
        chunks: list[int],
        slots: int,
        told: int | None = None,
        epochs: int = 2,
        dies: float = 0.05,
        skips: float = 0.1,
    ) -> None:
        """`chunks` of each partition; the barrier is `told` of so many slots."""
        self.random = random.Random(seed)
        self.chunks, self.slots, self.dies, self.skips = chunks, slots, dies, skips
        self.now, self.count, self.tasks = 0.0, 0, 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.taken: list[Unit] = []
        """Of the step that goes on."""
        self.steps: list[tuple[Place, int, list[Unit]]] = []
        self.version = 0
        self.runs: list[Place] = []
        self.loses = 0
        """So many of the next that compute die, and take their slots with them."""
        self.nothing: set[Unit] = set()
        """Chunks that came to nothing."""
        width = told or slots
        self.barrier: Barrier[Any] = Barrier(range(3, 3 + epochs), len(chunks), width, self.change, lambda: self.now)

    def change(self) -> None:
        assert self.barrier.wave is not None
        if self.taken:
            self.version += 1
            self.steps.append((self.barrier.wave, self.barrier.step - 1, sorted(self.taken)))
        self.taken = []

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + seconds, self.count, what))

    def unit(self, task: Task) -> Unit:
        return Unit(self.epoch, task.partition, numbered(7, task.chunk))

    def run(self) -> None:
        """Until the training is over."""
        while (wave := self.barrier.wave) is not None:
            before = wave, self.barrier.step
            self.barrier.run_again()
            self.runs.append(wave)
            self.epoch = wave.epoch
            self.todo = list(range(len(self.chunks)))
            self.busy = 0
            self.fill()
            while self.busy or self.todo:
                if not self.events:
                    assert self.barrier.waits, "somebody is busy, and nobody waits: nobody will ever go on"
                    self.later(1.0, lambda: None)
                self.now, _, what = heapq.heappop(self.events)
                what()
                self.go_on()
            assert (self.barrier.wave, self.barrier.step) != before, "each run brings the training on"

    def fill(self) -> None:
        while self.todo and self.busy < self.slots:
            self.begin(self.todo.pop(0))

    def begin(self, partition: int) -> None:
        self.busy += 1
        self.tasks += 1
        task = Task(partition, self.tasks)
        end = Unit(self.epoch, partition, COUNT_MAX)
        if self.wave_lacks(partition) or self.barrier.passed(end):
            self.later(0.01, self.over)
        else:
            self.later(0.01, lambda: self.goes_on(task))

    def wave_lacks(self, partition: int) -> bool:
        wave = self.barrier.wave
        return wave is None or wave.epoch != self.epoch or partition not in wave.partitions

    def goes_on(self, task: Task) -> None:
        """It looks for its next chunk."""
        if task.chunk == self.chunks[task.partition]:
            self.barrier.end(self.epoch, task.partition)
            self.barrier.leave(task)
            self.over()
            return
        unit = self.unit(task)
        if unit in self.taken or self.barrier.passed(unit):
            task.chunk += 1
            self.later(0.001, lambda: self.goes_on(task))
            return
        self.barrier.ask(task, unit)

    def over(self) -> None:
        self.busy -= 1
        self.fill()

    def go_on(self) -> None:
        while (found := self.barrier.next(self.version)) is not None:
            what, task = found
            if what == "give":
                if not task.dead:
                    self.later(self.random.expovariate(1.0), lambda task=task: self.computed(task))  # type: ignore[misc]
            elif what == "later":
                if task.chunk == self.chunks[task.partition] and not task.dead:
                    self.goes_on(task)
                elif not task.dead:
                    self.over()
            else:
                unit = self.unit(task)
                if not self.barrier.passed(unit):
                    self.taken.append(unit)
                task.chunk += 1
                self.barrier.ask(task, self.unit(task))  # at once, before it knows whether it has more

    def computed(self, task: Task) -> None:
        if task.chunk == self.chunks[task.partition]:
            self.goes_on(task)  # it was given a model that it has no rows for
            return
        if self.loses:
            self.loses, self.slots = self.loses - 1, self.slots - 1
            self.died(task)
            return
        if self.random.random() < self.dies:
            self.died(task)
            return
        unit = self.unit(task)
        if self.random.random() < self.skips:
            self.nothing.add(unit)
            task.chunk += 1
            self.goes_on(task)
            return
        if self.random.random() < self.dies:  # after it has pushed: what it pushed is there
            self.barrier.push(task)
            self.died(task)
            return
        assert self.barrier.push(task)

    def died(self, task: Task) -> None:
        """The engine hears of it, and has another attempt as soon as there is room."""
        task.dead = True
        self.busy -= 1
        self.todo.insert(0, task.partition)
        self.later(2.0, self.fill)


def expected(cluster: Cluster, widths: list[range], epochs: int = 2) -> list[tuple[Place, int, list[Unit]]]:
    """The steps that there are, whatever happens to the workers."""
    found = []
    for epoch in range(3, 3 + epochs):
        for partitions in widths:
            for step in range(max((cluster.chunks[each] for each in partitions), default=0)):
                units = [Unit(epoch, each, numbered(7, step)) for each in partitions if cluster.chunks[each] > step]
                units = [unit for unit in units if unit not in cluster.nothing]
                if units:
                    found.append((Place(epoch, partitions), step, units))
    return found


@pytest.mark.parametrize("seed", range(60))
def test_a_step_is_a_chunk_of_each_partition_whoever_dies(seed: int) -> None:
    cluster = Cluster(seed, [4, 4, 1, 0, 3], slots=5)
    cluster.run()
    assert cluster.steps == expected(cluster, [range(5)])


@pytest.mark.parametrize("seed", range(60))
def test_with_fewer_workers_than_partitions_there_are_waves_as_wide_as_they_are(seed: int) -> None:
    cluster = Cluster(seed, [3, 1, 0, 0, 2, 5, 1], slots=2)
    cluster.run()
    assert cluster.steps == expected(cluster, [range(2), range(2, 4), range(4, 6), range(6, 7)])


def test_a_partition_a_worker_needs_no_run_but_one_each_epoch() -> None:
    cluster = Cluster(1, [6, 6, 6], slots=3, dies=0.0)
    cluster.run()
    assert len(cluster.runs) == 2


@pytest.mark.parametrize("seed", range(30))
def test_a_cluster_that_has_fewer_workers_than_it_says_holds_up_nobody(seed: int) -> None:
    """The first wave is as wide as it was told, and the next ones as there was room for."""
    cluster = Cluster(seed, [3, 2, 4, 3], slots=2, told=4, dies=0.0)
    cluster.run()
    first = expected(cluster, [range(4)], 1)
    rest = [each for each in expected(cluster, [range(2), range(2, 4)], 2) if each[0].epoch == 4]
    assert cluster.steps == first + rest
    again = [place for place in cluster.runs if place.epoch == 4]
    assert again == [Place(4, range(2)), Place(4, range(2, 4))], "each in one run"
    assert cluster.now < SLOTS_SHORT


@pytest.mark.parametrize("seed", range(30))
def test_workers_that_are_lost_in_the_middle_hold_up_nobody(seed: int) -> None:
    """One that dies takes its slot with it: the others, who wait, have to make room."""
    cluster = Cluster(seed, [5, 5, 5], slots=3, dies=0.0)
    cluster.later(3.0, lambda: setattr(cluster, "loses", 1))
    cluster.run()
    units = [unit for _, _, units in cluster.steps for unit in units]
    assert len(units) == len(set(units)) == 2 * 15 - len(cluster.nothing)
    assert cluster.slots == 2
    assert cluster.now < SLOTS_SHORT


def test_a_slow_gradient_costs_a_run_and_no_step() -> None:
    barrier, now, changes = made(range(1), 2, 2)
    barrier.ask("slow", Unit(0, 0, 0))
    barrier.ask("fast", Unit(0, 1, 0))
    assert [barrier.next(0), barrier.next(0), barrier.next(0)] == [("give", "slow"), ("give", "fast"), None]
    assert barrier.push("fast")
    assert barrier.next(0) == ("apply", "fast")
    barrier.ask("fast", Unit(0, 1, 1))
    assert barrier.next(0) is None
    barrier.ask("slow", Unit(0, 0, 1))  # chunk 0 came to nothing
    assert barrier.next(0) == ("give", "fast")
    assert barrier.next(0) == ("give", "slow")
    assert changes == [1]
    assert barrier.push("fast")
    assert barrier.next(0) == ("apply", "fast")
    barrier.ask("fast", Unit(0, 1, 2))
    assert barrier.next(0) is None
    now[0] += module.PATIENCE_S + 1
    assert barrier.waits
    assert barrier.next(0) == ("later", "fast")
    barrier.end(0, 0)
    barrier.run_again()
    barrier.ask("another", Unit(0, 1, 2))
    assert barrier.next(0) == ("give", "another")


def test_a_worker_that_was_waited_for_in_vain_is_given_more_time() -> None:
    barrier, now, _ = made(range(1), 2, 2)
    for run in range(2):
        barrier.run_again()
        barrier.ask("slow", Unit(0, 0, 0))
        barrier.ask("waits", Unit(0, 1, 1))
        assert barrier.next(0) == ("give", "slow")
        now[0] += module.PATIENCE_S + 1
        assert barrier.next(0) == (("later", "waits") if run == 0 else None)


@pytest.mark.parametrize("what", ["ask", "push", "end"])
def test_where_something_happens_nobody_is_sent_home(what: str) -> None:
    barrier, now, _ = made(range(1), 3, 3)
    barrier.ask("waits", Unit(0, 0, 1))
    barrier.ask("computes", Unit(0, 1, 0))
    assert barrier.next(0) == ("give", "computes")
    now[0] += module.PATIENCE_S - 1
    if what == "ask":
        barrier.ask("comes", Unit(0, 2, 0))
        assert barrier.next(0) == ("give", "comes")
    elif what == "push":
        assert barrier.push("computes")
        assert barrier.next(0) == ("apply", "computes")
    else:
        barrier.end(0, 2)
    now[0] += module.PATIENCE_S - 1
    assert barrier.next(0) is None
    now[0] += 2
    assert barrier.next(0) == ("later", "waits")


def test_who_has_left_brings_nothing() -> None:
    barrier, _, changes = made(range(1), 1, 1)
    barrier.ask("one", Unit(0, 0, 0))
    assert barrier.next(0) == ("give", "one")
    assert barrier.push("one")
    barrier.leave("one")
    assert barrier.next(0) is None
    assert changes == [0]


def test_the_end_of_a_partition_is_that_of_its_epoch() -> None:
    barrier, _, changes = made(range(4, 6), 1, 1)
    barrier.end(3, 0)
    assert barrier.next(0) is None
    assert (barrier.ended, changes) == (0, [0])


def test_a_slow_attempt_takes_nothing_back() -> None:
    barrier, _, changes = made(range(1), 1, 1)
    barrier.ask("fast", Unit(0, 0, 2))
    barrier.ask("slow", Unit(0, 0, 1))
    assert [barrier.next(0), barrier.next(0), barrier.next(0)] == [("give", "fast"), ("give", "slow"), None]
    assert (barrier.step, changes) == (2, [2])


def made(epochs: range, partitions: int, width: int) -> tuple[Barrier[str], list[float], list[int]]:
    now, changes = [0.0], [0]

    def change() -> None:
        changes[0] += 1

    return Barrier(epochs, partitions, width, change, lambda: now[0]), now, changes


def test_two_attempts_at_a_partition_side_by_side_count_once() -> None:
    barrier, _, changes = made(range(1), 1, 1)
    barrier.ask("one", Unit(0, 0, 0))
    barrier.ask("two", Unit(0, 0, 0))
    assert [barrier.next(0), barrier.next(0)] == [("give", "one"), ("give", "two")]
    assert barrier.push("two")
    assert barrier.next(0) == ("apply", "two")
    barrier.ask("two", Unit(0, 0, 1))
    assert barrier.next(0) == ("give", "two")
    assert barrier.passed(Unit(0, 0, 0))
    assert barrier.push("one")
    assert barrier.next(0) == ("apply", "one"), "it is told that its unit counts already"
    assert changes == [1]


def test_who_was_given_no_model_brings_no_update() -> None:
    barrier, _, _ = made(range(1), 1, 1)
    assert not barrier.push("nobody")


def test_what_is_left_of_another_wave_is_sent_home() -> None:
    barrier, _, _ = made(range(5, 7), 4, 2)
    barrier.ask("early", Unit(5, 3, 0))
    assert barrier.next(0) == ("later", "early")
    assert barrier.passed(Unit(4, 3, 9)), "an epoch from before"
    assert not barrier.passed(Unit(5, 2, 0))
    assert not barrier.passed(Unit(6, 0, 0))


def test_all_partitions_of_all_epochs_are_counted_as_they_end() -> None:
    barrier, _, _ = made(range(2, 4), 3, 2)
    counts = []
    for epoch, partition in [(2, 0), (2, 1), (2, 2), (3, 1), (3, 0), (3, 2)]:
        barrier.end(epoch, partition)
        assert barrier.next(0) is None
        counts.append(barrier.ended)
    assert counts == [1, 2, 3, 4, 5, 6]
    assert barrier.wave is None
    assert barrier.passed(Unit(3, 2, 0))
    barrier.ask("late", Unit(3, 2, 0))
    assert barrier.next(0) == ("give", "late"), "and is told that its unit counts"
