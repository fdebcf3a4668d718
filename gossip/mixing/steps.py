"""Steps that tasks have handed over, on their way into the state: in training each waits for a round of its own."""

from __future__ import annotations

from collections import deque

from gossip.arrays import Array
from gossip.errors import hold


class Steps:
    """Numbered in the order in which they came."""

    def __init__(self) -> None:
        self.handed = 0
        """So many were handed over."""
        self._pending: deque[tuple[int, Array]] = deque()

    def __len__(self) -> int:
        """Those that are not in the state yet."""
        return len(self._pending)

    def hand_over(self) -> None:
        """One more; it may be none to be learned from."""
        self.handed += 1

    def put(self, step: Array) -> None:
        """The one that was handed over last waits."""
        self._pending.append((self.handed, step))

    def take(self) -> tuple[int, Array]:
        """The next one, with its number."""
        return self._pending.popleft()

    def settled(self, taking: int | None) -> int:
        """Up to this number, steps are in the state or count elsewhere, and the rounds that have them are over.

        The open round has the step number `taking`.
        """
        if taking is not None:
            return taking - 1
        return self._pending[0][0] - 1 if self._pending else self.handed

    def check(self) -> None:
        """What must hold between two events."""
        before = 0
        for number, _ in self._pending:
            hold(
                before < number <= self.handed, "steps wait in the order of their numbers", before, number, self.handed
            )
            before = number
