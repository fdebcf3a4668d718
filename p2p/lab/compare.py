"""Two results side by side: the settings that differ, and the rows that are about the same case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossip.errors import UsageError
from p2p.lab import results
from p2p.lab.reports.page import Page, Table, render
from p2p.lab.reports.plots import LINES_MAX, Line, Plot
from p2p.lab.reports.report import CASE, COLUMNS
from p2p.lab.results import Result, Row
from p2p.lab.sweep import changed_settings


@dataclass(frozen=True)
class Comparison:
    """What differs."""

    settings: Table
    rows: Table
    unpaired: tuple[str, ...]
    """Cases that only one of them has."""
    pairs: tuple[tuple[int, int], ...]
    """Row numbers, in A and in B, of the lines of `rows`."""


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
    mine = {_case(row): number for number, row in enumerate(a.rows)}
    other = {_case(row): number for number, row in enumerate(b.rows)}
    numbers = [(mine[case], other[case]) for case in mine if case in other]
    unpaired = [f"only A: {_name(a.rows[number])}" for case, number in mine.items() if case not in other]
    unpaired += [f"only B: {_name(b.rows[number])}" for case, number in other.items() if case not in mine]
    if not numbers and len(a.rows) == len(b.rows):
        numbers, unpaired = [(number, number) for number in range(len(a.rows))], []
    pairs = [(a.rows[left], b.rows[right]) for left, right in numbers]
    columns = [
        column
        for column in COLUMNS[a.experiment]
        if any(row.get(column.name) is not None for pair in pairs for row in pair)
    ]
    headings = ["case", *(f"{column.heading} {side}" for column in columns for side in "AB")]
    lines = [
        [
            _name(left) if _case(left) == _case(right) else f"{_name(left)} | {_name(right)}",
            *(column.cell(row) for column in columns for row in (left, right)),
        ]
        for left, right in pairs
    ]
    return Comparison(settings, Table(headings, lines), tuple(unpaired), tuple(numbers))


def write_page(a: Path, b: Path, to: Path) -> None:
    """Write the report of the results at `a` and `b` to `to`: A's lines solid, B's dashed in the same color."""
    found = compare(results.read(a), results.read(b))
    records = results.read_records(a), results.read_records(b)
    drawn = []
    for name, is_log in (("loss", False), ("distance", True), ("bias", True)):
        left, right = (results.series(each, name) for each in records)
        for begin in range(0, len(found.pairs), LINES_MAX):
            lines = []
            for color, (mine, other) in enumerate(found.pairs[begin : begin + LINES_MAX]):
                if mine in left and other in right:
                    lines.append(Line(found.rows.rows[begin + color][0], *left[mine], color))
                    lines.append(Line("", *right[other], color, is_theory=True))
            if lines:
                drawn.append(Plot(name.capitalize(), "round", name, tuple(lines), "Dashed: B.", is_log=is_log))
    settings = {name: f"A: {was}   B: {now}" for name, was, now in found.settings.rows} or {"settings": "all the same"}
    missing = [
        f"{side}: {line}" for side, at in (("A", a), ("B", b)) for line in results.complaint(results.read(at), at)
    ]
    notes = (f"A: {a.name}, B: {b.name}.", *found.unpaired, *missing)
    about = "Two results side by side, row by row; the settings that differ stand at the end."
    command = f"deepdist lab compare {a.name} {b.name}"
    to.write_text(
        render(Page("Comparison of two results", about, found.rows, notes, drawn, settings, command)), "utf-8"
    )


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
