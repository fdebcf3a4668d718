"""Copies of the master's model in shared memory, for workers of this host to read while `descent` changes the model.

    publish: model -> a file that nobody reads now -> it is the current one         a worker: lock, copy, unlock

There are as many files as are read at once, mostly two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gossip.arrays import Array, Arrays, Layout, Packed
from gossip.errors import MismatchError
from p2p.server.shared import SharedFile

FILES_KEPT = 3
"""While no more of them are read at once."""
FILES_MAX = 6
"""So many that are locked by readers, who stand still then, are waited for no more."""
PINNED_MAX = 2
"""Files that are read in pieces; further readers get the newest of these."""
PIECE_BYTES = 1 << 18
"""Looked at for numbers that are none, and copied while it is in a cache."""


@dataclass(eq=False)
class Snapshot:
    """One copy of the model."""

    file: SharedFile
    arrays: Layout
    version: int = -1
    """Updates of the session that are in it."""
    attributes: Layout | None = None
    """Of what it has behind the arrays,"""
    attributes_version: int = 0
    """and the version of that."""
    readers: int = 0
    """Who read it in pieces: nobody writes to it meanwhile."""

    @property
    def nbytes(self) -> int:
        """Of the arrays, and the attributes behind them."""
        return self.arrays.nbytes + (0 if self.attributes is None else self.attributes.nbytes)

    def views(self) -> Arrays:
        """The arrays, where they lie."""
        return self.arrays.views(self.file.view())

    def read(self, start: int, stop: int) -> bytes:
        """A copy of bytes [start, stop)."""
        with self.file.view() as view:
            return bytes(view[start:stop])


class Snapshots:
    """Those of one model."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._all: list[Snapshot] = []
        """The current one first."""
        self._lock = threading.Lock()
        """Held while these, or who reads them, change."""

    @property
    def current(self) -> Snapshot:
        """The one that was published last."""
        with self._lock:
            return self._all[0]

    def publish(self, arrays: Arrays, version: int, attributes: Packed | None, attributes_version: int) -> None:
        """Copy the model's arrays, and what else workers are to have.

        Raises:
            MismatchError: a number is a NaN or an infinity. The current one stays.
        """
        with self._lock:
            new = self._free(self.layout.nbytes + (0 if attributes is None else attributes.layout.nbytes))
        try:
            for spec, offset in zip(self.layout.specs, self.layout.offsets, strict=True):
                _write(new.file, offset, spec.name, arrays[spec.name])
            if attributes is not None:
                new.file.write(self.layout.nbytes, attributes.buffer)
            new.file.versions = version, attributes_version
        finally:
            new.file.release()
        new.version, new.attributes_version = version, attributes_version
        new.attributes = None if attributes is None else attributes.layout
        with self._lock:
            self._all.remove(new)
            self._all.insert(0, new)

    def restore(self, load: Callable[[Arrays], object]) -> None:
        """`load` gets the arrays of the current one."""
        with self.current.file.view() as view:
            load(self.layout.views(view))

    def compare(self, arrays: Arrays, told: Callable[[Arrays], object]) -> None:
        """`told` gets for each array which numbers are others than in the current one."""
        with self.current.file.view() as view:
            changed = {name: array != arrays[name] for name, array in self.layout.views(view).items()}
        told(changed)

    def holds(self, arrays: Arrays) -> bool:
        """Whether the current one has these numbers, or there is none yet."""
        if not self._all:
            return True
        with self.current.file.view() as view:
            return all(np.array_equal(each, arrays[name]) for name, each in self.layout.views(view).items())

    def pin(self) -> Snapshot:
        """One to read in pieces, to which nobody writes until it is given back by `unpin`."""
        with self._lock:
            pinned = [one for one in self._all if one.readers]
            one = self._all[0] if len(pinned) < PINNED_MAX else pinned[0]
            one.readers += 1
            return one

    def unpin(self, one: Snapshot) -> None:
        """It is given back."""
        with self._lock:
            one.readers -= 1

    def close(self) -> None:
        """Nobody reads any more."""
        for one in self._all:
            one.file.close()
        self._all.clear()

    def _free(self, nbytes: int) -> Snapshot:
        """One that nobody reads, with the writer's lock taken."""
        free = [one for one in self._all[1:] if not one.readers and one.file.acquire()]
        chosen = next((one for one in reversed(free) if one.file.nbytes >= nbytes), None)
        for one in free:
            if one is chosen:
                continue
            if one.file.nbytes < nbytes or len(self._all) > FILES_KEPT:
                self._all.remove(one)
                one.file.close()
            else:
                one.file.release()
        if chosen is not None:
            return chosen
        if len(self._all) > FILES_MAX:  # a reader that stands still keeps the file, and nobody else will have it
            still = next(one for one in reversed(self._all) if not one.readers)
            self._all.remove(still)
            still.file.close()
        new = Snapshot(SharedFile(nbytes), self.layout)
        new.file.acquire()
        self._all.append(new)
        return new


def _write(file: SharedFile, offset: int, name: str, array: Array) -> None:
    """Write, and look whether all numbers are numbers."""
    flat = np.ascontiguousarray(array).reshape(-1)
    step = max(1, PIECE_BYTES // flat.itemsize)
    for start in range(0, flat.size, step):
        piece = flat[start : start + step]
        if flat.dtype.kind == "f":
            _check(name, piece, flat)
        file.write(offset + start * flat.itemsize, piece.data)


def _check(name: str, piece: Array, array: Array) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(piece, piece)) or np.isfinite(piece).all():
            return
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    raise MismatchError(f"{name!r}: {bad} of {array.size} numbers are NaN or infinite, expected none")
