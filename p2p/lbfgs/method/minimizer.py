"""L-BFGS, without a vector in sight: directions, line searches, and when to end.

    evaluate x -> [direction -> line search: evaluate x + a d -> accept]*      `Space` has the vectors

Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 7.5. Where the space loses its vectors but x
(`HistoryLost`), all begins anew from x, with a step of steepest descent. So it does where no step along a direction
goes down: only where steepest descent finds none either, it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.lbfgs.method.line_search import Sample, Wolfe, search
from p2p.lbfgs.method.options import LBFGS
from p2p.lbfgs.method.recursion import Table

LOSSES_MAX = 4
"""Of the history, without an accepted step between them; then somebody ends all processes that come."""


class HistoryLost(Exception):  # noqa: N818 - what happened, and no error
    """Pairs, direction and gradient are gone, or a part of each; x is there."""


@dataclass(frozen=True)
class Value:
    """What one evaluation says of a point."""

    value: float
    slope: float
    """Along the direction; 0 without one."""
    gradient_square: float
    """|gradient|^2."""


class Space(Protocol):
    """Where the vectors are: x, the direction d, gradients, and pairs. Any method may raise `HistoryLost`."""

    def restart(self) -> None:
        """Make it whole again after `HistoryLost`: with x, and no pair."""
        ...

    def forget(self) -> None:
        """Drop all pairs."""
        ...

    def evaluate(self, step: float) -> Value:
        """Objective and gradient at x + step d."""
        ...

    def accept(self) -> tuple[Array, float]:
        """x moves to the point that was evaluated last; (the rows of `Table.add`, |x|^2)."""
        ...

    def settle(self) -> float:
        """The gradient that was evaluated last is that at x; returns |x|^2."""
        ...

    def direct(self, coefficients: Array, keeps: bool) -> None:
        """Make d of the basis; `keeps`: the pair of the last accepted step is one of it."""
        ...


@dataclass
class Course:
    """How far it is."""

    passes: int = 0
    iterations: int = 0
    restarts: int = 0
    """Times that the history was lost."""
    skipped: int = 0
    """Pairs that did not count: s'y was not positive enough."""
    value: float = math.nan
    """Of the objective at x."""
    gradient_norm: float = math.nan
    values: list[float] = field(default_factory=list)
    """Of the objective, at the start and after each accepted step."""
    by_pass: list[float] = field(default_factory=list)
    """Of the objective at x, after each pass that came to its end."""
    ended: str = ""


class Minimizer:
    """One minimization; `run` returns when it is over, and `course` tells how far it is at any time."""

    def __init__(
        self, space: Space, options: LBFGS, passes_max: int, tell: Callable[[Course], object] = lambda _: None
    ) -> None:
        """`tell` is called after each pass."""
        self.course = Course()
        self._space = space
        self._options = options
        self._passes_max = passes_max
        self._tell = tell
        self._table = Table(options.history)
        self._losses = 0
        """Of the history, since the last accepted step."""
        self._tried: Sample | None = None
        """The last point of the line search."""

    def run(self) -> Course:
        """Until a test says that it is enough; `course.ended` says which."""
        course = self.course
        lost = False
        while not course.ended:
            try:
                if lost:
                    self._space.restart()
                    lost = False
                self._begin()
                while not course.ended:
                    self._iterate()
            except HistoryLost as loss:
                self._count_loss(loss)
                lost = True
        return course

    def _begin(self) -> None:
        """Objective and gradient at x itself, without any history."""
        if self.course.passes >= self._passes_max:
            self.course.ended = self._all_passes
            return
        found = self._evaluate(0.0)
        if not (math.isfinite(found.value) and math.isfinite(found.gradient_square)):
            raise UsageError(
                f"loss_and_gradient gave the loss {found.value} and a gradient of norm "
                f"{math.sqrt(found.gradient_square)} at the model as it is, expected finite numbers: begin elsewhere"
            )
        x_square = self._space.settle()
        self._table.begin(found.gradient_square)
        if not self.course.values:
            self.course.values.append(found.value)
        self.course.value = self.course.by_pass[-1] = found.value
        self._look(found.gradient_square, x_square)

    def _iterate(self) -> None:
        """A direction, a line search, and a step."""
        course, table, kept = self.course, self._table, self._kept
        coefficients = table.direction()
        if not table.slope(coefficients) < 0:
            self._forget()
            coefficients, kept = table.descent(), False
        slope = table.slope(coefficients)
        if not slope < 0:
            course.ended = "the gradient is 0"
            return
        self._space.direct(coefficients, kept)
        first = 1.0 if table.pairs else 1.0 / max(1.0, math.sqrt(table.gradient_square))
        taken = self._search(Wolfe(Sample(0.0, course.value, slope), *self._conditions), first)
        if course.ended:
            return
        if taken is None and table.pairs:
            self._forget()
        elif taken is None:
            course.ended = "no step goes down any more, as far as numbers tell"
        else:
            self._accept(taken)

    @property
    def _conditions(self) -> tuple[float, float]:
        return self._options.sufficient_decrease, self._options.curvature

    def _search(self, wolfe: Wolfe, first: float) -> Sample | None:
        """The step to take; where all passes are over, the one that was tried last, if it goes down."""
        searching = search(wolfe, first, self._options.line_search_passes)
        step, self._tried = next(searching), None
        while True:
            if self.course.passes >= self._passes_max:
                self._accept_if_lower(wolfe)
                self.course.ended = self.course.ended or self._all_passes
                return None
            found = self._evaluate(step)
            self._tried = Sample(step, found.value, found.slope)
            try:
                step = searching.send(self._tried)
            except StopIteration as end:
                taken: Sample | None = end.value
                return taken

    def _accept_if_lower(self, wolfe: Wolfe) -> None:
        if self._tried is not None and wolfe.is_low(self._tried):
            self._accept(self._tried)

    def _accept(self, taken: Sample) -> None:
        course = self.course
        rows, x_square = self._space.accept()
        before, course.value = course.value, taken.value
        course.by_pass[-1] = taken.value
        course.values.append(taken.value)
        course.iterations += 1
        self._losses = 0
        self._kept = self._table.add(rows)
        course.skipped += not self._kept
        self._look(self._table.gradient_square, x_square)
        limit = self._options.decrease_tolerance * max(abs(before), abs(taken.value))
        if not course.ended and before - taken.value <= limit:
            course.ended = f"decrease below {self._options.decrease_tolerance:g} of the objective"

    def _look(self, gradient_square: float, x_square: float) -> None:
        """Whether the gradient is small enough."""
        self.course.gradient_norm = math.sqrt(gradient_square)
        if self.course.gradient_norm <= self._options.gradient_tolerance * max(1.0, math.sqrt(x_square)):
            self.course.ended = f"gradient below {self._options.gradient_tolerance:g}"

    def _forget(self) -> None:
        self._space.forget()
        self._table.begin(self._table.gradient_square)
        self._kept = False

    _kept = False
    """The pair of the last accepted step is in the table."""

    def _evaluate(self, step: float) -> Value:
        self.course.passes += 1
        found = self._space.evaluate(step)
        self.course.by_pass.append(self.course.value)
        self._tell(self.course)
        return found

    @property
    def _all_passes(self) -> str:
        return f"all {self._passes_max} passes"

    def _count_loss(self, loss: HistoryLost) -> None:
        self.course.restarts += 1
        self._losses += 1
        self._kept = False
        if self._losses > LOSSES_MAX:
            raise UsageError(f"the history of L-BFGS was lost {self._losses} times without a step between: {loss}")
