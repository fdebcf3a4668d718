"""`deepdist inspect CHECKPOINT`: what a checkpoint holds, and whether it is whole. Nothing of it is executed, and no
text in it moves a cursor."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gossip.errors import printable
from p2p.checkpoint import reading
from p2p.checkpoint.record import Record


def show(path: str, console: Console) -> None:
    """Print what the newest checkpoint that is whole holds.

    Raises:
        UsageError: there is none.
    """
    record = reading.read(path).record
    table = Table(title=Text(f"checkpoint {record.number} at {path}"), title_justify="left")
    table.add_column("array", no_wrap=True)
    table.add_column("dtype")
    table.add_column("shape", justify="right")
    for array in record.arrays:
        shape = " x ".join(map(str, array.shape)) or "one number"
        table.add_row(*(Text(printable(each)) for each in (array.name, array.dtype[1:], shape)))
    console.print(table)
    for line in lines(record):
        console.print(printable(line), markup=False, highlight=False)


def lines(record: Record) -> list[str]:
    """What is not in the table."""
    session, training, progress = record.session, record.training, record.progress
    per_chunk = "whole partitions" if training.chunk_rows is None else f"chunks of {training.chunk_rows} rows"
    named = (("codec", session.codec), ("mixing", session.mixing))
    more = "".join(f" {name}={value}" for name, value in named if value is not None)
    found = [
        f"written {record.written} by deepdist {record.library}, lineage {record.lineage}",
        f"model {record.model}"
        + (", as JSON" if record.pickled is None else ", as a pickle: resume it with model=..., or allow_pickle=True"),
        f"session mode={session.mode} discipline={session.discipline} seed={session.seed}{more}",
        f"training {training.epochs} epochs of {training.partitions} partitions, in {per_chunk}, "
        f"exchange={training.exchange}, {training.epochs_before} epochs before it",
        f"progress {record.units.count} units of work, {progress.partitions_done} of {progress.partitions} partitions, "
        f"{progress.updates} updates, {progress.seconds:.1f} s",
        f"ended: {progress.ended}" if progress.ended is not None else "it goes on",
    ]
    files = [file for file in (record.tensors, record.pickled) if file is not None]
    return found + [f"file {file.name} {file.nbytes:,} bytes sha256 {file.sha256}" for file in files]
