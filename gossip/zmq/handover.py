"""A range of updates as open files: the terms of a sum that a reader of this machine is given, and takes.

Whole arrays stay in the files in which they lie. A small term is copied to a file of its own, and says in a frame how
it is laid out, unless it is the only term.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from msgspec.structs import replace

from gossip.arrays import Packed, Payload
from gossip.errors import MismatchError, WireError
from gossip.messages import Range
from gossip.updates import check
from gossip.updates.table import Kinds
from gossip.wire import decode_header, encode_header
from gossip.zmq import same_host
from gossip.zmq.figures import Figures
from gossip.zmq.segments import LentFile, LentSum, RangeSum


@dataclass(frozen=True)
class Terms:
    """What a range is the sum of."""

    files: Sequence[LentFile]
    others: Sequence[Payload]
    """In files that are made for them."""

    @classmethod
    def of(cls, payload: Payload) -> Terms:
        """Without files where whole arrays are not all lent."""
        lent = payload.lent() if isinstance(payload, RangeSum) else None
        return cls(*lent) if lent is not None else cls((), (payload,))

    @property
    def nbytes(self) -> int:
        return sum(term.layout.nbytes for term in (*self.files, *self.others))

    @property
    def is_small(self) -> bool:
        """What has to be copied is little enough."""
        return sum(term.layout.nbytes for term in self.others) <= same_host.SMALL_BYTES

    @contextmanager
    def opened(self, message: Range) -> Iterator[list[same_host.Part]]:
        """The parts that go along with `message`; `OSError` where no file can be made."""
        parts = [same_host.Part(file.descriptor, file.offset) for file in self.files]
        copies: list[int] = []
        try:
            for term in self.others:
                copies.append(same_host.small_file(term.read(0, term.layout.nbytes)))
                frame = encode_header(replace(message, marks=(), layout=term.layout)) if self.files else b""
                parts.append(same_host.Part(copies[-1], 0, frame))
            yield parts
        finally:
            for descriptor in copies:
                os.close(descriptor)


def received(message: Range, packet: same_host.Packet, kinds: Kinds, figures: Figures) -> LentFile | LentSum:
    """The sum of the parts; those that are no whole arrays are looked at here, the sum before it is merged.

    The files of the packet are to be closed with it, those of the sum with the sum.
    """
    files: list[LentFile] = []
    others: list[Packed] = []
    for part in packet.parts:
        described = decode_header(part.frame) if part.frame else message
        if not isinstance(described, Range):
            raise WireError(f"a part of a range is a {type(described).__name__}")
        file = LentFile(described.layout, part.descriptor, part.offset)
        about = os.fstat(part.descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise WireError("what came with a range is no file")
        if about.st_size < part.offset + file.layout.nbytes:
            raise WireError(f"a file is too short for the {file.layout.nbytes} bytes that it should hold")
        os.pread(part.descriptor, 1, part.offset)  # it is open for reading
        figures.handed_in += file.layout.nbytes
        if not part.frame:
            files.append(file)
            continue
        update = Packed(file.layout, file.read(0, file.layout.nbytes))
        check(update, message.layout, kinds)
        others.append(update)
    if not files:
        raise WireError("a range of parts without the whole arrays to which they are added")
    kept: list[LentFile] = []
    try:
        kept += (file.again() for file in files)
    except OSError as error:  # no descriptor is left
        for file in kept:
            file.close()
        raise MismatchError(f"no room for another open file: {error}") from None
    return kept[0] if len(kept) == 1 and not others else LentSum(message.layout, kept, others, kinds)
