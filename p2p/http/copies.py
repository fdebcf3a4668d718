"""The model as it is sent: bytes of safetensors of one moment, made when somebody asks and something has changed.

A copy is shared by all who are sent it, and its memory is used again when nobody is. There are at most `COPIES_MAX`:
where slow readers hold them all, the newest is sent once more, and its version says which it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import xxhash

from gossip.arrays import Array
from p2p.http.tensors import blank

COPIES_MAX = 3
"""One that is sent, one that slower readers still take, and one that is made."""

Look = Callable[[], AbstractContextManager[tuple[int, Mapping[str, Array]]]]
"""(version, arrays) of one moment, to be read within."""


@dataclass(eq=False)
class Copy:
    """The model of one moment."""

    buffer: bytearray
    arrays: Mapping[str, Array]
    """Views of it."""
    version: int = -1
    training: int | None = None
    """In which it was made; None if nobody knows how long it is what the model is."""
    digest: int = 0
    readers: int = 0
    """Who is being sent it."""

    @property
    def etag(self) -> str:
        """The same for the same numbers."""
        return f'"{self.digest:032x}"'

    def fill(self, version: int, arrays: Mapping[str, Array]) -> None:
        """Take over these numbers."""
        for name, view in self.arrays.items():
            np.copyto(view, arrays[name])
        self.version = version
        self.digest = xxhash.xxh3_128_intdigest(self.buffer)


class Copies:
    """Those of one model. From any thread."""

    def __init__(self, like: Mapping[str, Array]) -> None:
        self._like = like
        self._copies: list[Copy] = []
        self._newest: Copy | None = None
        self._lock = threading.Lock()

    def current(self, look: Look, moment: tuple[int, int] | None) -> Copy:
        """The model as it is now, to be given back by `release`.

        `moment`: the training, and the version that `look` would tell; None where one version may have many numbers.
        """
        with self._lock:
            newest = self._newest
            if newest is None or moment is None or (newest.training, newest.version) != moment:
                newest = self._made(look, newest)
                newest.training = None if moment is None else moment[0]
            newest.readers += 1
            return newest

    def _made(self, look: Look, newest: Copy | None) -> Copy:
        free = next((copy for copy in self._copies if not copy.readers), None)
        if free is None:
            if newest is not None and len(self._copies) >= COPIES_MAX:
                return newest
            free = Copy(*blank(self._like))
            self._copies.append(free)
        with look() as (version, arrays):
            self._newest = None  # it may be what is written now
            free.fill(version, arrays)
        self._newest = free
        return free

    def release(self, copy: Copy) -> None:
        """It was sent, or could not be."""
        with self._lock:
            copy.readers -= 1
