"""The loop over rows: resumes where it was stopped, keeps what it has when it is stopped, goes on after a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gossip.errors import UsageError
from p2p.lab import results
from p2p.lab.grid import Case
from p2p.lab.results import Result, Row, Step

Tick = Callable[[], None]
"""Called once per round that is done."""


class Question(Protocol):
    """What an experiment asks of one case."""

    @property
    def experiment(self) -> str:
        """Its name, one of `results.EXPERIMENTS`."""

    @property
    def rounds(self) -> int:
        """Of one row and seed."""

    @property
    def seeds(self) -> int:
        """How many a row is the mean of."""

    def to_json(self) -> dict[str, Any]:
        """All settings, from which `ask.question` makes it again."""

    def cases(self) -> tuple[list[Case], list[str]]:
        """(the cases that can run, why others cannot). Raises `UsageError` if none can."""

    def answer(self, case: Case, tick: Tick) -> tuple[Row, list[Step]]:
        """Run one case: (its row, what was recorded in each round)."""


@dataclass(frozen=True)
class Sweep:
    """What is to be done, and what is done already."""

    question: Question
    cases: tuple[Case, ...]
    refused: tuple[str, ...]
    path: Path
    done: Result
    lacking: tuple[int, ...] = ()
    """Rows that are done, and of which the records are missing: they are run again."""

    @property
    def to_do(self) -> tuple[int, ...]:
        """Numbers of rows."""
        return (*self.lacking, *range(len(self.done.rows), len(self.cases)))

    @property
    def rounds_left(self) -> int:
        """For a progress bar."""
        return len(self.to_do) * self.question.rounds * self.question.seeds


def begin(question: Question, path: Path, *, fresh: bool = False) -> Sweep:
    """Check all cases, and take up what `path` holds of the same settings and version.

    Raises:
        UsageError: a case cannot run, or `path` holds something else and `fresh` is false.
    """
    cases, refused = question.cases()
    done = Result(question.experiment, question.to_json(), total=len(cases))
    if path.exists() and not fresh:
        found = results.read(path)
        reason = _differs(found, done)
        if reason:
            raise UsageError(f"{path} holds another result ({reason}); name another file, or replace it with --fresh")
        done = found
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder, into which {path.name} could be written")
    lacking = tuple(results.lacking(done, path))
    results.keep_records(path, set(range(len(done.rows))) - set(lacking))
    results.write(done, path)
    return Sweep(question, tuple(cases), tuple(refused), path, done, lacking)


def run(sweep: Sweep, tick: Tick) -> tuple[Result, bool]:
    """Do the rows that are left: (the result, whether Ctrl-C ended it early).

    A case that turns out to be impossible on the way leaves a row that says why.
    """
    done = sweep.done
    try:
        for number in sweep.to_do:
            case = sweep.cases[number]
            try:
                row, steps = sweep.question.answer(case, tick)
            except UsageError as error:
                row, steps = {**vars(case), "refused": str(error)}, []
            results.append_records(sweep.path, number, steps)
            done = done.with_row(row, number)
            results.write(done, sweep.path)
    except KeyboardInterrupt:
        return done, True
    finally:
        if sweep.lacking:  # their records stand behind the others
            results.keep_records(sweep.path, set(range(len(done.rows))))
    return done, False


def _differs(found: Result, wanted: Result) -> str:
    if found.experiment != wanted.experiment:
        return f"{found.experiment}, wanted {wanted.experiment}"
    if found.version != wanted.version or found.packages != wanted.packages:
        return "another version computed it"
    changed = changed_settings(found.settings, wanted.settings)
    return "; ".join(f"{name} {was!r}, wanted {now!r}" for name, (was, now) in changed.items())


def changed_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (value in a, value in b)} of the settings that differ."""
    return {name: (a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)}
