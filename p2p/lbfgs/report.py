"""The report of a training by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass

from p2p.report import Report


@dataclass(frozen=True)
class LBFGSReport(Report):
    """`published` of a worker is how many of its portions counted; shards publish nothing. `updates` are all portions
    that counted, in all passes."""

    passes: int = 0
    """Over the data: evaluations of objective and gradient."""
    iterations: int = 0
    """Steps that were accepted."""
    objective: float = 0.0
    gradient_norm: float = 0.0
    objectives: tuple[float, ...] = ()
    """Of the model after each pass that came to its end; one that leads to no step leaves it as it was."""
    pass_seconds: tuple[float, ...] = ()
    """Of each pass that came to its end, with what follows it; the first has the start of all processes."""
    restarts: int = 0
    """Times that the history began anew, as a shard was gone."""
    skipped: int = 0
    """Pairs that did not count, since s'y was not positive enough."""
    backups: int = 0
    """Portions that were begun again, as they were long under way."""
    dropped: int = 0
    """Computed portions that came after another copy, or too late."""

    def summary(self) -> str:
        """The run's figures in words."""
        lines = [
            f"{self.passes} passes of {self.rows} rows in all in {self.seconds:.1f} s, {self.iterations} steps; "
            f"objective {self.objective:.8g}, |gradient| {self.gradient_norm:.2g}",
            f"{self.backups} back-up copies, {self.dropped} computed portions dropped",
            f"ended: {self.ended}",
        ]
        if self.skipped:
            lines.append(f"{self.skipped} pairs skipped")
        if self.restarts:
            lines.append(f"the history began anew {self.restarts} times, as a shard was gone")
        return "\n".join(lines)
