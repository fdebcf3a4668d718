"""The report of a training: figures per peer and for the run, printed as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import StringIO

from rich.console import Console
from rich.table import Table

from gossip.errors import UsageError

WIDTH_MAX = 400
"""Wide enough that no figure is cut, however long the names of hosts are."""


@dataclass(frozen=True)
class Conduct:
    """What is held against one peer, since the session began."""

    absurd: int = 0
    """Of its updates: far longer than those of others are, as `ratio` says of the longest."""
    ratio: float = 0.0
    refused: int = 0
    """Of its updates, that the driver program's replica did not take;"""
    left_out: int = 0
    """and those that its own agent did not publish. Both are of `DeepDist(update_norm_max=...)`."""
    put_out: str = ""
    """Why it does not belong to the session any more; empty if it does."""

    @property
    def is_merged(self) -> bool:
        """What is absurd is in the model."""
        return bool(self.absurd) and not (self.refused or self.put_out)

    def __str__(self) -> str:
        said = []
        if self.absurd:
            said.append(f"sent {self.absurd} updates that were up to {self.ratio:.2g} times as long as those of others")
        if self.refused:
            said.append(f"had {self.refused} updates refused")
        if self.left_out:
            said.append(f"left out {self.left_out} of its own updates, which were too long")
        if self.put_out:
            said.append(f"was put out, since {self.put_out}")
        text = ", ".join(said)
        if self.is_merged:
            text += (
                ": its data are of another scale, or it is broken, or lies. What it sent is in the model; "
                "DeepDist(update_norm_max='auto') keeps such updates out"
            )
        return text


GOOD = Conduct()


@dataclass(frozen=True)
class PeerReport:
    """One agent's figures, since the session began."""

    name: str
    """Host and process id."""
    role: str
    published: int
    """Updates of its own lane."""
    applied: int
    """Updates of all lanes merged into its replica."""
    bytes_out: int
    """Sent, or handed over as open files to agents of its host; once for each that got them."""
    bytes_in: int
    staleness_median: float
    """Updates merged into the replica between the copy that a gradient saw and its update."""
    staleness_p95: float
    memory_peak_bytes: int
    """0 for a simulated peer."""
    rounds: int = 0
    """Of mixing, begun."""
    edges: Mapping[str, int] = field(default_factory=dict)
    """Bytes of packets that it sent to each neighbor, by name; of mixing."""
    conduct: Conduct = GOOD
    """What is held against it: it lies or is broken, if anything is."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """How a session stands, by what its agents told last. A report is made of one at the end, and one from before."""

    at: float
    """When that was, in seconds by the session's clock: virtual ones on a simulated cluster."""
    updates: int
    """Published in the trainings of the session so far."""
    units: int
    """Pieces of work that count in the replica which has most of them; 0 where peers mix."""
    peers: tuple[PeerReport, ...]
    partitions_done: int
    """Of the training that runs, in all epochs,"""
    partitions: int
    """of so many; 0 between two trainings."""


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` said of the model as it was at a moment of the training."""

    seconds: float
    """Since the training began, when the copy was made; virtual ones on a simulated cluster."""
    updates: int
    """Of this training, merged in the copy."""
    values: Mapping[str, float]
    """By name; "value" where `evaluate` returned one number."""
    consensus_distance: float | None = None
    """Where peers mix, of the replicas whose mean was evaluated, as `Report.consensus_distance`; on a simulated cluster
    of all that live. None where one replica was read."""
    spread: float | None = None
    """Of the same replicas: the root of the mean square of their (Euclidean) distances to the mean, over all arrays.
    Papers call this, or its square, the consensus distance."""

    def __str__(self) -> str:
        text = ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        return text if self.consensus_distance is None else f"{text} (apart {self.consensus_distance:.1e})".lstrip()


@dataclass(frozen=True)
class Checkpoints:
    """What became of the checkpoints of a training."""

    written: int = 0
    failed: int = 0
    """Tries that came to nothing: the last good one stays."""
    seconds: float = 0.0
    """That the good ones took, in a thread of the driver program."""
    nbytes: int = 0
    """Of the last good one."""
    pickled: bool = False
    """A part of the model is in them as a pickle, since it is no array, number or text."""
    last_error: str = ""
    """Of the last try that came to nothing."""

    def __str__(self) -> str:
        text = f"{self.written} checkpoints of {self.nbytes / 1e6:.1f} MB in {self.seconds:.1f} s"
        text += ", with a pickle of the model's own parts" if self.pickled else ""
        return text + (f", {self.failed} failed (at last: {self.last_error})" if self.failed else "")


@dataclass(frozen=True)
class Report:
    """A training's figures; `print` it for the table."""

    peers: tuple[PeerReport, ...]
    mode: str
    rows: int
    """Elements of partitions that gradients took in, over all epochs; of blocks their rows, if the gradient tells them
    by an attribute `rows_in`, and else blocks."""
    seconds: float
    """Wall time of the training, draining included; virtual seconds on a simulated cluster."""
    updates: int
    """Updates published in this training; with mode="sync" steps, and with mode="averaging" epochs."""
    updates_lost: int
    """Updates accepted from a task that some replica never got: see `lost`."""
    consensus_distance: float
    """Largest relative difference between any two replicas after draining, over all arrays."""
    missing: tuple[str, ...] = ()
    """Agents that were gone or did not drain in time."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """Updates lost, by cause: "agent gone" (it died before they were pulled) or "not read in time" (it lives, but some
    replica did not have them when `drain_timeout_s` was up)."""
    digest: str = ""
    """Of a simulated cluster: a hash of all that happened, the same for the same seed. Else empty."""
    evaluations: tuple[Evaluated, ...] = ()
    """At the beginning, every `evaluate_every_s` and at the end; empty if there was nothing to evaluate."""
    story: tuple[str, ...] = ()
    """Of a simulated cluster: what went wrong, and when."""
    ended: str = "done"
    """Why the training ended: "done", "stopped: ..." by `stop_when`, or "interrupted". Of one that was stopped, `rows`
    and `updates_lost` are of the partitions that were done."""
    checkpoints: Checkpoints | None = None
    """None where none were asked for."""
    failovers: int = 0
    """How often another master took the place of the one that led; see `standbys` of `DeepDist`."""
    staleness_weight: float | None = None
    """Mean weight of a master's updates by their staleness; None where all have the same."""

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds > 0 else 0.0

    def table(self) -> Table:
        """As a table of the rich library."""
        title = f"mode {self.mode}" + (", simulated: seconds are virtual" if self.digest else "")
        table = Table(title=title, title_justify="left", caption=self.summary(), caption_justify="left")
        columns = ["peer", "role", "published", "applied", "MB out", "MB in", "staleness", "p95", "peak MB"]
        mixes = any(peer.rounds for peer in self.peers)
        for column in [*columns, *(["rounds", "kB/edge"] if mixes else [])]:
            table.add_column(column, justify="left" if column in ("peer", "role") else "right", no_wrap=True)
        for peer in self.peers:
            table.add_row(
                peer.name,
                peer.role,
                str(peer.published),
                str(peer.applied),
                f"{peer.bytes_out / 1e6:.1f}",
                f"{peer.bytes_in / 1e6:.1f}",
                f"{peer.staleness_median:g}",
                f"{peer.staleness_p95:g}",
                f"{peer.memory_peak_bytes / 1e6:.0f}",
                *([str(peer.rounds), f"{_mean(peer.edges) / 1e3:.1f}"] if mixes else []),
            )
        return table

    def summary(self) -> str:
        """The run's figures in words."""
        causes = f" ({', '.join(f'{count} {cause}' for cause, count in self.lost.items())})" if self.lost else ""
        lines = [
            f"{self.rows} rows in {self.seconds:.1f} s = {self.rows_per_second:.0f} rows/s; {self.updates} updates, "
            f"{self.updates_lost} lost{causes}",
            f"consensus distance {self.consensus_distance:.1e}",
        ]
        if self.failovers:
            lines.append(f"another master came to lead {self.failovers} times")
        if self.staleness_weight is not None:
            lines.append(f"updates weighed {self.staleness_weight:.3g} on average, by their staleness")
        if self.missing:
            lines.append(f"gone, or not level in time: {', '.join(self.missing)}")
        lines += [f"{peer.name} {peer.conduct}" for peer in self.peers if peer.conduct != GOOD]
        if self.evaluations:
            first, last = self.evaluations[0], self.evaluations[-1]
            lines.append(f"evaluated {len(self.evaluations)} times: {first} at first, {last} in the end")
        if self.ended != "done":
            lines.append(self.ended)
        if self.checkpoints is not None:
            lines.append(str(self.checkpoints))
        lines += self.story
        return "\n".join(lines)

    def __str__(self) -> str:
        text = StringIO()
        Console(file=text, width=WIDTH_MAX, force_terminal=False, highlight=False).print(self.table())
        return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


class IncompleteTraining(Exception):  # noqa: N818 - what it is, as users catch it
    """A training ended, and the model lacks updates that living peers have accepted.

    `dd.model` holds the best replica that could be had, and `report` the figures. `train(..., on_incomplete="warn")`
    gives a warning instead.
    """

    def __init__(self, text: str, report: Report) -> None:
        super().__init__(text)
        self.report = report


def joined(first: Report, then: Report) -> Report:
    """Of a training that began in one mode and ended in another: the figures of both, and the peers of the latter. Its
    tasks have gone through all rows again, and passed by those that counted."""
    lost = {cause: first.lost.get(cause, 0) + then.lost.get(cause, 0) for cause in {**first.lost, **then.lost}}
    return replace(
        then,
        seconds=first.seconds + then.seconds,
        updates=first.updates + then.updates,
        updates_lost=first.updates_lost + then.updates_lost,
        lost=lost,
        failovers=first.failovers,
    )


class MastersLostError(UsageError):
    """Most masters of a group are gone, or stand still: what they acknowledged last cannot be known any more.

    `dd.model` has what had reached the driver program's master, and `report` is of that. With
    `DeepDist(on_master_loss="p2p")` peers train on from there instead.
    """

    report: Report | None = None


def _mean(edges: Mapping[str, int]) -> float:
    return sum(edges.values()) / len(edges) if edges else 0.0
