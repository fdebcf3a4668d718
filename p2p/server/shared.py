"""Files of shared memory that processes of one host, and of one user, open by where they are.

    | header: a number of its own, version, attributes | page | bytes ... |

The kernel lets a process open what another one has open by /proc/PID/fd/N, if both are of the same user and see the
same processes. So no file has a name, and nothing is left behind, whoever is killed. Where it cannot be opened, bytes
travel.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import secrets
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from p2p.agent.replica import MADV_POPULATE_READ, MADV_POPULATE_WRITE, RESIDENT_BYTES_MAX, anonymous_file
from p2p.server.messages import Place

TOKEN = struct.Struct("<q")
VERSIONS = struct.Struct("<2q")
HEADER_BYTES = 4096


class SharedFile:
    """One of them, mapped. Readers take a shared lock and its writer an exclusive one, which end with their process."""

    def __init__(self, nbytes: int, descriptor: int | None = None) -> None:
        """Make one of so many bytes, or map the one behind `descriptor`, which is closed with it."""
        is_new = descriptor is None
        self.nbytes = nbytes
        self.descriptor = anonymous_file(HEADER_BYTES + nbytes) if descriptor is None else descriptor
        self._lock = _opened_again(self.descriptor)
        self._map = mmap.mmap(self.descriptor, HEADER_BYTES + nbytes)
        if is_new:
            TOKEN.pack_into(self._map, 0, secrets.randbits(62))

    @property
    def place(self) -> Place:
        """By which others open it."""
        return Place(os.getpid(), self.descriptor, self.token)

    @property
    def token(self) -> int:
        """No other file has it."""
        return int(TOKEN.unpack_from(self._map)[0])

    @property
    def versions(self) -> tuple[int, int]:
        """What its writer has put before the bytes."""
        first, second = VERSIONS.unpack_from(self._map, TOKEN.size)
        return first, second

    @versions.setter
    def versions(self, versions: tuple[int, int]) -> None:
        VERSIONS.pack_into(self._map, TOKEN.size, *versions)

    def view(self) -> memoryview:
        """The bytes. They stay mapped as long as an array looks at them."""
        return memoryview(self._map)[HEADER_BYTES:]

    def write(self, start: int, buffer: Any) -> None:
        """Write bytes from `start` on, without mapping them into this process's memory."""
        left = memoryview(buffer).cast("B")
        while left:
            written = os.pwrite(self.descriptor, left, HEADER_BYTES + start)
            start, left = start + written, left[written:]

    def about_to_write(self) -> None:
        """All of it: have the system map a large one at once, and not page by page."""
        self._advise(MADV_POPULATE_WRITE)

    def about_to_read(self) -> None:
        """The same."""
        self._advise(MADV_POPULATE_READ)

    def leave(self) -> None:
        """A large one counts as this process's memory no more, until it is used again."""
        self._advise(mmap.MADV_DONTNEED)

    def acquire(self) -> bool:
        """Take the writer's lock if nobody reads now; never waits."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Give the writer's lock back."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Nobody writes meanwhile. Waits for the writer, which only copies."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Unmap it where no array looks at it, and close it."""
        with suppress(BufferError):  # else the mapping goes with the arrays
            self._map.close()
        os.close(self._lock)
        os.close(self.descriptor)

    def _advise(self, advice: int) -> None:
        if self.nbytes > RESIDENT_BYTES_MAX:
            with suppress(OSError, ValueError):  # an older Linux
                self._map.madvise(advice)


def _opened_again(descriptor: int) -> int:
    """An open file of its own, so that no other user of this one holds the same lock; where the system has no /proc,
    nobody else uses it."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return os.dup(descriptor)


def open_at(place: Place, nbytes: int) -> SharedFile | None:
    """The file at `place`, which holds at least so many bytes; None if it cannot be had, or another is there now."""
    try:
        descriptor = os.open(f"/proc/{place.pid}/fd/{place.descriptor}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_size < HEADER_BYTES + nbytes:
            os.close(descriptor)
            return None
        file = SharedFile(os.fstat(descriptor).st_size - HEADER_BYTES, descriptor)
    except (OSError, ValueError):
        os.close(descriptor)
        return None
    if file.token == place.token:
        return file
    file.close()
    return None


def memory_peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
