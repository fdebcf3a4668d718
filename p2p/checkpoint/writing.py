"""Writing checkpoints: the watcher that does it every so often, while the peers train on.

What fails (a full disk, a file system that is gone) is counted and warned of once: the training goes on, and the last
good checkpoint stays. Older ones are removed when a new one is whole.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gossip.arrays import Array, Arrays, Bytes
from gossip.errors import UsageError
from gossip.marks import Counted
from p2p.adapters.model import Model
from p2p.caution import warn
from p2p.checkpoint.claims import Claims
from p2p.checkpoint.plain import NotPlainError, Plain
from p2p.checkpoint.reading import manifests, read_record
from p2p.checkpoint.record import (
    FORMAT,
    VERSION,
    ArrayRecord,
    DamagedError,
    FileRecord,
    ProgressRecord,
    Record,
    TrainingRecord,
    encoded,
    tensors,
    units,
)
from p2p.checkpoint.resuming import Keeping
from p2p.checkpoint.store import store_at
from p2p.driver.stopping import Stopping
from p2p.driver.watchers import Moment
from p2p.report import Checkpoints

log = logging.getLogger("p2p")

OURS = re.compile(
    r"(?P<stem>checkpoint-\d{6,12})(-[0-9a-f]{8}\.(safetensors|pickle)|\.json)(?P<unfinished>\.[0-9a-f]{8}\.part)?"
)
"""Names of files that belong to a checkpoint, or were being written when a process was killed."""
UNDECIDED = "it was not decided yet which of two attempts at a unit of work counts"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where checkpoints go, and how often, as `train` was asked."""

    path: str
    every_s: float
    keep: int


class Writer:
    """The watcher that writes the checkpoints of one training."""

    wants_units = True

    def __init__(
        self,
        place: Place,
        keeping: Keeping,
        model: Model,
        stopping: Stopping,
    ) -> None:
        """`model` is the user's. `stopping` knows why the training has ended, and what the model is then, if not what
        was trained last.

        Raises:
            UsageError: what the place needs is not installed.
        """
        self.every_s = place.every_s
        self.figures = Checkpoints()
        self.training: TrainingRecord | None = None
        """What units of work mean; known when the training begins."""
        self._place = place
        self._keeping = keeping
        self._model = model
        self._stopping = stopping
        self._warned = False
        self._lock = threading.Lock()
        """Held while a checkpoint is written."""
        self._store = store_at(place.path)
        self._claims = Claims(self._store, place.path, keeping.lineage, place.every_s)
        self._number: int | None = None
        """Of the next one; None while it is not known which are there."""

    def __str__(self) -> str:
        return f"the checkpoint at {self._place.path}"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Checkpoints are written within, and by no other program.

        Raises:
            UsageError: nothing can be written there, another program does, or checkpoints of another lineage are there.
        """
        self._claims.take(self._last_written())
        try:
            self._number = self._next_number()
            yield
        finally:
            self._claims.give_back()

    def look(self, model: Any, moment: Moment) -> None:
        """Write what is shown. Failures are counted."""
        best = self._stopping.best if moment.ended else None
        arrays = self._model.arrays_of(model) if best is None else best
        self.write(arrays, moment, self._stopping.ended if moment.ended else None)

    def write(self, arrays: Arrays, moment: Moment, ended: str | None) -> None:
        """Write a checkpoint of these arrays; `ended` says why the training is over."""
        with self._lock:
            began = time.monotonic()
            try:
                if moment.counted is None:
                    raise DamagedError(UNDECIDED)
                self._claims.check()
                nbytes = self._write(arrays, moment, moment.counted, ended)
            except Exception as error:  # noqa: BLE001 - whatever a file system says: the training goes on
                self._fail(error)
            else:
                seconds = self.figures.seconds + time.monotonic() - began
                self.figures = replace(self.figures, written=self.figures.written + 1, seconds=seconds, nbytes=nbytes)

    def _fail(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}" if not isinstance(error, DamagedError) else str(error)
        self.figures = replace(self.figures, failed=self.figures.failed + 1, last_error=text)
        if not self._warned and not isinstance(error, DamagedError):
            self._warned = True
            warn(
                f"a checkpoint at {self._place.path} could not be written ({text}): the training goes on, and the last "
                "good one stays. Others are tried; the report counts them"
            )
        log.info("a checkpoint was not written: %s", text)

    def _write(self, arrays: Arrays, moment: Moment, counted: Counted, ended: str | None) -> int:
        assert self.training is not None
        extra, plain, skeleton = self._apart()
        number = self._next_number() if self._number is None else self._number
        stem = f"checkpoint-{number:06d}-{secrets.token_hex(4)}"
        names: list[str] = []
        try:
            files = [self._put(names, f"{stem}.safetensors", tensors({**arrays, **extra}))]
            if skeleton is not None:
                files.append(self._put(names, f"{stem}.pickle", [skeleton]))
            record = Record(
                format=FORMAT,
                version=VERSION,
                library=_release(),
                written=datetime.now(UTC).isoformat(timespec="seconds"),
                lineage=self._keeping.lineage,
                number=number,
                session=self._keeping.session,
                training=self.training,
                progress=ProgressRecord(
                    seconds=moment.seconds,
                    updates=moment.updates,
                    partitions_done=moment.partitions_done,
                    partitions=moment.partitions,
                    ended=ended,
                ),
                units=units(counted),
                arrays=tuple(
                    ArrayRecord(name=name, dtype=array.dtype.str, shape=array.shape) for name, array in arrays.items()
                ),
                meaning=self._model.adapter.meaning(self._model.model),
                plain=plain,
                model=f"{type(self._model.model).__module__}.{type(self._model.model).__qualname__}",
                tensors=files[0],
                pickled=files[1] if len(files) > 1 else None,
            )
            names.append(f"checkpoint-{number:06d}.json")
            nbytes = self._store.write(names[-1], [encoded(record)])
        except BaseException:
            for name in names:
                self._store.remove(name)
            raise
        self._number = number + 1
        self.figures = replace(self.figures, pickled=skeleton is not None)
        self._prune()
        return nbytes + sum(file.nbytes for file in files)

    def _put(self, names: list[str], name: str, blocks: Iterable[Bytes]) -> FileRecord:
        checksum = hashlib.sha256()

        def summed() -> Iterator[Bytes]:
            for block in blocks:
                checksum.update(block)
                yield block

        names.append(name)
        nbytes = self._store.write(name, summed())
        return FileRecord(name=name, nbytes=nbytes, sha256=checksum.hexdigest())

    def _apart(self) -> tuple[Mapping[str, Array], Any, bytes | None]:
        """The model without its trained arrays: other arrays, and the rest as JSON or pickled."""
        try:
            found = Plain(self._model.model, self._model.arrays())
            return found.arrays, found.value, None
        except NotPlainError:
            return {}, None, self._model.skeleton()

    def _next_number(self) -> int:
        """Behind those that are there."""
        found = manifests(self._store.names())
        for _, name in found:
            self._check_ours(name)
        return found[0][0] + 1 if found else 1

    def _last_written(self) -> float:
        """When the newest checkpoint was, in seconds since 1970; 0 if there is none that can be read."""
        try:
            for _, name in manifests(self._store.names()):
                return datetime.fromisoformat(read_record(self._store, name).written).timestamp()
        except Exception as error:  # noqa: BLE001 - whoever cannot write there is told what is the matter
            log.info("%s cannot be read: %s", self._place.path, error)
        return 0.0

    def _check_ours(self, name: str) -> None:
        try:
            record = read_record(self._store, name)
        except DamagedError:
            return
        if record.lineage != self._keeping.lineage:
            raise UsageError(
                f"checkpoint={self._place.path!r} holds checkpoints of another training (of a {record.model}, the "
                f"newest of {record.written}), expected a place of its own: go on with that by DeepDist.resume(path), "
                "or choose another"
            )

    def _prune(self) -> None:
        """Keep the newest; what is gone already, or cannot be removed, is left for the next time."""
        try:
            names = self._store.names()
            kept: set[str] = set()
            for index, (_, name) in enumerate(manifests(names)):
                if index >= self._place.keep:
                    self._store.remove(name)
                else:
                    kept.add(name.removesuffix(".json"))
            for name in names:
                if (match := OURS.fullmatch(name)) and (match["unfinished"] or match["stem"] not in kept):
                    self._store.remove(name)
        except Exception as error:  # noqa: BLE001 - the new one is whole all the same
            log.info("older checkpoints were not removed: %s", error)


def _release() -> str:
    try:
        return version("deepdist-p2p")
    except PackageNotFoundError:
        return "unknown"
