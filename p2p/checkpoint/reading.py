"""Reading checkpoints: the newest that is whole, with its arrays. Nothing that is read is executed.

A checkpoint that is damaged is passed over with a warning, and the one before it is used. The part that is pickled, if
there is one, is opened only by who says so (`allow_pickle`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.caution import warn
from p2p.checkpoint.record import DamagedError, FileRecord, Record, check_arrays, decoded, read_tensors
from p2p.checkpoint.store import Store, store_at

MANIFEST = re.compile(r"checkpoint-(\d{6,12})\.json")


@dataclass(frozen=True)
class Checkpoint:
    """One that was read, and is whole."""

    record: Record
    arrays: Mapping[str, Array]
    pickled: bytes | None
    """A part that was pickled; whoever opens it runs code."""


def manifests(names: list[str]) -> list[tuple[int, str]]:
    """(number, name) of those among the names of files, the newest first."""
    found = [(int(match[1]), name) for name in names if (match := MANIFEST.fullmatch(name))]
    return sorted(found, reverse=True)


def is_there(path: str) -> bool:
    """Some checkpoint, whole or not, is in the folder or behind the URL."""
    return bool(manifests(store_at(path).names()))


def read(path: str) -> Checkpoint:
    """The newest checkpoint in the folder, or behind the URL, that is whole; or the one whose manifest `path` names.

    Raises:
        UsageError: there is none, or none is whole; the text says what is the matter with each.
    """
    folder, _, last = path.rpartition("/")
    if MANIFEST.fullmatch(last):
        return _read_one(store_at(folder or "."), last, path)
    store = store_at(path)
    try:
        found = manifests(store.names())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}), expected the folder of a checkpoint") from None
    if not found:
        raise UsageError(
            f"{path} has no checkpoint, expected the folder or URL that was given to train(..., checkpoint=...)"
        )
    wrong: list[str] = []
    for _, name in found:
        try:
            checkpoint = _whole(store, name)
        except (DamagedError, OSError) as error:
            wrong.append(f"{name}: {error}")
            continue
        if wrong:
            warn(f"{path}: the newest checkpoint cannot be used, and {name} is taken instead ({'; '.join(wrong)})")
        return checkpoint
    raise UsageError(f"{path} has no checkpoint that is whole: {'; '.join(wrong)}")


def _read_one(store: Store, name: str, path: str) -> Checkpoint:
    try:
        return _whole(store, name)
    except (DamagedError, OSError) as error:
        raise UsageError(f"{path} cannot be used as a checkpoint: {error}") from None


def _whole(store: Store, name: str) -> Checkpoint:
    record = decoded(store.read(name))
    arrays = read_tensors(_file(store, record.tensors))
    check_arrays(record, arrays)
    pickled = None if record.pickled is None else _file(store, record.pickled)
    return Checkpoint(record, arrays, pickled)


def read_record(store: Store, name: str) -> Record:
    """A manifest alone; `DamagedError` if it is none of ours, `OSError` if it cannot be read."""
    return decoded(store.read(name))


def _file(store: Store, file: FileRecord) -> bytes:
    try:
        content = store.read(file.name)
    except FileNotFoundError:
        raise DamagedError(f"its file {file.name} is gone") from None
    if len(content) != file.nbytes:
        raise DamagedError(f"its file {file.name} has {len(content)} bytes, expected {file.nbytes}")
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DamagedError(f"its file {file.name} is not as it was written: the checksum differs")
    return content
