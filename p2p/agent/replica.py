"""The replica: one model's arrays in memory that the agent and the tasks of an executor share.

The agent creates it, merges into it in place and is its only writer; tasks attach and copy consistent snapshots. The
memory is a file without a name, in /dev/shm where there is room and else in the temporary folder: the descriptor is
handed over the agent's local socket, so there is nothing to clean up and nothing is left behind, whoever is killed.

    | header: updates merged so far | page | packed arrays ... | which rows updates have changed |

Readers take a shared lock on the file and the writer an exclusive one; the system releases both when a process dies.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gossip.arrays import Array, Bytes, Layout, Payload
from gossip.errors import UsageError, ran_out_of_files
from gossip.updates import KINDS, merge
from gossip.updates.stamps import RowStamps, stamps_bytes
from gossip.updates.table import Kinds
from gossip.wire import BLOCK_BYTES
from p2p import open_files

HEADER_BYTES = 4096
STAMPS_ALIGNMENT = 64
SHARED_MEMORY = "/dev/shm"
SHARED_MEMORY_SPARE_BYTES = 16 << 20
"""Left free for others: in containers all of it may be 64 MB."""
RESIDENT_BYTES_MAX = 1 << 26
"""A larger replica or update is unmapped between two uses. To map it again takes 0.4 ms a MB, where all of an exchange
takes 5."""
MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23
"""Of Linux 5.14 (madvise(2)); Python has no names for them."""


def anonymous_file(nbytes: int) -> int:
    """A descriptor of an unnamed file of `nbytes` zero bytes, in shared memory if it has room, else on disk."""
    directories: list[str] = []
    if os.path.isdir(SHARED_MEMORY):
        free = os.statvfs(SHARED_MEMORY)
        if free.f_bavail * free.f_frsize >= nbytes + SHARED_MEMORY_SPARE_BYTES:
            directories.append(SHARED_MEMORY)
    directories.append(tempfile.gettempdir())
    for directory in directories:
        try:
            with tempfile.TemporaryFile(dir=directory) as file:
                descriptor = os.dup(file.fileno())
        except OSError as error:
            if ran_out_of_files(error):
                raise UsageError(open_files.words("no file for shared memory")) from None
            continue
        try:
            if hasattr(os, "posix_fallocate") and nbytes:
                os.posix_fallocate(descriptor, 0, nbytes)  # a page that cannot be had is an error here, not a SIGBUS
            else:
                os.ftruncate(descriptor, nbytes)
            return descriptor
        except OSError:
            os.close(descriptor)
    raise UsageError(
        f"no room for {nbytes} bytes of shared memory in {' or '.join(directories)}: free some or set TMPDIR"
    )


def shortage(nbytes: int) -> str | None:
    """What to tell the user if shared memory has no room for a replica of `nbytes` and an update; None if it has."""
    if not os.path.isdir(SHARED_MEMORY):
        return None
    found = os.statvfs(SHARED_MEMORY)
    free, wanted = found.f_bavail * found.f_frsize, 2 * (HEADER_BYTES + nbytes) + SHARED_MEMORY_SPARE_BYTES
    if free >= wanted:
        return None
    return (
        f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, expected {wanted / 1e6:.0f} MB for the replica and an update: "
        f"what does not fit lies in {tempfile.gettempdir()}, which is slower. Give it more room (docker run "
        f"--shm-size={math.ceil(wanted / 1e9)}g; for Kubernetes, an emptyDir with medium: Memory at {SHARED_MEMORY})"
    )


def _own_lock(descriptor: int) -> tuple[int, Callable[[int, int], object]]:
    """(descriptor, how to lock by it), such that no other user of the file holds the same lock.

    A descriptor that was handed over shares its open file, and thereby its lock, with the one who gave it. On Linux the
    file is opened once more. Elsewhere the lock is one of the process: not shared, but one for all its users.
    """
    try:
        mine = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return descriptor, fcntl.lockf
    os.close(descriptor)
    return mine, fcntl.flock


class Replica:
    """A mapped replica. `descriptor` stays open as long as this object is used."""

    def __init__(self, layout: Layout, descriptor: int | None = None, kinds: Kinds = KINDS) -> None:
        """Create one of zeros, or attach to the one behind `descriptor`; `kinds`: of updates that are merged."""
        self.layout = layout
        self.kinds = kinds
        stamps_at = -(-(HEADER_BYTES + layout.nbytes) // STAMPS_ALIGNMENT) * STAMPS_ALIGNMENT
        nbytes = stamps_at + stamps_bytes(layout)
        descriptor = anonymous_file(nbytes) if descriptor is None else descriptor
        self.descriptor, self._lock = _own_lock(descriptor)
        self._readers = 0
        self._readers_changing = threading.Lock()
        self._map = mmap.mmap(self.descriptor, nbytes)
        self.buffer: Any = memoryview(self._map)[HEADER_BYTES : HEADER_BYTES + layout.nbytes]
        self.stamps = RowStamps(layout, memoryview(self._map)[stamps_at:])

    @property
    def merged(self) -> int:
        """Updates merged so far, of all lanes."""
        return int(struct.unpack_from("<q", self._map)[0])

    @merged.setter
    def merged(self, count: int) -> None:
        struct.pack_into("<q", self._map, 0, count)

    def arrays(self) -> dict[str, Array]:
        """The named arrays as views; to be read under `reading`, or by nobody else."""
        return self.layout.views(self.buffer)

    def read(self, start: int, stop: int) -> Bytes:
        """A copy of packed bytes [start, stop)."""
        return bytes(self.buffer[start:stop])

    def add(self, payload: Payload) -> None:
        """Merge an update in place. The caller holds the writer's lock."""
        merge(self.layout, self.buffer, self.stamps, payload, self.kinds)

    def replace(self, payload: Payload) -> None:
        """Take over a payload of this layout, block by block. The caller holds the writer's lock."""
        for start in range(0, self.layout.nbytes, BLOCK_BYTES):
            stop = min(start + BLOCK_BYTES, self.layout.nbytes)
            self.buffer[start:stop] = payload.read(start, stop)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Nobody merges meanwhile. Waits for the writer, which never holds it for longer than one merge."""
        with self._readers_changing:
            if self._readers == 0:
                self._lock(self.descriptor, fcntl.LOCK_SH)
                self.enter(MADV_POPULATE_READ)
            self._readers += 1
        try:
            yield
        finally:
            with self._readers_changing:
                self._readers -= 1
                if self._readers == 0:
                    self.leave()
                    self._lock(self.descriptor, fcntl.LOCK_UN)

    def enter(self, advice: int = MADV_POPULATE_WRITE) -> None:
        """All of it is about to be written, or read: have the system map a large one at once, and not page by page."""
        if self.layout.nbytes > RESIDENT_BYTES_MAX:
            with suppress(OSError, ValueError, AttributeError):  # an older Linux, or none
                self._map.madvise(advice)

    def leave(self) -> None:
        """Whoever looked at all of it is done: a large one stays in its file, and counts as this process's no more."""
        if self.layout.nbytes > RESIDENT_BYTES_MAX:
            with suppress(OSError, ValueError, AttributeError):
                self._map.madvise(mmap.MADV_DONTNEED)

    def acquire(self) -> bool:
        """Take the writer's lock if nobody reads now; never waits."""
        try:
            self._lock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Give the writer's lock back."""
        self._lock(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Unmap where no view is left, and close the descriptor."""
        del self.stamps  # its views
        try:
            self.buffer.release()
            self._map.close()
        except BufferError:
            pass  # somebody still looks at a view: the mapping goes with it
        os.close(self.descriptor)
