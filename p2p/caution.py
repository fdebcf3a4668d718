"""Warnings before a training suffers: Python warnings of a class of our own, each given once per session.

What other processes wrote is in them, and in what is logged: neither reaches a terminal with control characters."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping

from gossip.errors import printable
from p2p.logs import logger

logger("p2p")


class DeepDistWarning(UserWarning):
    """Training goes on, but not as well as it could; the text says what to do."""


def warn(text: str) -> None:
    """Warn at the line of the user's program that called us: the first one that is not of these packages."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("p2p", "gossip"):
        level, frame = level + 1, frame.f_back
    warnings.warn(printable(text), DeepDistWarning, stacklevel=level)


class Cautions:
    """Those of one session."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def give(self, cautions: Mapping[str, str]) -> None:
        """Warn of what was not warned of before, by name."""
        for name, text in cautions.items():
            if name not in self._given:
                self._given.add(name)
                warn(text)
