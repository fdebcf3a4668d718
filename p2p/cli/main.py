"""The command `deepdist`: each command imports what it needs when it is called, since `doctor` has to run where numpy
does not.
"""

import sys

import click
from rich.console import Console

from p2p.cli.doctor import examine
from p2p.cli.doors import doors, settings


@click.group()
@click.version_option(package_name="deepdist-p2p")
def main() -> None:
    """Train a model on Apache Spark, peer to peer."""


@main.command()
@click.option("--spark-master", metavar="URL", help="Of a cluster whose settings are to be looked at.")
@click.option("--spark-conf", metavar="NAME=VALUE", multiple=True, help="A setting of Spark's, as spark-submit --conf.")
@click.option("--spark-properties", type=click.Path(exists=True, dir_okay=False), help="Such as spark-defaults.conf.")
def doctor(spark_master: str | None, spark_conf: tuple[str, ...], spark_properties: str | None) -> None:
    """Look for what training needs on this machine, and say what to do about what is missing.

    Then come the doors by which others could reach a training: open, guarded, or not looked at. Ports are those of
    trainings that run now. Spark is judged by the settings that are given here.
    """
    try:
        conf = settings(spark_conf, spark_properties)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{error}") from None
    sys.exit(0 if examine(doors(spark_master, conf)) else 1)


class _Lab(click.Group):
    """The laboratory's commands; loaded when asked for, since `doctor` has to run where numpy does not."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return _lab().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _lab().get_command(ctx, cmd_name)


def _lab() -> click.Group:
    from p2p.lab.cli import lab

    return lab


main.add_command(_Lab("lab", help="Ask the simulators what happens to consensus and training if ..."))


@main.command()
@click.option("--seed", type=int, help="Of the bad day to repeat.")
@click.option("--story", type=click.Path(exists=True, dir_okay=False), help="A file that an agent wrote.")
@click.option("--peer", default="", help="Of a story: of this peer only, by the beginning of its name.")
@click.option("--last", type=click.IntRange(min=1), help="Of a story: so many events at the end.")
def simulate(seed: int | None, story: str | None, peer: str, last: int | None) -> None:
    """Tell the story of one simulated bad day, or of an agent.

    With --seed: repeat that day, and tell its options, its events, and whether anything was violated. With --story:
    print the last events of an agent, and what its peer wanted done, from the file that it wrote when it failed, or
    when it was asked by kill -USR1. They are not played again: arrays are not kept, only how large they were.
    """
    if (seed is None) == (story is None):
        raise click.UsageError("expected one of --seed and --story")
    if story is not None:
        _print_story(story, peer, last)
        return
    assert seed is not None
    from gossip.sim.proving_ground import run

    outcome = run(seed, tell=True)
    click.echo(f"options\n{outcome.options}\n\nstory\n" + "\n".join(outcome.story))
    click.echo("\n" + "\n".join(f"{name}: {count}" for name, count in sorted(outcome.counts.items())))
    click.echo(f"digest {outcome.digest}")
    if outcome.violation is not None:
        raise click.ClickException(outcome.violation)


def _print_story(path: str, peer: str, last: int | None) -> None:
    from gossip.errors import UsageError, printable
    from gossip.story import read

    try:
        with open(path, encoding="utf-8") as file:
            lines = [line for line in read(file) if line.peer.startswith(peer)]
    except (UsageError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path}: {error}") from None
    for line in lines[-last:] if last is not None else lines:
        click.echo(printable(f"{line.time:12.3f}  {line.peer}  {line.event}"))
        for effect in line.effects if line.effects is not None else ("not done",):
            click.echo(printable(f"{'':14}->  {effect}"))


@main.command()
@click.option("--seeds", type=click.IntRange(min=1), default=300, show_default=True, help="How many.")
@click.option("--first", type=int, default=0, show_default=True, help="The first one.")
@click.option(
    "--coverage", is_flag=True, help="Print which events found peers in which states, and which branches were taken."
)
def soak(seeds: int, first: int, coverage: bool) -> None:
    """Run many simulated bad days over all cores and print what they came to; exit 1 if anything was violated.

    Ctrl-C ends it early and prints what was run until then.
    """
    from rich.progress import Progress

    from p2p.cli.soak import branches, reached, table
    from p2p.cli.soak import soak as run_seeds

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("seeds", total=seeds)
        outcomes = run_seeds(range(first, first + seeds), lambda _: bar.advance(task), coverage)
    bad = [outcome for outcome in outcomes if outcome.violation is not None]
    for outcome in bad:
        click.echo(f"seed {outcome.options.seed}: {outcome.violation}\n{outcome.options}\n")
    Console().print(table(outcomes))
    if coverage:
        Console(width=240).print(reached(outcomes))
        click.echo("\n".join(branches(outcomes)))
    if len(outcomes) < seeds:
        click.echo(f"stopped after {len(outcomes)} of {seeds} seeds")
    if bad:
        raise click.ClickException(f"{len(bad)} seeds violated a promise; repeat one by deepdist simulate --seed N")


@main.command("inspect")
@click.argument("checkpoint")
def inspect_checkpoint(checkpoint: str) -> None:
    """Say what the newest CHECKPOINT of a folder or URL holds, or the one whose manifest is named.

    Arrays by name, units of work, when it was written and by which release. Exit 1 if none is whole. Nothing of it is
    executed, a part that is pickled is not opened.
    """
    from gossip.errors import UsageError
    from p2p.cli.inspect import show

    try:
        show(checkpoint, Console(soft_wrap=True))
    except UsageError as error:
        raise click.ClickException(str(error)) from None
