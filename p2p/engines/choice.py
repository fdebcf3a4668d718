"""Which engine runs which data, where the user names none.

an RDD (a DataFrame is one by then)     SparkEngine: its executors
a list of partitions                    LocalEngine: processes on this machine
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gossip.errors import UsageError
from p2p.engines import Engine


@dataclass(frozen=True)
class Choice:
    """An engine for one kind of data."""

    kind: str
    fits: Callable[[Any], bool]
    make: Callable[[Any, int | None], Engine]
    """Of the data, and of the peers that the user wants."""


def choice_for(data: Any) -> Choice:
    """The first of `CHOICES` that fits `data`, which has been checked."""
    return next(choice for choice in CHOICES if choice.fits(data))


def is_rdd(data: Any) -> bool:
    """Whether it is an RDD, in whatever way Spark was installed."""
    return hasattr(data, "mapPartitionsWithIndex")


class SessionEngine:
    """The engine of one session: the user's own, or the one that fits the first data that comes."""

    def __init__(self, given: Engine | None, peers: int | None) -> None:
        """`given` by the user; `peers` that the user wants where there is none."""
        self._given = given
        self._peers = peers
        self._choice: Choice | None = None
        """How the engine was chosen; None for the user's own."""
        self.current: Engine | None = given
        """None before the first data."""

    def for_data(self, data: Any) -> Engine:
        """The engine, made if there is none yet; `UsageError` if it is for another kind of data."""
        if self.current is None:
            choice = self._choice = choice_for(data)
            self.current = choice.make(data, self._peers)
        elif self._choice is not None and not self._choice.fits(data):
            raise UsageError(
                f"this session trains on {self._choice.kind}, and data is for {choice_for(data).kind}: make a new "
                "DeepDist(model)"
            )
        return self.current

    def take_out(self) -> Engine | None:
        """The engine, to be stopped; the next data has one made anew, but for the user's own."""
        current, self.current = self.current, self._given
        return current


def _spark(data: Any, peers: int | None) -> Engine:
    from p2p.engines.spark import SparkEngine

    if peers is not None:
        raise UsageError("peers= is for lists of partitions: on Spark every executor is a peer")
    return SparkEngine(data.context)


def _local(data: Any, peers: int | None) -> Engine:
    from p2p.engines.local import LocalEngine

    return LocalEngine(peers or max(1, min(len(data), os.cpu_count() or 1)))


CHOICES = (Choice("Spark", is_rdd, _spark), Choice("lists", lambda data: isinstance(data, list), _local))
