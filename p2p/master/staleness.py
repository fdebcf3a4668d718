"""Weights of a master's updates by their staleness: how many others were applied since the model of its gradient.

    "inverse"     1 / staleness, and 1 for an update of staleness 0 or 1 (Zhang et al. 2016)
    a function    whatever it returns, for the staleness it is given

Zhang, Gupta, Lian and Liu, "Staleness-aware Async-SGD for Distributed Deep Learning" (IJCAI 2016, arXiv:1511.05950),
divide the learning rate of an update by its staleness. Here the update is multiplied, before `descent` gets it: the
same for a descent whose step is proportional to what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gossip.arguments import function, number
from gossip.errors import UsageError
from p2p.server.sums import scaled

Weight = Callable[[int], float]
"""Of a staleness."""


def inverse(staleness: int) -> float:
    """1 / staleness, at most 1."""
    return 1 / max(1, staleness)


NAMES: dict[str, Weight] = {"inverse": inverse}


@dataclass(frozen=True)
class Staleness:
    """How stale the updates of a training may be, and what they weigh then."""

    most: int | None = None
    """Updates applied between the model that an update of a task was computed from, and it; None: any."""
    weight: Weight | None = None
    """What an update is multiplied by; None: nothing."""


ANY = Staleness()


class Weighing:
    """Of the updates of one training."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight
        self._sum = 0.0
        self._count = 0

    def weighed(self, update: Any, staleness: int) -> tuple[Any, float]:
        """(the update times its weight, the weight).

        Raises:
            UsageError: a part of it is no floating-point number, or the weight is none.
        """
        name = f"staleness_weight({staleness})"
        weight = number(name, self._weight(staleness), "a finite number, at least 0", lambda w: 0 <= w < math.inf)
        return scaled(update, weight), weight

    def count(self, weight: float) -> None:
        """An update of this weight was applied."""
        self._sum += weight
        self._count += 1

    @property
    def mean(self) -> float:
        """Of the weights of updates that were applied so far; 1 if there were none."""
        return self._sum / self._count if self._count else 1.0


def weight_of(value: Any) -> Weight | None:
    """The function that an argument `staleness_weight` stands for.

    Raises:
        UsageError: it is no name of `NAMES`, and no function.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value not in NAMES:
            raise UsageError(
                f"staleness_weight={value!r}, expected one of {', '.join(map(repr, NAMES))}, a function of the "
                "staleness, or None"
            )
        return NAMES[value]
    found: Weight = function("staleness_weight", value, "staleness_weight(staleness), 'inverse' or None")
    return found
