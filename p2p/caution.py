"""What a user should hear before a training suffers: Python warnings of our own kind, each given once per session."""

from __future__ import annotations

import warnings
from collections.abc import Mapping


class DeepDistWarning(UserWarning):
    """Training goes on, but not as well as it could; the text says what to do."""


class Cautions:
    """Those of one session."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def give(self, cautions: Mapping[str, str], stacklevel: int) -> None:
        """Warn of what was not warned of before, by name. `stacklevel` as in `warnings.warn`, seen from the caller."""
        for name, text in cautions.items():
            if name not in self._given:
                self._given.add(name)
                warnings.warn(text, DeepDistWarning, stacklevel + 1)
