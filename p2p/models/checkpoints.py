"""Checkpoints of trainers in one call: `checkpoint`, `every_s`, `keep` and `resume`, as all of them have these."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from gossip.arguments import flag, one_of
from gossip.errors import UsageError
from p2p import arguments
from p2p.checkpoint import reading
from p2p.deepdist import DeepDist

M = TypeVar("M")


@dataclass(frozen=True)
class Checkpointing:
    """Where checkpoints go, and whether those that are there are gone on with.

    Raises:
        UsageError: an argument cannot be, or lacks another.
    """

    checkpoint: str | os.PathLike[str] | None = None
    every_s: float | None = None
    keep: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        arguments.place(self.checkpoint, self.every_s, self.keep)
        if flag("resume", self.resume) and self.checkpoint is None:
            raise UsageError("resume without checkpoint, expected both: say where the checkpoints are")

    @property
    def path(self) -> str | None:
        """Of the checkpoints that are gone on with; None where the training begins."""
        if not self.resume or self.checkpoint is None:
            return None
        path = str(os.fspath(self.checkpoint))
        return path if reading.is_there(path) else None

    @property
    def training(self) -> dict[str, Any]:
        """Arguments of `DeepDist.train`."""
        return {"checkpoint": self.checkpoint, "every_s": self.every_s, "keep": self.keep}

    def session(self, model: M, mode: Literal["p2p", "master"] = "p2p", **options: Any) -> DeepDist[M]:
        """`DeepDist(model, mode, **options)`, or one that goes on with the checkpoints: `model` gets their arrays.

        Raises:
            UsageError: the checkpoints do not fit, or none is whole; or `mode` is a synchronous one, for which the
                trainers have no rates.
        """
        one_of("mode", mode, ("p2p", "master"))
        path = self.path
        if path is None:
            return DeepDist(model, mode, **options)
        return DeepDist.resume(path, model, mode=mode, **options)
