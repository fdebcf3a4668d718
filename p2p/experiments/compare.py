"""Two results side by side: the settings that differ, and the rows that are about the same case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gossip.errors import UsageError
from p2p.experiments.page import Table
from p2p.experiments.report import CASE, COLUMNS
from p2p.experiments.results import Result, Row
from p2p.experiments.sweep import changed_settings


@dataclass(frozen=True)
class Comparison:
    """What differs."""

    settings: Table
    rows: Table
    unpaired: tuple[str, ...]
    """Cases that only one of them has."""


def compare(a: Result, b: Result) -> Comparison:
    """Set `a` and `b` side by side.

    Rows belong together if they are of the same case; where no row has its like in the other result (as when one
    setting was changed for all), they are paired by their order.

    Raises:
        UsageError: they answer different questions.
    """
    if a.experiment != b.experiment:
        raise UsageError(f"{a.experiment} and {b.experiment} cannot be compared, expected two results of one kind")
    changed = changed_settings({**a.settings, "version": a.version}, {**b.settings, "version": b.version})
    settings = Table(("setting", "A", "B"), [[name, _text(was), _text(now)] for name, (was, now) in changed.items()])
    mine, other = {_case(row): row for row in a.rows}, {_case(row): row for row in b.rows}
    pairs = [(mine[case], other[case]) for case in mine if case in other]
    unpaired = [f"only A: {_name(row)}" for case, row in mine.items() if case not in other]
    unpaired += [f"only B: {_name(row)}" for case, row in other.items() if case not in mine]
    if not pairs and len(a.rows) == len(b.rows):
        pairs, unpaired = list(zip(a.rows, b.rows, strict=True)), []
    columns = [
        column
        for column in COLUMNS[a.experiment]
        if any(row.get(column.name) is not None for pair in pairs for row in pair)
    ]
    headings = ["case", *(f"{column.heading} {side}" for column in columns for side in "AB")]
    lines = [
        [
            _name(left) if _case(left) == _case(right) else f"{_name(left)} | {_name(right)}",
            *(column.show(row.get(column.name)) for column in columns for row in (left, right)),
        ]
        for left, right in pairs
    ]
    return Comparison(settings, Table(headings, lines), tuple(unpaired))


def _case(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in CASE)


def _name(row: Row) -> str:
    parts = [f"{row.get('algorithm')} on {row.get('topology')} of {row.get('peers')}"]
    parts += [f"{name} {row[name]}" for name in CASE[3:] if row.get(name) not in (0, 0.0, "none", None)]
    return ", ".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "not set" if value is None else str(value)
