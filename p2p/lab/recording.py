"""Records of each round, of all parameters or of parts of them.

distance        root of the mean, over peers, of |x_i - mean|^2: how far a typical peer is from the mean of now
bias            |mean of now - true mean|, the true mean being that of the start plus all training steps
mass_error      |sum of x, in flight included, / peers - true mean|: what was lost or counted twice
weight_error    sum of push-sum weights, in flight included, / peers - 1
staleness       packets by how many rounds after they were sent they are used, as "0:40 1:12 lost:3"
bytes_per_edge  mean size of the packets of this round
distance[w]     as above, of the array w alone
distance[w, top 1%]   of the rows of w that are used most, and so on
loss            of the model at the mean of now, where there is a model
optimum_distance  root of the mean, over peers, of |x_i - optimum|^2, where the optimum is known
optimum_bias      |mean of now - optimum|

Peers that are gone for good count in none of these but mass and weight, which tell what they took along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arrays import Array
from gossip.sim.vectorized import Record
from gossip.topology import Floats
from p2p.lab.results import Step

Columns = NDArray[np.intp]

BANDS: tuple[tuple[str, float], ...] = (("top 1%", 0.01), ("1-10%", 0.1), ("rest", 1.0))
"""Rows by how often they are used: the name of a band, and the share of rows at which it ends."""


@dataclass(frozen=True)
class Parts:
    """Which of the flat parameters belong to which array, and to which band of its rows."""

    columns: Mapping[str, Columns] = field(default_factory=dict)
    """{"w" or "w, top 1%": columns}; empty if there is one array only."""

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]], frequency: Mapping[str, Array]) -> Parts:
        """Of arrays that lie behind each other; `frequency` says how often each row of an array is used."""
        columns: dict[str, Columns] = {}
        begin = 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            mine = np.arange(begin, begin + size).reshape(shape)
            columns[name] = mine.ravel()
            if name in frequency:
                order = np.argsort(-frequency[name], kind="stable")
                at = 0
                for band, share in BANDS:
                    end = max(at + 1, math.ceil(share * len(order)))
                    if at < len(order):
                        columns[f"{name}, {band}"] = mine[order[at:end]].ravel()
                    at = end
            begin += size
        return Parts(columns)


class Recorder:
    """Watches one simulation; `steps` makes its records into lines of the CSV."""

    def __init__(
        self,
        peers: int,
        parts: Parts,
        loss: Callable[[Floats], float] | None = None,
        loss_rounds: Callable[[int], bool] = lambda round: True,
        gone: Callable[[int], NDArray[np.bool_] | None] = lambda round: None,
        optimum: Floats | None = None,
        is_blank: bool = False,
    ) -> None:
        """`loss_rounds` says in which rounds the loss is worth its time; `gone` who is not there any more.

        `is_blank` leaves out bias and mass error, of which some strategies' say nothing.
        """
        self._optimum, self._is_blank = optimum, is_blank
        self._parts, self._peers = parts, peers
        self._loss, self._loss_rounds, self._gone = loss, loss_rounds, gone
        self._seen: list[Step] = []
        self._means: list[Floats | None] = []

    def observe(self, round: int, x: Array) -> None:
        """All parameters after `round`, (peers, parameters)."""
        gone = self._gone(round)
        here = x if gone is None else x[~gone]
        mean = here.mean(axis=0, dtype=np.float64)
        squares = np.sum(np.square(here - mean, dtype=np.float64), axis=0)
        step: Step = {"distance": math.sqrt(float(squares.sum()) / len(here))}
        for name, columns in self._parts.columns.items():
            step[f"distance[{name}]"] = math.sqrt(float(squares[columns].sum()) / len(here))
        if self._loss is not None and self._loss_rounds(round):
            step["loss"] = self._loss(mean)
        if self._optimum is not None:
            off = float(np.sum((mean - self._optimum) ** 2))
            step["optimum_distance"] = math.sqrt(off + float(squares.sum()) / len(here))
            step["optimum_bias"] = math.sqrt(off)
        self._seen.append(step)
        self._means.append(None if gone is None else mean)

    def steps(self, records: tuple[Record, ...]) -> list[Step]:
        """One line for each of `records`, the state before the first round among them, as round 0."""
        lines = []
        for number, (record, seen, mean) in enumerate(zip(records, self._seen, self._means, strict=True)):
            true = record.true_mean
            bias = record.bias if mean is None else float(np.linalg.norm(mean - true))
            lines.append(
                {
                    "round": number,
                    "distance": seen["distance"],
                    "bias": None if self._is_blank else bias,
                    "mass_error": None if self._is_blank else float(np.linalg.norm(record.mass / self._peers - true)),
                    "weight_error": record.weight / self._peers - 1.0,
                    "staleness": histogram(record.ages),
                    "bytes_per_edge": record.nbytes_per_link,
                    "links": record.links,
                    **{name: value for name, value in seen.items() if name != "distance"},
                }
            )
        return lines


def histogram(ages: Mapping[Any, int]) -> str:
    """Counts by age, as text: "0:40 1:12 lost:3"."""
    return " ".join(f"{'lost' if age == -1 else age}:{count}" for age, count in sorted(ages.items(), key=_lost_last))


def ages_of(text: str) -> dict[int, int]:
    """The inverse of `histogram`."""
    pairs = (part.split(":") for part in text.split())
    return {-1 if age == "lost" else int(age): int(count) for age, count in pairs}


def _lost_last(item: tuple[int, int]) -> tuple[bool, int]:
    return item[0] == -1, item[0]
