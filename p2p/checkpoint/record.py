"""What a checkpoint says of itself: its manifest, one JSON object with a checksum over everything.

    {"sha256": of the text behind "checkpoint", "checkpoint": {session, training, units, model, files with sha256, ...}}

The arrays are in a file of safetensors beside it. A manifest is written last, so what it names is there.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from gossip.arrays import Array, Arrays, Bytes
from gossip.fields import Count, Name, Shape
from gossip.marks import Chunks, Counted, Series

FORMAT = "deepdist checkpoint"
VERSION = 1
"""Of the manifest. Others are refused: what a unit of work means may have changed."""
DTYPES = {
    "|b1": "BOOL",
    "|i1": "I8",
    "|u1": "U8",
    "<i2": "I16",
    "<u2": "U16",
    "<f2": "F16",
    "<i4": "I32",
    "<u4": "U32",
    "<f4": "F32",
    "<i8": "I64",
    "<u8": "U64",
    "<f8": "F64",
}
"""Of numpy, and as safetensors has them (https://github.com/huggingface/safetensors, "Format")."""
ALIGNMENT = 8
HEAD = struct.Struct("<Q")

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class DamagedError(Exception):
    """What was read is no checkpoint of ours, or not all of one; the text says what is the matter."""


class Fields(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a manifest."""


class SessionRecord(Fields, frozen=True, kw_only=True):
    """Of the session: what a resumed one has to have as well."""

    mode: str
    discipline: str
    mixing: str | None
    """The strategy, in words."""
    codec: str | None
    """By name; in words where it is the user's own."""
    seed: int
    parameters: tuple[str, ...] | None


class TrainingRecord(Fields, frozen=True, kw_only=True):
    """Of the call of `train`: what units of work mean."""

    epochs: Count
    epochs_before: Count
    """Of earlier trainings of the session."""
    partitions: Count
    chunk_rows: Count | None
    combine: str | None
    exchange: str
    exchange_s: float
    counters: Mapping[str, tuple[float, ...]]
    """The model's counters when the training began."""
    data: tuple[tuple[int, str], ...] = ()
    """What it looks like, see `p2p.checkpoint.likeness`."""


class ArrayRecord(Fields, frozen=True, kw_only=True):
    """An array that is trained."""

    name: Name
    dtype: str
    shape: Shape


class UnitsRecord(Fields, frozen=True, kw_only=True):
    """The units of work that count in the arrays."""

    closed: Count
    """All of earlier epochs,"""
    count: Count
    """so many in all,"""
    chunks: tuple[tuple[Count, Count, tuple[tuple[Count, Count, Count], ...]], ...]
    """and of these epochs and partitions these: runs of the first chunk, the last one, and the step."""


class ProgressRecord(Fields, frozen=True, kw_only=True):
    """Where the training stood."""

    seconds: float
    updates: Count
    partitions_done: Count
    partitions: Count
    ended: str | None
    """Why it had ended, as in `Report.ended`; None while it ran."""


class FileRecord(Fields, frozen=True, kw_only=True):
    """A file beside the manifest."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}$")]
    nbytes: Count
    sha256: Sha256


class Record(Fields, frozen=True, kw_only=True):
    """All of it."""

    format: str
    version: int
    library: str
    """The release that wrote it."""
    written: str
    """When, by ISO 8601."""
    lineage: str
    """The same for all checkpoints of a session, and of those that went on with it."""
    number: Count
    """It grows from one checkpoint of a lineage to the next."""
    session: SessionRecord
    training: TrainingRecord
    progress: ProgressRecord
    units: UnitsRecord
    arrays: tuple[ArrayRecord, ...]
    meaning: str = ""
    """What the rows of arrays stand for, as the model's adapter says."""
    plain: Any = None
    """The model without its arrays, see `p2p.checkpoint.plain`; None where it is pickled."""
    model: str
    """What kind it is of, for people."""
    tensors: FileRecord
    pickled: FileRecord | None = None
    """The model without its arrays, where it is not plain."""


class _Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    sha256: Sha256
    checkpoint: msgspec.Raw


class _Versioned(Struct, frozen=True):
    format: str
    version: int


def encoded(record: Record) -> bytes:
    """The manifest's text."""
    body = msgspec.json.encode(record)
    return msgspec.json.encode(_Manifest(hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))


def decoded(text: bytes) -> Record:
    """And back; `DamagedError` for what is none, has another checksum or version, or contradicts itself."""
    try:
        manifest = msgspec.json.decode(text, type=_Manifest)
        if hashlib.sha256(bytes(manifest.checkpoint)).hexdigest() != manifest.sha256:
            raise DamagedError("its manifest is not as it was written: the checksum differs")
        versioned = msgspec.json.decode(manifest.checkpoint, type=_Versioned)
        if versioned.format != FORMAT:
            raise DamagedError(f"its format is {versioned.format!r:.40}, expected {FORMAT!r}")
        if versioned.version != VERSION:
            raise DamagedError(
                f"it has version {versioned.version}, expected {VERSION}: resume it by the release that wrote it"
            )
        record = msgspec.json.decode(manifest.checkpoint, type=Record)
        counted(record)
        return record
    except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors
        raise DamagedError(f"its manifest is malformed: {error}") from None


def units(counted: Counted) -> UnitsRecord:
    """As a manifest has them."""
    chunks = tuple((each.epoch, each.partition, tuple(Chunks(each.runs).each())) for each in counted.series)
    return UnitsRecord(closed=counted.closed, count=counted.units, chunks=chunks)


def counted(record: Record) -> Counted:
    """And back; `DamagedError` where runs are not of chunks that go up."""
    series, before = [], (-1, -1)
    for epoch, partition, runs in record.units.chunks:
        end = -1
        for first, last, step in runs:
            if not (end < first <= last and step >= 1 and (last - first) % step == 0 and (first < last or step == 1)):
                raise DamagedError(f"units of partition {partition}, epoch {epoch}, are not chunks that go up")
            end = last
        if (epoch, partition) <= before or end < 0 or epoch < record.units.closed:
            raise DamagedError("units of partitions are out of order, or there twice")
        before = epoch, partition
        flat = np.array(runs, np.int64).tobytes()
        series.append(Series(epoch, partition, 0, False, flat))
    return Counted(record.units.closed, record.units.count, tuple(series))


def of_training(record: Record) -> int:
    """Units of the checkpoint's training that count in it."""
    return sum(series.size for series in counted(record).series)


# ------------------------------------------------------------------------------------------------------ safetensors


def tensors(arrays: Arrays) -> Iterator[Bytes]:
    """A file of safetensors, in blocks: none is copied but what does not lie in one piece."""
    head, start = {}, 0
    for name, array in arrays.items():
        head[name] = {
            "dtype": DTYPES[array.dtype.str],
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    text = msgspec.json.encode(head)
    text += b" " * (-len(text) % ALIGNMENT)
    yield HEAD.pack(len(text)) + text
    for array in arrays.values():
        if array.nbytes:
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read_tensors(data: bytes) -> dict[str, Array]:
    """The arrays of such a file, as it is checked by the library of that name; `DamagedError` if it is none."""
    import safetensors

    deserialize: Any = safetensors.deserialize
    try:
        found = deserialize(data)
    except (safetensors.SafetensorError, ValueError, MemoryError) as error:
        raise DamagedError(f"its arrays are no safetensors: {error}") from None
    kinds = {name: dtype for dtype, name in DTYPES.items()}
    arrays: dict[str, Array] = {}
    for name, tensor in found:
        if tensor["dtype"] not in kinds:
            raise DamagedError(f"its array {name!r:.80} has dtype {tensor['dtype']!r:.20}")
        flat = np.frombuffer(tensor["data"], kinds[tensor["dtype"]])
        if flat.size != math.prod(tensor["shape"]):
            raise DamagedError(f"its array {name!r:.80} has {flat.size} numbers, expected {tensor['shape']}")
        arrays[name] = flat.reshape(tensor["shape"])
    return arrays


def check_arrays(record: Record, arrays: Arrays) -> None:
    """Raise `DamagedError` if those are not there that the manifest names."""
    for spec in record.arrays:
        array = arrays.get(spec.name)
        if array is None or array.dtype.str != spec.dtype or array.shape != spec.shape:
            raise DamagedError(f"its array {spec.name!r:.80} is not there, or not as its manifest says")
