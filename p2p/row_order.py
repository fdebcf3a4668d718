"""Rows in an order that only they decide, so that every attempt at a partition cuts it into the same chunks.

Behind a shuffle, Spark may hand a task that is tried again the same rows in another order, and sometimes other rows.

    rows -> digest of the content | kind | content -> sorted, in memory and in unnamed files -> rows again
              '-> the sum of all digests -> fingerprint of the partition

The order is that of the digests. The fingerprint does not depend on the order, and goes into the number of every chunk:
attempts that saw other rows do not take each other's chunks for their own.
"""

from __future__ import annotations

import heapq
import io
import pickle
import struct
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from gossip.errors import UsageError

NUMBER_BITS = 31
"""Of a chunk within its partition. The fingerprint has as many; both together fit into a unit's chunk."""
DIGEST_BYTES = 16
RECORD_BYTES = 64
"""What a row takes in memory beside its content and digest: two objects, and their places in a list."""
TEXT, BYTES, PICKLED = b"s", b"b", b"p"
_LENGTH = struct.Struct("<Q")


def in_order(rows: Iterable[Any], memory_bytes: int, folder: str | None = None) -> tuple[Iterator[Any], int]:
    """All `rows` in the order of their contents, each made anew as it is asked for; and their fingerprint.

    What takes more than about `memory_bytes` goes to unnamed files in `folder` (None: where temporary files are).

    Raises:
        UsageError: a row cannot be pickled.
    """
    encode = _Encoder().encode
    records: list[bytes] = []
    runs: list[Iterator[bytes]] = []
    held = total = 0
    for row in rows:
        digest, content = encode(row)
        record = digest + content
        records.append(record)
        total += int.from_bytes(digest, "little")
        held += len(record) + RECORD_BYTES
        if held > memory_bytes:
            runs.append(_spilled(records, folder))
            records, held = [], 0
    runs.append(_taken(records))
    records_in_order = runs[0] if len(runs) == 1 else heapq.merge(*runs)
    fingerprint = xxh3_64_intdigest(total.to_bytes(2 * DIGEST_BYTES, "little")) >> (64 - NUMBER_BITS)
    return map(_decoded, records_in_order), fingerprint


def numbered(fingerprint: int, number: int) -> int:
    """A unit's chunk: the `number`-th of rows with this fingerprint."""
    return fingerprint << NUMBER_BITS | number


def taken_apart(chunk: int) -> tuple[int, int]:
    """(fingerprint, number) of a unit's chunk."""
    return chunk >> NUMBER_BITS, chunk & ((1 << NUMBER_BITS) - 1)


def other_rows(epoch: int, partitions: Iterable[int]) -> UsageError:
    """What the user is told when attempts at a partition got different rows."""
    which = ", ".join(map(str, sorted(partitions)))
    return UsageError(
        f"partition {which} of epoch {epoch}: Spark computed the rows again for another attempt and got different "
        "ones, expected the same rows in any order. Some of them are in the model already, and which are missing "
        "cannot be told. Rows differ where a function draws random numbers or depends on the order of its rows behind "
        "a shuffle. Write the input to files and read those, or fix it by rdd.checkpoint() and an action such as "
        "rdd.count() before train; rdd.cache() is not enough, as what an executor holds is lost with it"
    )


class _Encoder:
    """Rows as bytes that depend on nothing but their content, and that this process can read again.

    A pickle usually tells whether two equal strings in a row are one object, which is chance; the fast mode does not.
    Classes stay here: those of a notebook would be written out whole, with a name that is drawn in each process.
    """

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._pickler = _Pickler(self._buffer, pickle.HIGHEST_PROTOCOL)
        self._pickler.fast = True

    def encode(self, row: Any) -> tuple[bytes, bytes]:
        """(digest, kind and content)."""
        if type(row) is str:
            kind, content = TEXT, row.encode("utf-8", "surrogatepass")
        elif type(row) is bytes:
            kind, content = BYTES, row
        else:
            kind, content = PICKLED, self._pickled(row)
        return xxh3_128_digest(content, seed=kind[0]), kind + content

    def _pickled(self, row: Any) -> bytes:
        self._buffer.seek(0)
        self._buffer.truncate()
        try:
            self._pickler.dump(row)
        except Exception as error:
            raise UsageError(
                f"a row of type {type(row).__name__} cannot be pickled ({type(error).__name__}: {error}), expected one "
                "that can: behind a shuffle, rows are put into an order of their own before they are trained. Turn "
                "rows into numbers, text, arrays, or lists and tuples of them, or do so within gradient"
            ) from error
        return self._buffer.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return (_class, (_name(value),)) if isinstance(value, type) else NotImplemented


_classes: dict[str, type] = {}
"""Of rows, by name; they outlast their pickles."""


def _name(kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}"
    while _classes.setdefault(name, kind) is not kind:
        name += "'"
    return name


def _class(name: str) -> type:
    return _classes[name]


def _decoded(record: bytes) -> Any:
    content = memoryview(record)[DIGEST_BYTES + 1 :]
    match record[DIGEST_BYTES : DIGEST_BYTES + 1]:
        case b"s":
            return str(content, "utf-8", "surrogatepass")
        case b"b":
            return bytes(content)
        case _:
            return pickle.loads(content)


def _taken(records: list[bytes]) -> Iterator[bytes]:
    """In order; each is let go when it is taken."""
    records.sort(reverse=True)
    while records:
        yield records.pop()


def _spilled(records: list[bytes], folder: str | None) -> Iterator[bytes]:
    """The same from a file, which is written now."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed when it is read, or nobody will
    for record in _taken(records):
        file.write(_LENGTH.pack(len(record)))
        file.write(record)
    file.seek(0)
    return _read(file)


def _read(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while length := file.read(_LENGTH.size):
            yield file.read(*_LENGTH.unpack(length))
