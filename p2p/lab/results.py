"""A result on disk: one JSON of settings, seed, version and rows, and one CSV of the records of each round.

The JSON is replaced in one step after each row, so that a sweep which is stopped at any instant keeps the rows that are
in it; lines of the CSV that belong to no row of the JSON are dropped when the sweep goes on.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gossip.errors import UsageError

FORMAT = 1
"""Of the JSON; another number is another layout."""
EXPERIMENTS = ("consensus", "convergence", "faults")

CASE_BUT_RATE = ("algorithm", "topology", "peers", "compression", "loss", "delay", "staleness", "churn", "crash")
"""The settings in which rows agree of which the best rate is looked for."""

Row = dict[str, Any]
Step = dict[str, Any]


def version() -> str:
    """Of this package."""
    return importlib.metadata.version("deepdist-p2p")


@dataclass(frozen=True)
class Result:
    """The rows that are done, and all that it takes to get them again."""

    experiment: str
    settings: Mapping[str, Any]
    """As the experiment's settings become JSON; the seed among them."""
    rows: tuple[Row, ...] = ()
    total: int = 0
    """How many rows the sweep has when it is complete."""
    version: str = field(default_factory=version)
    packages: Mapping[str, str] = field(
        default_factory=lambda: {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "networkx")}
    )
    """Versions of what computes: another one may round differently."""

    @property
    def is_complete(self) -> bool:
        """No row is left to do."""
        return len(self.rows) == self.total

    def with_row(self, row: Row, number: int) -> Result:
        """With one more row, or another one in the place of row `number`."""
        rows = (*self.rows[:number], row, *self.rows[number + 1 :])
        return replace(self, rows=with_best(rows))


def with_best(rows: Sequence[Row]) -> tuple[Row, ...]:
    """`rows` with `best` wherever the same case was run with several rates: whether this one's loss is the lowest."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, row in enumerate(rows):
        if row.get("rate") is not None:
            groups.setdefault(tuple(row.get(name) for name in CASE_BUT_RATE), []).append(number)
    marked = [dict(row) for row in rows]
    for numbers in groups.values():
        losses = {number: rows[number].get("mean_loss") for number in numbers}
        known = {number: loss for number, loss in losses.items() if loss is not None and math.isfinite(loss)}
        best = min(known, key=lambda number: known[number]) if known else None
        for number in numbers if len(numbers) > 1 else ():
            marked[number]["best"] = number == best
    return tuple(marked)


def write(result: Result, path: Path) -> None:
    """Replace the JSON at `path` in one step."""
    content = {
        "format": FORMAT,
        "experiment": result.experiment,
        "version": result.version,
        "packages": dict(result.packages),
        "seed": result.settings.get("seed"),
        "settings": dict(result.settings),
        "records": records_path(path).name,
        "complete": result.is_complete,
        "total": result.total,
        "rows": [_finite(row) for row in result.rows],
    }
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(beside, path)


def read(path: Path) -> Result:
    """The result at `path`.

    Raises:
        UsageError: there is none, or it is not one.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("experiment") not in EXPERIMENTS:
        raise UsageError(f"{path} is not a result of `deepdist lab`, expected JSON with format {FORMAT} and experiment")
    wrong = [
        name
        for name, kind in (("settings", dict), ("rows", list), ("total", int), ("version", str), ("packages", dict))
        if not isinstance(content.get(name), kind)
    ]
    if wrong or not all(isinstance(row, dict) for row in content["rows"]):
        raise UsageError(f"{path} is not a result of `deepdist lab`: {', '.join(wrong) or 'rows'} missing or wrong")
    return Result(
        content["experiment"],
        content["settings"],
        tuple(content["rows"]),
        content["total"],
        content["version"],
        content["packages"],
    )


def records_path(path: Path) -> Path:
    """Where the records of the result at `path` are."""
    return path.with_suffix(".csv")


def append_records(path: Path, row: int, steps: Sequence[Step]) -> None:
    """Add the steps of row number `row` to the records beside `path`; columns that are new make the file anew."""
    file = records_path(path)
    known = _columns(file)
    columns = list(dict.fromkeys([*known, "row", *(name for step in steps for name in step)]))
    if known and columns != known:
        _write_records(file, columns, list(read_records(path)))
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        if not known:
            writer.writeheader()
        writer.writerows({"row": row, **step} for step in steps)


def keep_records(path: Path, rows: Collection[int]) -> None:
    """Drop the records of all rows but those with these numbers, and put the rest in order."""
    file = records_path(path)
    if not rows:
        file.unlink(missing_ok=True)
    elif file.exists():
        kept = [step for step in read_records(path) if _row_of(step) in rows]
        _write_records(file, _columns(file), sorted(kept, key=_row_of))


def lacking(result: Result, path: Path) -> list[int]:
    """The numbers of the rows of `result`, which lies at `path`, that have not all their records beside it."""
    counts = Counter(_row_of(step) for step in read_records(path))
    wanted = int(result.settings.get("rounds", 0)) + 1
    return [
        number for number, row in enumerate(result.rows) if not row.get("refused") and counts.get(number, 0) != wanted
    ]


def complaint(result: Result, path: Path) -> list[str]:
    """What is to be said of rows whose records are missing; nothing if none are."""
    numbers = lacking(result, path)
    if not numbers:
        return []
    some = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
    return [
        f"{records_path(path).name} lacks records of {len(numbers)} of {len(result.rows)} rows (number {some}), which "
        f"no plot can show; the command that made {path.name} fills them in."
    ]


def _row_of(step: Mapping[str, str]) -> int:
    text = step.get("row") or ""
    return int(text) if text.isdecimal() else -1


def read_records(path: Path) -> list[dict[str, str]]:
    """Every step of the result at `path`, as text."""
    file = records_path(path)
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def series(records: Iterable[Mapping[str, str]], name: str) -> dict[int, tuple[list[int], list[float]]]:
    """{row number: (rounds, values)} of one column, without the rounds in which it was not recorded."""
    found: dict[int, tuple[list[int], list[float]]] = {}
    for step in records:
        if step.get(name) and _row_of(step) >= 0:
            rounds, values = found.setdefault(int(step["row"]), ([], []))
            rounds.append(int(step["round"]))
            values.append(float(step[name]))
    return found


def _columns(file: Path) -> list[str]:
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return next(csv.reader(lines), [])


def _write_records(file: Path, columns: Sequence[str], steps: Iterable[Mapping[str, str]]) -> None:
    beside = file.with_name(f".{file.name}.new")
    with beside.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(steps)
    os.replace(beside, file)


def _finite(row: Row) -> Row:
    """JSON has no NaN and no infinity: what diverged is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


DERIVED = frozenset({"best"})
"""What a row says by comparison with the others."""


def differences(mine: Sequence[Row], other: Sequence[Row]) -> list[str]:
    """Where two lists of rows are not equal to the last bit, in words."""
    found = [] if len(mine) == len(other) else [f"{len(mine)} rows, and {len(other)}"]
    for number, (a, b) in enumerate(zip(mine, other, strict=False)):
        a, b = _finite(a), _finite(b)
        for name in dict.fromkeys([*a, *b]):
            if a.get(name) != b.get(name) and name not in DERIVED:
                found.append(f"row {number}, {name}: {a.get(name)!r}, and {b.get(name)!r}")
    return found
