"""Numbers and labels in texts: what counts as one, and what is said of one that does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arguments import integer, number
from gossip.errors import UsageError

NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
"""As C writes decimal numbers; no NaN, no infinity, no underscores."""
FLOAT32_MAX = float(np.finfo(np.float32).max)

Floats = NDArray[np.float64]


def found_number(text: str) -> float | None:
    """The number that a text is, with white space around it or without; None if it is none that float32 holds."""
    text = text.strip(" \t")
    if not NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if abs(value) <= FLOAT32_MAX else None


def expected_of(text: str) -> str:
    """What is said of a text of which `found_number` makes none."""
    if NUMBER.fullmatch(text.strip(" \t")):
        return f"which float32 does not hold, expected a number between -{FLOAT32_MAX:.3g} and {FLOAT32_MAX:.3g}"
    return "expected a finite number"


def are_fit(values: Floats) -> bool:
    """All are finite, and none is too large for float32."""
    return bool((np.abs(values) <= FLOAT32_MAX).all())  # NaN is not


@dataclass(frozen=True)
class Labels:
    """Which labels there may be."""

    classes: int | tuple[float, ...] | None
    """So many from 0, or these numbers; None: any number."""

    @classmethod
    def of(cls, classes: Any) -> Labels:
        """Of what the user gives. Raises `UsageError` if that cannot be."""
        if classes is None or not isinstance(classes, list | tuple | range | np.ndarray):
            return cls(None if classes is None else integer("classes", classes, 2))
        classes = classes.tolist() if isinstance(classes, np.ndarray) else classes
        if len(classes) < 2:
            raise UsageError(f"classes={classes!r}, expected how many there are, or their labels, such as (-1, 1)")
        return cls(tuple(number("classes", label) for label in classes))

    @property
    def expected(self) -> str:
        """In words."""
        if self.classes is None:
            return "a finite number"
        if isinstance(self.classes, int):
            return f"an integer from 0 to {self.classes - 1}"
        return "one of " + ", ".join(f"{label:g}" for label in self.classes)

    def first_wrong(self, labels: NDArray[Any] | Sequence[float]) -> int | None:
        """The index of the first one that there is not; None if all are right."""
        values = np.asarray(labels, np.float64)
        if self.classes is None:
            right = np.isfinite(values)
        elif isinstance(self.classes, int):
            right = (values >= 0) & (values < self.classes) & (values == np.floor(values))
        else:
            right = np.isin(values, self.classes)
        return None if right.all() else int(np.argmin(right))

    def typed(self, labels: Floats) -> NDArray[Any]:
        """As integers where they are numbers of classes, else as they are; (rows,)."""
        return labels.astype(np.int64) if isinstance(self.classes, int) else labels
