"""Who computes which portion, in virtual time: each counts once, and a slow worker is covered by the others."""

from __future__ import annotations

import heapq
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import UsageError
from p2p.lbfgs.portions import Portion, Portions


class Pool:
    """Workers that take so many seconds a portion, in virtual time."""

    def __init__(self, chunks: list[int], seconds: list[float], backup_after: float | None = 1.5) -> None:
        self.chunks, self.seconds = chunks, seconds
        self.portions = Portions(len(chunks), backup_after)
        self.now = 0.0
        self.coming: list[tuple[float, int, int, Portion]] = []
        """(when, worker, pass, what) of portions under way; a worker may still be at one of an earlier pass."""
        self.passes = 0
        self.counted: list[list[Portion]] = []
        self.taken: list[tuple[int, Portion]] = []

    def run(self) -> float:
        """A pass; returns how long it took."""
        began, counted = self.now, []
        self.portions.begin()
        self.passes += 1
        while not self.portions.are_done:
            busy = {worker for _, worker, _, _ in self.coming}
            for worker in range(len(self.seconds)):
                if worker not in busy and (started := self.portions.take(worker, self.now)) is not None:
                    self.taken.append((worker, started.portion))
                    due = (self.now + self.seconds[worker], worker, self.passes, started.portion)
                    heapq.heappush(self.coming, due)
            waits = self.portions.waits_s(self.now)
            if waits is not None and waits > 0 and self.now + waits < self.coming[0][0]:
                self.now += waits + 1e-9
                continue
            self.now, worker, number, portion = heapq.heappop(self.coming)
            more = portion.chunk + 1 < self.chunks[portion.partition]
            if number == self.passes and self.portions.counts(worker, portion, 7, more, self.now):
                counted.append(portion)
        self.counted.append(counted)
        return self.now - began

    @property
    def all(self) -> list[Portion]:
        return [Portion(p, c) for p, count in enumerate(self.chunks) for c in range(count)]


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.lists(st.floats(0.1, 20), min_size=1, max_size=6),
    st.sampled_from([None, 1.0, 1.5]),
)
def test_every_portion_counts_once_in_each_pass(
    chunks: list[int], seconds: list[float], backup_after: float | None
) -> None:
    pool = Pool(chunks, seconds, backup_after)
    for _ in range(3):
        pool.run()
    assert [sorted(counted) for counted in pool.counted] == [pool.all] * 3


def test_a_worker_reads_on_in_its_partition() -> None:
    pool = Pool([4, 4], [1.0, 1.0])
    for _ in range(2):
        pool.taken.clear()
        pool.run()
        for worker in range(2):
            mine = [portion for who, portion in pool.taken if who == worker]
            assert [portion.chunk for portion in mine] == [0, 1, 2, 3]
            assert len({portion.partition for portion in mine}) == 1


def test_one_worker_ten_times_slower_costs_little_more_than_its_own_work() -> None:
    """Eight workers, one of them at a tenth of the speed: 7.1 are left of them, so 8/7.1 = 1.13 is the least."""

    def seconds(slow: float, backup_after: float | None) -> float:
        pool = Pool([4] * 8, [slow] + [1.0] * 7, backup_after)
        pool.run()  # how many portions there are is not known before
        return mean(pool.run() for _ in range(10))

    fast = seconds(1.0, 1.5)
    assert fast == pytest.approx(4.0)
    assert seconds(10.0, 1.5) <= 1.3 * fast
    assert seconds(10.0, None) >= 2.5 * fast, "without back-up copies it is waited for"


def test_a_copy_is_begun_of_the_portion_that_is_longest_under_way_and_only_one() -> None:
    portions = Portions(4, 2.0)
    portions.begin()
    for at, worker in enumerate("abcd"):
        portions.take(worker, float(at))
    assert portions.counts("d", Portion(3, 0), 7, False, 4.0)  # a second; so two seconds are long
    assert portions.waits_s(2.5) == pytest.approx(0.0)
    assert portions.waits_s(1.5) == pytest.approx(0.5)
    copy = portions.take("d", 4.0)
    assert copy is not None
    assert (copy.portion, copy.number) == (Portion(0, 0), 1)
    assert portions.counts("d", Portion(0, 0), 7, False, 4.5)
    assert not portions.counts("a", Portion(0, 0), 7, False, 4.6)
    second = portions.take("a", 4.7)
    assert second is not None
    assert second.portion == Portion(1, 0)
    third = portions.take("d", 4.8)
    assert third is not None
    assert third.portion == Portion(2, 0), "the other has its copy"
    assert (portions.backups, portions.dropped) == (3, 1)


def test_nothing_is_computed_twice_without_need() -> None:
    portions = Portions(2, 2.0)
    portions.begin()
    portions.take("a", 0.0)
    portions.take("b", 0.0)
    assert portions.counts("a", Portion(0, 0), 7, False, 1.0)
    assert portions.take("a", 1.5) is None
    assert portions.take("a", 2.1) is not None
    off = Portions(1, None)
    off.begin()
    off.take("a", 0.0)
    assert off.take("b", 1e9) is None


def test_the_portion_of_a_lost_worker_is_given_to_another_and_losses_are_counted() -> None:
    portions = Portions(1, None)
    portions.begin()
    for worker in range(4):
        started = portions.take(worker, 0.0)
        assert started is not None
        assert started.number == worker, "each attempt has a number of its own"
        assert portions.lost(worker) == worker + 1
    assert portions.lost("who has nothing") == 0
    assert portions.take("e", 0.0) is not None
    portions.late("e")
    assert portions.take("f", 0.0) is not None
    assert portions.counts("f", Portion(0, 0), 7, False, 1.0)
    assert portions.are_done


def test_a_lost_copy_leaves_the_other_alone() -> None:
    portions = Portions(2, 1.0)
    portions.begin()
    portions.take("a", 0.0)
    portions.take("b", 0.0)
    assert portions.counts("b", Portion(1, 0), 7, False, 1.0)
    assert portions.take("b", 5.0) is not None
    portions.lost("b")
    copy = portions.take("c", 5.0)
    assert copy is not None
    assert portions.backups == 2, "what is under way is not to do again, but may be copied again"


@pytest.mark.parametrize(
    ("rows", "more", "words"),
    [(6, True, "has 6 and is not the last one, expected 7"), (7, False, "has 7 and is the last one, expected 7")],
)
def test_other_rows_in_a_later_pass_are_an_error(rows: int, more: bool, words: str) -> None:
    pool = Pool([2], [1.0])
    pool.run()
    pool.portions.begin()
    pool.portions.take(0, 10.0)
    with pytest.raises(UsageError, match=f"partition 0 has other rows than in an earlier pass: chunk 0 {words}"):
        pool.portions.counts(0, Portion(0, 0), rows, more, 11.0)
