"""The settings of L-BFGS, as the user gives them to `DeepDist(model, optimizer=LBFGS(...))`."""

from __future__ import annotations

from dataclasses import dataclass

from gossip.arguments import check_fields, integer, number
from gossip.errors import UsageError

PASSES_MAX = 100


@dataclass(frozen=True, kw_only=True)
class LBFGS:
    """Limited-memory BFGS on all of the data, with a strong Wolfe line search.

    The objective is the sum of what `loss_and_gradient(model, rows)` returns for all portions of the data, and
    `l2 / 2 |x|^2`. Defaults are those of Nocedal and Wright, Numerical Optimization (2006), sections 3.1 and 7.2.

    Raises:
        UsageError: a number cannot be.
    """

    history: int = 10
    """Pairs (s, y) that are kept, m. Each takes two vectors of the shards' memory."""
    max_passes: int = PASSES_MAX
    """Over the data, at most; `epochs` of `train` is the same for one call. A pass is an evaluation."""
    gradient_tolerance: float = 1e-5
    """End where |gradient| <= this times max(1, |x|), in 2-norms."""
    decrease_tolerance: float = 1e-9
    """End where a step lowers the objective by no more than this part of it; 0 for never."""
    l2: float = 0.0
    """Of all arrays; it counts once, however many portions there are."""
    sufficient_decrease: float = 1e-4
    """c1 of the Wolfe conditions."""
    curvature: float = 0.9
    """c2 of the Wolfe conditions; less is a line search that is more exact, at more passes a step."""
    line_search_passes: int = 10
    """Of one line search, at most."""
    shards: int | None = None
    """Processes that the vectors are spread over; None for one for each worker, or executor of Spark."""
    backup_after: float | None = 1.5
    """An idle worker computes a portion again that is under way for so many times the median; None for never."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("history", "max_passes", "line_search_passes"):
            integer(name, getattr(self, name), 1)
        for name in ("gradient_tolerance", "decrease_tolerance", "l2"):
            number(name, getattr(self, name), "a number, at least 0", lambda value: 0 <= value < float("inf"))
        if self.shards is not None:
            integer("shards", self.shards, 1)
        if self.backup_after is not None:
            number("backup_after", self.backup_after, "a number above 0, or None", lambda value: value > 0)
        if not 0 < self.sufficient_decrease < self.curvature < 1:
            raise UsageError(
                f"sufficient_decrease={self.sufficient_decrease}, curvature={self.curvature}, expected "
                "0 < sufficient_decrease < curvature < 1: otherwise there may be no such step"
            )
