"""Workloads by name: images, and each model of `p2p.models` that has a workload.

A model is a guest here: a package of `p2p.models` with a module `workload` that has what `Guest` says.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from gossip.errors import UsageError
from p2p.lab.workloads import images
from p2p.lab.workloads.softmax import Softmax
from p2p.lab.workloads.workload import Workload

IMAGES_RATE = "0.5"


class Guest(Protocol):
    """The module `workload` of a model."""

    RATE: str
    """The learning rate by default."""

    def make(
        self, data: Path | None, *, rows: int, peers: int, shards: str, rate: float, batch: int, seed: int
    ) -> Workload:
        """Of at most so many rows of `data`, or of the model's own choice."""


@cache
def names() -> tuple[str, ...]:
    """All of them."""
    models = find_spec("p2p.models")
    assert models is not None
    packages = (each.name for each in pkgutil.iter_modules(models.submodule_search_locations) if each.ispkg)
    return "digits", "mnist", *(name for name in packages if find_spec(f"p2p.models.{name}.workload") is not None)


def rate_of(name: str) -> str:
    """The learning rate by default."""
    return _guest(name).RATE if name in names()[2:] else IMAGES_RATE


def check(name: str, data: str | None) -> None:
    """Refuse a name that is none, and data that is missing or not needed."""
    if name not in names():
        raise UsageError(f"model {name!r}, expected one of {', '.join(names())}")
    if name == "mnist" and data is None:
        raise UsageError("model mnist needs --data FOLDER, the folder with MNIST's files")
    if name == "digits" and data is not None:
        others = ", ".join(f"{each} (a file)" for each in names()[2:])
        raise UsageError(f"model digits draws its images; --data is for mnist (a folder), {others}")


def make(name: str, data: str | None, *, rows: int, seed: int, **options: Any) -> Workload:
    """The workload of that name; `options` are those of `Softmax` and `Guest.make`."""
    if name in names()[2:]:
        return _guest(name).make(None if data is None else Path(data), rows=rows, seed=seed, **options)
    pixels, labels = images.mnist(Path(str(data)), rows, seed) if name == "mnist" else images.drawn(rows, seed)
    return Softmax(pixels, labels, **options, seed=seed)


def _guest(name: str) -> Guest:
    return cast(Guest, import_module(f"p2p.models.{name}.workload"))  # when it is asked for: gensim takes a second
