"""The same case with several seeds: means, and how far they may be off.

A figure becomes the mean over seeds, and beside it, under its name with `_se`, stands its standard error. A figure that
is missing for one seed (a rate that could not be told, a loss that is infinite) is missing for all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from p2p.lab.grid import Case
from p2p.lab.recording import ages_of, histogram
from p2p.lab.results import Row, Step

SE = "_se"
"""Behind the name of a value: its standard error."""
CASE = frozenset(each.name for each in fields(Case))
KEPT = CASE | {"round", "fault", "blank"}
"""What all seeds have in common."""
AGES = frozenset({"staleness", "staleness_histogram"})


def over_seeds(
    seeds: Sequence[int], answer: Callable[[int], tuple[Row, list[Step]]], logarithmic: Collection[str] = ()
) -> tuple[Row, list[Step]]:
    """`answer` of each seed, together: (its row, what was recorded in each round).

    The mean of what is `logarithmic` is geometric: of distances that shrink by decades an arithmetic mean would show
    the largest.
    """
    answers = [answer(seed) for seed in seeds]
    if len(answers) == 1:
        return answers[0]
    row = _together([row for row, _ in answers], ())
    return row, [_together(steps, logarithmic) for steps in zip(*(steps for _, steps in answers), strict=True)]


def _together(each: Sequence[dict[str, Any]], logarithmic: Collection[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in each for name in one):
        values = [one.get(name) for one in each]
        if name in KEPT:
            found[name] = values[0]
        elif name in AGES:
            total: Counter[int] = Counter()
            for value in values:
                total.update(ages_of(str(value)))
            found[name] = histogram(total)
        elif any(value is None for value in values):
            found[name] = found[f"{name}{SE}"] = None
        elif isinstance(values[0], bool):
            found[name] = all(values)
        else:
            found[name], found[f"{name}{SE}"] = mean_and_error(values, is_log=name in logarithmic)
    return found


def mean_and_error(values: Sequence[Any], *, is_log: bool = False) -> tuple[float, float]:
    """(mean, its standard error) of two values or more; a geometric mean if `is_log` and all are above 0."""
    numbers = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        if is_log and np.all(numbers > 0.0):
            logs = np.log(numbers)
            mean = math.exp(float(logs.mean()))
            return mean, mean * float(logs.std(ddof=1)) / math.sqrt(len(logs))
        return float(numbers.mean()), float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
