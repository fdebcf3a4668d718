"""Codecs: an array in, fewer bytes out, and an array again that is like the first.

    Float16()  Int8()            fewer bits for each number
    TopK(f)  RandomK(f)          fewer numbers, the others count as zero
    Threshold(t)  Sign()         one bit for each number that is sent
    Rows()                       the rows of a 2-d array that are not all zero; nothing is lost
    Chain(Rows(), Int8())        the second makes the values of the first smaller

The rest that a codec leaves out is not lost if it is added to the next array: `with_feedback` keeps it as a residual,
so that

    sum of what was sent  +  residual  =  sum of what was produced

exactly wherever the numbers leave room for it: no codec here scales by anything that fills the mantissa.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossip.arrays import Array
from gossip.errors import MismatchError, UsageError
from gossip.literal import Literal

Integers = NDArray[np.int64]

FLOAT16_TOP = 2.0**15
"""The largest number is scaled to at most this: a power of two below the largest finite float16, 65504."""

INT8_TOP = 127.0
"""The same of int8, where -128 is left unused."""

SCALE_BITS = 11
"""Mantissa bits of the scale that `Sign` sends, as many as float16 has: leaves room for exact residuals."""


@dataclass(frozen=True)
class Encoded:
    """What is sent of an array. Its shape and dtype are known at both ends and not counted."""

    parts: Mapping[str, Array]
    """Arrays of the dtypes that `gossip.arrays` lets travel."""
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.nbytes for part in self.parts.values())


class Codec(Literal, ABC):
    """Makes float arrays smaller. A value without state; what chance it needs is passed in."""

    @abstractmethod
    def encode(self, array: Array, chance: np.random.Generator) -> Encoded:
        """What is to be sent of `array`, which is of floats and of any shape.

        Raises:
            UsageError: it holds a NaN or an infinity, or is not of floats.
        """

    @abstractmethod
    def decode(self, encoded: Encoded) -> Array:
        """An array of the shape and dtype of the one that was encoded.

        Raises:
            MismatchError: these are not the parts of such an array.
        """

    @abstractmethod
    def contraction(self, size: int) -> float:
        """delta in |x - decoded|^2 <= (1 - delta) |x|^2 for any x of `size` numbers; 0 where there is none."""

    def typical(self, size: int) -> float:
        """delta as it is where the numbers are not chosen to be the worst: Choco's step."""
        return self.contraction(size)

    def rows(self, x: Array, chance: np.random.Generator) -> tuple[Array, Integers]:
        """(what each row of `x`, (peers, parameters), is after encoding and decoding; bytes of each, (peers,))."""
        decoded, nbytes = np.empty_like(x), np.zeros(len(x), np.int64)
        for at, row in enumerate(x):
            encoded = self.encode(row, chance)
            decoded[at] = self.decode(encoded)
            nbytes[at] = encoded.nbytes
        return decoded, nbytes


def with_feedback(
    codec: Codec, residual: Array, produced: Array, chance: np.random.Generator
) -> tuple[Encoded, Array, Array]:
    """(what to send, what the others will make of it, the new residual) of `produced` and what was left before."""
    whole = residual + produced
    encoded = codec.encode(whole, chance)
    sent = codec.decode(encoded)
    return encoded, sent, whole - sent


def _each(x: Array, nbytes: int) -> Integers:
    return np.full(len(x), nbytes, np.int64)


def _checked(array: Array) -> Array:
    if array.dtype.kind != "f":
        raise UsageError(f"dtype {array.dtype} to compress, expected floats")
    if not np.isfinite(array).all():
        raise UsageError(f"{int(np.count_nonzero(~np.isfinite(array)))} of {array.size} numbers are NaN or infinite")
    return array


def _part(encoded: Encoded, name: str, size: int | None = None) -> Array:
    part = encoded.parts.get(name)
    if part is None:
        raise MismatchError(f"part {name!r} is missing, expected it beside {sorted(encoded.parts)}")
    if size is not None and part.size != size:
        raise MismatchError(f"part {name!r} holds {part.size} numbers, expected {size}")
    return part


def _size(encoded: Encoded) -> int:
    return math.prod(encoded.shape)


def _index(encoded: Encoded, below: int) -> Array:
    index = _part(encoded, "index")
    if index.dtype.kind != "u" or (index.size and int(index.max()) >= below):
        raise MismatchError(f"part 'index' of {index.dtype} reaches beyond {below}, expected places in the array")
    return index


def _index_dtype(count: int) -> type[np.unsignedinteger]:
    return np.uint16 if count <= 1 << 16 else np.uint32


@dataclass(frozen=True, repr=False)
class Float16(Codec):
    """Each number in 16 bits, 11 of precision, times a power of two chosen for the largest one.

    So nothing overflows, and what is 2^29 times smaller than the largest still has all its bits.
    """

    def encode(self, array: Array, chance: np.random.Generator) -> Encoded:
        scale = _binary(_checked(array).reshape(1, -1), FLOAT16_TOP)[0]
        values = (array.reshape(-1) / scale).astype(np.float16)
        return Encoded({"values": values, "scale": scale.astype(np.float32)}, array.shape, array.dtype)

    def decode(self, encoded: Encoded) -> Array:
        return _scaled(encoded)

    def contraction(self, size: int) -> float:
        # Half a unit in the last place of each, and what is too small for float16, far below the largest.
        return max(0.0, 1.0 - 2.0**-22 - size * 2.0**-78)

    def rows(self, x: Array, chance: np.random.Generator) -> tuple[Array, Integers]:
        scales = _binary(_checked(x), FLOAT16_TOP)
        return ((x / scales).astype(np.float16) * scales).astype(x.dtype), _each(x, 2 * x.shape[1] + 4)


@dataclass(frozen=True, repr=False)
class Int8(Codec):
    """Each number as a multiple, from -127 to 127, of a power of two chosen for the largest one."""

    def encode(self, array: Array, chance: np.random.Generator) -> Encoded:
        scale = _binary(_checked(array).reshape(1, -1), INT8_TOP)[0]
        values = np.rint(array.reshape(-1) / scale).astype(np.int8)
        return Encoded({"values": values, "scale": scale.astype(np.float32)}, array.shape, array.dtype)

    def decode(self, encoded: Encoded) -> Array:
        return _scaled(encoded)

    def contraction(self, size: int) -> float:
        # An error is at most half a step, the largest number more than 63 of them.
        return max(0.0, 1.0 - size / (4.0 * 63.0**2))

    def typical(self, size: int) -> float:
        # Steps are up to 1/63.5 of the largest number, errors even within one; the largest of so many normal numbers.
        return 1.0 - max(1.0, 2.0 * math.log(size)) / (12.0 * 63.5**2)

    def rows(self, x: Array, chance: np.random.Generator) -> tuple[Array, Integers]:
        steps = _binary(_checked(x), INT8_TOP)
        return (np.rint(x / steps) * steps).astype(x.dtype, copy=False), _each(x, x.shape[1] + 4)


def _binary(x: Array, top: float) -> Array:
    """(rows, 1): the smallest power of two of which `top` reach the largest number of each row; 1 for zeros."""
    largest = np.max(np.abs(x), axis=1, keepdims=True, initial=0.0).astype(np.float64)
    if largest.max(initial=0.0) > top * 2.0**127:
        raise UsageError(f"a number of {largest.max():.3g} to compress, expected at most {top * 2.0**127:.3g}")
    exponents = np.ceil(np.log2(np.where(largest > 0.0, largest, top) / top))
    scale: Array = np.exp2(np.maximum(exponents, -126.0))  # the smallest that float32 holds with all its bits
    return scale


def _scaled(encoded: Encoded) -> Array:
    """Values times scale."""
    values, scale = _part(encoded, "values", _size(encoded)), _part(encoded, "scale", 1)
    return (values * scale.astype(np.float64)).astype(encoded.dtype).reshape(encoded.shape)


class _Sparse(Codec):
    """Some of the numbers, and where they stood."""

    fraction: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.fraction <= 1.0:
            raise UsageError(f"{type(self).__name__} of the fraction {self.fraction}, expected more than 0, at most 1")

    def count(self, size: int) -> int:
        """How many of `size` numbers are sent: at least one."""
        return min(size, max(1, math.ceil(self.fraction * size)))

    @abstractmethod
    def _choose(self, x: Array, count: int, chance: np.random.Generator) -> Array:
        """(rows, count) places of each row of `x`, ascending."""

    def encode(self, array: Array, chance: np.random.Generator) -> Encoded:
        flat = _checked(array).reshape(-1)
        index = self._choose(flat[None, :], self.count(flat.size), chance)[0] if flat.size else np.zeros(0, int)
        parts = {"index": index.astype(_index_dtype(flat.size)), "values": flat[index]}
        return Encoded(parts, array.shape, array.dtype)

    def decode(self, encoded: Encoded) -> Array:
        flat = np.zeros(_size(encoded), encoded.dtype)
        index = _index(encoded, flat.size)
        flat[index] = _part(encoded, "values", index.size)
        return flat.reshape(encoded.shape)

    def contraction(self, size: int) -> float:
        return self.count(size) / size

    def rows(self, x: Array, chance: np.random.Generator) -> tuple[Array, Integers]:
        index = self._choose(_checked(x), self.count(x.shape[1]), chance)
        decoded = np.zeros_like(x)
        np.put_along_axis(decoded, index, np.take_along_axis(x, index, axis=1), axis=1)
        each = index.shape[1] * (x.itemsize + np.dtype(_index_dtype(x.shape[1])).itemsize)
        return decoded, _each(x, each)


@dataclass(frozen=True, repr=False)
class TopK(_Sparse):
    """The largest numbers by magnitude. Source: Aji and Heafield, arXiv:1704.05021."""

    fraction: float
    """Share of the numbers that is sent."""

    def _choose(self, x: Array, count: int, chance: np.random.Generator) -> Array:
        cut = x.shape[1] - count
        return np.sort(np.argpartition(np.abs(x), cut, axis=1)[:, cut:], axis=1)


@dataclass(frozen=True, repr=False)
class RandomK(_Sparse):
    """Numbers drawn at random, not scaled up: a contraction in expectation, as residuals and CHOCO want it."""

    fraction: float
    """Share of the numbers that is sent."""

    def _choose(self, x: Array, count: int, chance: np.random.Generator) -> Array:
        draws = chance.random(x.shape)
        return np.sort(np.argpartition(draws, count - 1, axis=1)[:, :count], axis=1)


@dataclass(frozen=True, repr=False)
class Threshold(Codec):
    """plus or minus t for each number that reaches t, nothing for the others; needs a residual to be of use.

    Source: Strom, Scalable distributed DNN training using commodity GPU cloud computing, 2015.
    """

    threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold <= 0.0:
            raise UsageError(f"threshold {self.threshold}, expected more than 0")

    def encode(self, array: Array, chance: np.random.Generator) -> Encoded:
        flat = _checked(array).reshape(-1)
        index = np.flatnonzero(np.abs(flat) >= self.threshold)
        parts = {"index": index.astype(_index_dtype(flat.size)), "signs": np.packbits(flat[index] > 0.0)}
        return Encoded(parts, array.shape, array.dtype)

    def decode(self, encoded: Encoded) -> Array:
        flat = np.zeros(_size(encoded), encoded.dtype)
        index = _index(encoded, flat.size)
        signs = np.unpackbits(_part(encoded, "signs", -(-index.size // 8)), count=index.size)
        flat[index] = np.where(signs, self.threshold, -self.threshold)
        return flat.reshape(encoded.shape)

    def contraction(self, size: int) -> float:
        return 0.0


@dataclass(frozen=True, repr=False)
class Sign(Codec):
    """One bit for each number, and the mean magnitude of all. Source: Karimireddy et al., arXiv:1901.09847."""

    def encode(self, array: Array, chance: np.random.Generator) -> Encoded:
        flat = _checked(array).reshape(-1)
        scale = _short(np.abs(flat).mean(dtype=np.float64, keepdims=True)) if flat.size else np.zeros(1)
        return Encoded({"signs": np.packbits(flat >= 0.0), "scale": scale.astype(np.float32)}, array.shape, array.dtype)

    def decode(self, encoded: Encoded) -> Array:
        size = _size(encoded)
        signs = np.unpackbits(_part(encoded, "signs", -(-size // 8)), count=size)
        scale = _part(encoded, "scale", 1).astype(encoded.dtype)
        return np.where(signs, scale, -scale).reshape(encoded.shape)

    def contraction(self, size: int) -> float:
        # |x|_1^2 / (size |x|^2) is at least 1 / size; the scale is short of the mean by less than 2^-10 of it.
        return (1.0 - 2.0 ** (2 - 2 * SCALE_BITS)) / size

    def typical(self, size: int) -> float:
        # |x|_1^2 / (size |x|^2) of normal numbers, and more where they are more alike.
        return 2.0 / math.pi

    def rows(self, x: Array, chance: np.random.Generator) -> tuple[Array, Integers]:
        scale = _short(np.abs(_checked(x)).mean(axis=1, dtype=np.float64, keepdims=True)).astype(np.float32)
        return np.where(x >= 0.0, scale, -scale).astype(x.dtype), _each(x, -(-x.shape[1] // 8) + 4)


def _short(scale: Array) -> Array:
    """Rounded down to `SCALE_BITS` bits."""
    mantissa, exponent = np.frexp(scale)
    short: Array = np.ldexp(np.floor(np.ldexp(mantissa, SCALE_BITS)), exponent - SCALE_BITS)
    return short


@dataclass(frozen=True, repr=False)
class Rows(Codec):
    """The rows of a 2-d array that are not all zero: an embedding of which few words were seen. Nothing is lost."""

    def encode(self, array: Array, chance: np.random.Generator) -> Encoded:
        if array.ndim != 2:
            raise UsageError(f"Rows() of an array of shape {array.shape}, expected (rows, columns)")
        index = np.flatnonzero(_checked(array).any(axis=1))
        parts = {"index": index.astype(_index_dtype(len(array))), "values": array[index].reshape(-1)}
        return Encoded(parts, array.shape, array.dtype)

    def decode(self, encoded: Encoded) -> Array:
        array = np.zeros(encoded.shape, encoded.dtype)
        index = _index(encoded, len(array))
        array[index] = _part(encoded, "values", index.size * array.shape[1]).reshape(-1, array.shape[1])
        return array

    def contraction(self, size: int) -> float:
        return 1.0


@dataclass(frozen=True, repr=False, init=False)
class Chain(Codec):
    """Each codec makes the values that the one before it sends smaller: `Chain(TopK(0.01), Int8())`."""

    codecs: tuple[Codec, ...]

    def __init__(self, *codecs: Codec) -> None:
        if len(codecs) < 2:
            raise UsageError(f"Chain of {len(codecs)} codecs, expected at least two")
        for codec in codecs[:-1]:
            if not isinstance(codec, TopK | RandomK | Rows):
                raise UsageError(
                    f"{codec!r} in a Chain before another codec, expected one that sends some of the values as they "
                    f"are: TopK, RandomK or Rows; Float16, Int8, Sign and Threshold come last"
                )
        for codec in codecs[1:]:
            if isinstance(codec, Rows | Chain):
                raise UsageError(f"{codec!r} in a Chain behind another codec, which sends flat values: put it first")
        object.__setattr__(self, "codecs", codecs)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.codecs))})"

    def encode(self, array: Array, chance: np.random.Generator) -> Encoded:
        parts: dict[str, Array] = {}
        prefix, values = "", array
        for codec in self.codecs[:-1]:
            encoded = codec.encode(values, chance)
            parts[f"{prefix}index"] = _part(encoded, "index")
            prefix, values = f"{prefix}values.", _part(encoded, "values")
        last = self.codecs[-1].encode(values, chance)
        parts |= {f"{prefix}{name}": part for name, part in last.parts.items()}
        return Encoded(parts, array.shape, array.dtype)

    def decode(self, encoded: Encoded) -> Array:
        return _decode_chain(self.codecs, encoded)

    def contraction(self, size: int) -> float:
        kept = 1.0
        for codec in self.codecs[:-1]:
            kept *= codec.contraction(size)
            size = codec.count(size) if isinstance(codec, TopK | RandomK) else size
        return kept * self.codecs[-1].contraction(size)

    def typical(self, size: int) -> float:
        kept = 1.0
        for codec in self.codecs[:-1]:
            kept *= codec.typical(size)
            size = codec.count(size) if isinstance(codec, TopK | RandomK) else size
        return kept * self.codecs[-1].typical(size)


def _decode_chain(codecs: tuple[Codec, ...], encoded: Encoded) -> Array:
    first, rest = codecs[0], codecs[1:]
    if not rest:
        return first.decode(encoded)
    index = _part(encoded, "index")
    columns = encoded.shape[1] if isinstance(first, Rows) else 1
    prefix = "values."
    inner = {name.removeprefix(prefix): part for name, part in encoded.parts.items() if name.startswith(prefix)}
    values = _decode_chain(rest, Encoded(inner, (index.size * columns,), encoded.dtype))
    return first.decode(Encoded({"index": index, "values": values}, encoded.shape, encoded.dtype))
