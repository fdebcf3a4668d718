"""What training data looks like from outside, so that other data is noticed when a checkpoint is gone on with.

    a partition in memory               how many rows, and what the first and the last one begin with
    a partition of a reader of p2p.data its file's name and size, and which part of that; in an RDD as well
    an RDD of Spark                     the files that it reads, as far as it names them
    any other                           nothing: to read it would cost what its first row costs

Some partitions stand for all. Only numbers, texts and arrays are looked at, so no program makes another digest of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import xxhash

PARTITIONS_MAX = 64
"""That are looked at: they are spread evenly."""
PARTS_MAX = 16
"""Of a row, or of a part of one."""
LENGTH_MAX = 1024
"""Of a text or of the numbers of an array."""
FILES = re.compile(rb"^[ |+():0-9-]*?([^ |].*?) (?:New)?HadoopRDD\[", re.MULTILINE)
"""In the debug string of an RDD: the name of one that reads files is their path."""

Likeness = tuple[tuple[int, str], ...]
"""(partition, digest) of those that can be told; partition -1 is all of an RDD."""


def of_data(data: Any) -> Likeness:
    """Of what `train` was given."""
    if isinstance(data, list):
        return _of_list(data, _of_partition)
    if isinstance(known := getattr(data, "likenesses", None), list):
        return _of_list(known, _of_text)
    if hasattr(data, "toDebugString"):
        try:
            files = sorted(set(FILES.findall(data.toDebugString() or b"")))
        except Exception:  # noqa: BLE001 - whatever Spark says to that: nothing is known then
            return ()
        return ((-1, _digest(files)),) if files else ()
    return ()


def first_other(one: Likeness, other: Likeness) -> int | None:
    """The first partition that both tell, and otherwise; None if there is none."""
    known = dict(one)
    return next((part for part, digest in other if known.get(part, digest) != digest), None)


def _of_list(partitions: Sequence[Any], of_one: Callable[[Any], str | None]) -> Likeness:
    count = len(partitions)
    chosen = sorted({round(at * (count - 1) / (PARTITIONS_MAX - 1)) for at in range(PARTITIONS_MAX)})
    found = ((index, of_one(partitions[index])) for index in chosen)
    return tuple((index, digest) for index, digest in found if digest is not None)


def _of_partition(partition: Any) -> str | None:
    if isinstance(partition, list | tuple | np.ndarray):
        return _digest((len(partition), partition[:1], partition[-1:]))
    return _of_text(getattr(partition, "likeness", None))


def _of_text(likeness: Any) -> str | None:
    return _digest(likeness) if isinstance(likeness, str) else None


def _digest(value: Any) -> str:
    seen = xxhash.xxh3_64()
    for part in _beginning(value):
        seen.update(part)
    return seen.hexdigest()


def _beginning(value: Any) -> Iterator[bytes]:
    """What `value` begins with."""
    match value:
        case None | bool() | int() | float() | complex() | np.generic():
            yield f"number {np.asarray(value).tolist()!r} ".encode()
        case str():
            yield f"text {len(value)} ".encode() + value[:LENGTH_MAX].encode("utf-8", "surrogatepass")
        case bytes():
            yield f"bytes {len(value)} ".encode() + value[:LENGTH_MAX]
        case np.ndarray():
            yield f"array {value.shape} {value.dtype.str} ".encode()
            if not value.dtype.hasobject:
                yield np.ascontiguousarray(value.flat[:LENGTH_MAX]).tobytes()
        case list() | tuple():
            yield f"list {len(value)} ".encode()
            for part in value[:PARTS_MAX]:
                yield from _beginning(part)
        case Mapping():
            yield f"dict {len(value)} ".encode()
            for key, part in islice(value.items(), PARTS_MAX):
                yield from _beginning(key)
                yield from _beginning(part)
        case _:
            yield f"{type(value).__qualname__} ".encode()
            for name in ("shape", "nnz", "data"):  # a sparse matrix of scipy
                if isinstance(part := getattr(value, name, None), tuple | int | np.ndarray):
                    yield from _beginning(part)
