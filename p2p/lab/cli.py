"""`deepdist lab`: the options, the progress bar, and the output; the questions are asked elsewhere."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from gossip.errors import UsageError
from p2p.lab import ask, compare, results, sweep
from p2p.lab.grid import Grid, split
from p2p.lab.reports import page, plots, report

T = TypeVar("T")
TEXT_HEADINGS = frozenset({"algorithm", "topology", "compression", "fault", "A", "B"})
WIDTH_MAX = 1000
"""Columns of a table at most."""
STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""


class CommaList(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """Values with commas between them; commas within parentheses are part of a value."""

    name = "list"

    def __init__(self, kind: type) -> None:
        """`kind` makes a value from its text."""
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """(values)"""
        if isinstance(value, tuple):
            return value
        found = []
        for text in split(value):
            try:
                found.append(self._kind(text))
            except ValueError:
                expected = {int: "whole numbers", float: "numbers"}.get(self._kind, "names")
                self.fail(f"{text!r} in {value!r}, expected {expected} with commas between them", param, ctx)
            if text == "":
                self.fail(f"an empty value in {value!r}, expected values with commas between them", param, ctx)
        return tuple(found)


def swept(name: str, kind: type, default: str, about: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """An option that takes a comma list."""
    return click.option(f"--{name}", type=CommaList(kind), default=default, show_default=True, help=about)


def with_grid(**defaults: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """The options of a grid, with the defaults of one experiment."""
    options = (
        ("algorithm", str, "DPsgd()", 'Names or expressions: dpsgd, push-sum, "Every(4, Choco())", ...'),
        ("topology", str, "ring", "ring, torus, hypercube, exponential, ..."),
        ("peers", int, "16", "How many."),
        ("compression", str, "none", 'none or codecs: int8, "TopK(0.1)", "Chain(TopK(0.1), Int8())", ...'),
        ("loss", float, "0", "Probability that a packet never arrives."),
        ("delay", int, "0", "A packet takes 0 to this many rounds more."),
        ("staleness", int, "0", "A training step sees the parameters of so many rounds ago."),
        ("churn", float, "0", "Probability that a peer is absent in a round."),
        ("crash", float, "0", "Share of peers that is gone for good after --crash-after rounds."),
    )

    def decorate(command: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(command)
        def with_one(**values: Any) -> T:
            return command(grid={name: values.pop(name) for name, *_ in options}, **values)

        decorated: Callable[..., T] = with_one
        for name, kind, default, about in reversed(options):
            decorated = swept(name, kind, defaults.get(name, default), about)(decorated)
        return decorated

    return decorate


def with_files(default: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """The options that say where results go, and what becomes of those that are there."""

    def decorate(command: Callable[..., T]) -> Callable[..., T]:
        for option in reversed(
            (
                click.option(
                    "--json",
                    "path",
                    type=click.Path(path_type=Path, dir_okay=False),
                    default=default,
                    show_default=True,
                    help="Rows and settings; records of each round go beside it as .csv, the report as .html.",
                ),
                click.option("--html/--no-html", default=True, help="Write the report."),
                click.option("--fresh", is_flag=True, help="Replace what is there, instead of going on with it."),
                click.option("--skip", is_flag=True, help="Leave out combinations that cannot be, and say which."),
            )
        ):
            command = option(command)
        return command

    return decorate


def with_seeds(command: Callable[..., T]) -> Callable[..., T]:
    """The options of what is drawn."""
    for option in (
        click.option(
            "--seeds",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="A row is the mean over so many seeds, with its standard error.",
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything that is drawn."
        ),
    ):
        command = option(command)
    return command


@contextmanager
def told() -> Iterator[None]:
    """The caller's mistakes become a line of text."""
    try:
        yield
    except UsageError as error:
        raise click.UsageError(str(error)) from None


@click.group()
def lab() -> None:
    """Ask the simulators what happens to consensus and training if ..."""


@lab.command()
@with_grid()
@click.option("--rounds", type=int, default=200, show_default=True)
@with_seeds
@click.option("--parameters", type=int, default=10, show_default=True, help="Of one peer.")
@click.option(
    "--start", default="slowest", show_default=True, help="slowest: contracts as theory says; or normal: all drawn."
)
@click.option("--step", type=float, default=0.0, show_default=True, help="Train a quadratic by steps of this length.")
@click.option("--curvature", type=float, default=1.0, show_default=True, help="Of what is trained.")
@click.option("--noise", type=float, default=0.0, show_default=True, help="Of the gradients.")
@click.option("--crash-after", type=click.IntRange(min=0), default=2, show_default=True, help="Rounds.")
@with_files("consensus.json")
def consensus(grid: dict[str, Any], **options: Any) -> None:
    """How fast peers come to agree, and on what: every combination of the lists is one row.

    Ctrl-C keeps the rows that are done; the same command goes on with the others.
    """
    from p2p.lab.consensus import Consensus

    files = _files(options)
    with told():
        ask_all(Consensus(Grid(**grid), **options), **files)


@lab.command()
@with_grid(
    algorithm="DPsgd(),CombineThenAdapt(),GradientTracking()", topology="ring,exponential,one-peer-exponential,complete"
)
@click.option("--rounds", type=int, default=500, show_default=True)
@with_seeds
@click.option(
    "--model",
    default="digits",
    show_default=True,
    help="digits (drawn), mnist, or a model of p2p.models with a workload.",
)
@click.option("--shards", default="label", show_default=True, help="label: a peer sees one or two labels; or iid.")
@click.option("--rows", type=int, default=1600, show_default=True, help="Images, or at most so many texts.")
@click.option(
    "--rate",
    type=CommaList(str),
    help="Learning rates, of which the best of each algorithm is marked: 0.5,1,2; or by algorithm: relay=4,dpsgd=0.5.  "
    "[default: the model's own]",
)
@click.option("--batch", type=int, default=0, show_default=True, help="Rows of a step; 0 for all that a peer has.")
@click.option("--data", type=click.Path(exists=False), help="MNIST's folder, or a file with one text per line.")
@click.option("--download", is_flag=True, help="Get MNIST into --data first, if it is not there.")
@click.option("--crash-after", type=click.IntRange(min=0), default=100, show_default=True, help="Rounds.")
@with_files("convergence.json")
def convergence(grid: dict[str, Any], rate: tuple[str, ...] | None, download: bool, **options: Any) -> None:
    """How well a real model trains, by algorithm and topology, with centralized SGD beside it."""
    from p2p.lab.convergence import Convergence
    from p2p.lab.workloads import images, table

    files = _files(options)
    with told():
        if download:
            if options["model"] != "mnist" or not options["data"]:
                raise UsageError("--download is for --model mnist with --data FOLDER")
            images.download_mnist(Path(options["data"]))
        rate = rate if rate is not None else (table.rate_of(options["model"]),)
        ask_all(Convergence(Grid(**grid), rate=rate, **options), **files)


@lab.command()
@with_grid(
    algorithm="DPsgd(),PairwiseExchange(),PushSum(),PlainPushSum()",
    topology="one-peer-hypercube",
    loss="0,0.01,0.1,0.3",
    churn="0,0.1,0.3",
    crash="0,0.1,0.3",
)
@click.option("--rounds", type=int, default=200, show_default=True)
@with_seeds
@click.option("--parameters", type=int, default=10, show_default=True, help="Of one peer.")
@click.option("--crash-after", type=click.IntRange(min=0), default=2, show_default=True, help="Rounds.")
@with_files("faults.json")
def faults(grid: dict[str, Any], **options: Any) -> None:
    """What becomes of mass and mean when packets are lost, peers come and go, and peers crash; each alone."""
    from p2p.lab.faults import Faults

    files = _files(options)
    with told():
        ask_all(Faults(Grid(**grid), **options), **files)


@lab.command()
@click.argument("recorded", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Keep the repetition there.")
def repeat(recorded: Path, path: Path | None) -> None:
    """Run the settings in RECORDED again, and compare every row to the last bit; exit 1 if one differs.

    With --json the repetition is kept, with a report of its own.
    """
    with told():
        first = results.read(recorded)
        question = ask.question(first)
        again = path if path is not None else recorded.with_suffix(".repeated.json")
        begun = sweep.begin(question, again, fresh=True)
        second, stopped = _run_with_bar(begun)
    if path is not None and second.rows:
        with told():
            plots.check_matplotlib()
            report.write_page(path, path.with_suffix(".html"), getattr(question, "measure", "loss"))
    if path is None:
        again.unlink(missing_ok=True)
        results.records_path(again).unlink(missing_ok=True)
    if stopped:
        sys.exit(STOPPED)
    for name, was, now in (("deepdist", first.version, second.version), *_packages(first, second)):
        if was != now:
            click.echo(f"{name} was {was} and is {now}")
    found = results.differences(first.rows, second.rows[: len(first.rows)])
    if found:
        raise click.ClickException("not the same again:\n" + "\n".join(found))
    click.echo(f"{len(first.rows)} rows, all the same again")


@lab.command(name="compare")
@click.argument("a", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("b", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    default="compare.html",
    show_default=True,
    help="The report; replaced if it is there.",
)
@click.option("--no-html", is_flag=True, help="Write no report.")
def compare_results(a: Path, b: Path, html: Path, no_html: bool) -> None:
    """Two results side by side: the settings that differ, and the rows."""
    with told():
        one, other = results.read(a), results.read(b)
        found = compare.compare(one, other)
        missing = [
            f"{side}: {line}" for side, r, at in (("A", one, a), ("B", other, b)) for line in results.complaint(r, at)
        ]
        if not no_html:
            plots.check_matplotlib()
            compare.write_page(a, b, html)
    click.echo(f"A: {a}\nB: {b}")
    if found.settings.rows:
        _print(found.settings)
    else:
        click.echo("no setting differs")
    _print(found.rows)
    for line in (*found.unpaired, *missing):
        click.echo(line)
    if not no_html:
        click.echo(f"written: {html}")


def _files(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options.pop(name) for name in ("path", "html", "fresh")}


def ask_all(question: sweep.Question, path: Path, html: bool, fresh: bool) -> None:
    """Run a sweep, print its table, and write its report; exits if it is stopped."""
    if html:
        plots.check_matplotlib()
    begun = sweep.begin(question, path, fresh=fresh)
    for text in begun.refused:
        click.echo(f"left out: {text}")
    if begun.done.rows:
        count = len(begun.done.rows) - len(begun.lacking)
        click.echo(f"{count} of {len(begun.cases)} rows are done already", err=True)
    if begun.lacking:
        numbers = ", ".join(map(str, begun.lacking))
        click.echo(f"records of rows {numbers} are missing in {results.records_path(path).name}: run again", err=True)
    done, stopped = _run_with_bar(begun)
    if done.rows:
        _print(report.table(done))
        best = report.best(done)
        if best is not None:
            click.echo("The best rate of each:")
            _print(best)
    for note in report.notes(done):
        click.echo(note)
    written = [path, results.records_path(path)]
    if html and done.rows:
        written.append(path.with_suffix(".html"))
        report.write_page(path, written[-1], getattr(question, "measure", "loss"))
    click.echo(f"written: {', '.join(str(each) for each in written if each.exists())}")
    if stopped:
        click.echo(f"stopped after {len(done.rows)} of {len(begun.cases)} rows; the same command goes on", err=True)
        sys.exit(STOPPED)


def _run_with_bar(begun: sweep.Sweep) -> tuple[results.Result, bool]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rounds", total=begun.rounds_left)
        return sweep.run(begun, lambda: bar.advance(task))


def _print(table: page.Table) -> None:
    """Print `table` in as many columns as it needs: a narrow terminal breaks its lines, not its words."""
    shown = RichTable(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(table.headings):
        is_text = number == 0 or heading in TEXT_HEADINGS
        shown.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, console.measure(shown, options=console.options.update(width=WIDTH_MAX)).maximum)
    console.print(shown, soft_wrap=True)


def _packages(a: results.Result, b: results.Result) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*a.packages, *b.packages]):
        yield name, a.packages.get(name), b.packages.get(name)
