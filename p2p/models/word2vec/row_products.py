"""Products and sums of a few rows of float32, in vector instructions that a compiler does not find by itself.

Of a loop over a row numba's compiler cannot know that the row that is written is none of those that are read, nor that
rows of 100 numbers are twelve times eight and four: it asks the first each time, and takes the last four one by one.
That is an eighth of what a step of `p2p.models.word2vec.skipgram` takes. These are parts for compiled functions, in the
language of the compiler (LLVM): each goes through a row eight numbers at a time, then four, then one.

Arrays are float32 (rows, width), C-contiguous, all of one width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT, INT32, INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
LANES = (8, 4, 1)
CONTRACT = ("contract",)
LINE_BYTES = 64
"""Of a cache."""


class _Rows:
    """An argument that is an array: where its rows begin."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.width = cgutils.unpack_tuple(builder, array.shape, 2)[1]
        self._context, self._builder, self._data = context, builder, array.data

    def at(self, row: Any, kind: Any) -> Any:
        """The first number of a row, whose index is of a type of numba."""
        index = self._context.cast(self._builder, row, kind, types.int64)
        return self._builder.gep(self._data, [self._builder.mul(index, self.width)])


def _vector(lanes: int) -> Any:
    return FLOAT if lanes == 1 else ir.VectorType(FLOAT, lanes)


def _pointer(builder: Any, row: Any, at: Any, lanes: int) -> Any:
    return builder.bitcast(builder.gep(row, [at]), _vector(lanes).as_pointer())


def _load(builder: Any, row: Any, at: Any, lanes: int) -> Any:
    return builder.load(_pointer(builder, row, at, lanes), align=4)


def _spread(builder: Any, number: Any, lanes: int) -> Any:
    """A vector of one number many times."""
    if lanes == 1:
        return number
    first = builder.insert_element(ir.Constant(_vector(lanes), ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=CONTRACT), c, flags=CONTRACT)


def _shuffle(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    """Some numbers of two vectors; those of `b` follow those of `a`."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, len(order)), order))


def _halved(builder: Any, vector: Any) -> Any:
    """The sums of the numbers of the lower and the upper half."""
    half = vector.type.count // 2
    low, high = (_shuffle(builder, vector, vector, list(range(first, first + half))) for first in (0, half))
    return builder.fadd(low, high)


def _sums(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """The sums of three vectors of four: a vector of the first two, and the third."""
    low, high = _shuffle(builder, a, b, [0, 4, 1, 5]), _shuffle(builder, a, b, [2, 6, 3, 7])
    two = _halved(builder, builder.fadd(low, high))
    c = _halved(builder, c)
    return two, builder.fadd(*(builder.extract_element(c, INT32(i)) for i in (0, 1)))


def _along(builder: Any, width: Any, step: Callable[[Any, int], None], then: Callable[[], None] = lambda: None) -> None:
    """`step(at, lanes)` for all numbers of a row: in a loop of eights (`then`), perhaps four, and a loop of ones."""
    eights, fours = (builder.and_(width, INT64(-lanes)) for lanes in LANES[:2])
    with cgutils.for_range_slice(builder, INT64(0), eights, INT64(8), INT64) as (at, _):
        step(at, 8)
    then()
    with builder.if_then(builder.icmp_unsigned("!=", eights, fours)):
        step(eights, 4)
    with cgutils.for_range_slice(builder, fours, width, INT64(1), INT64) as (at, _):
        step(at, 1)


@intrinsic  # type: ignore[untyped-decorator]
def products(typing: Any, A: Any, a0: Any, a1: Any, a2: Any, B: Any, b: Any, F: Any, c: Any, t: Any) -> Any:
    """F[c + i, t + j] = A[ai] . B[b + j] for three rows of each."""
    signature = types.void(A, a0, a1, a2, B, b, F, c, t)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        a_rows, b_rows = _Rows(context, builder, A, arguments[0]), _Rows(context, builder, B, arguments[4])
        rows_a = [a_rows.at(arguments[i], kinds[i]) for i in (1, 2, 3)]
        first_b = context.cast(builder, arguments[5], kinds[5], types.int64)
        rows_b = [b_rows.at(builder.add(first_b, INT64(j)), types.int64) for j in range(3)]
        eights, fours = (
            [
                [cgutils.alloca_once_value(builder, ir.Constant(_vector(lanes), None)) for _ in range(3)]
                for _ in range(3)
            ]
            for lanes in LANES[:2]
        )

        def step(at: Any, lanes: int) -> None:
            xs = [_load(builder, row, at, lanes) for row in rows_a]
            ys = [_load(builder, row, at, lanes) for row in rows_b]
            for i, x in enumerate(xs):
                for j, y in enumerate(ys):
                    sum_ = (eights if lanes == 8 else fours)[i][j]
                    if lanes == 1:
                        product = builder.insert_element(ir.Constant(_vector(4), None), builder.fmul(x, y), INT32(0))
                        builder.store(builder.fadd(builder.load(sum_), product), sum_)
                    else:
                        builder.store(_multiply_add(builder, x, y, builder.load(sum_)), sum_)

        def then() -> None:
            for i in range(3):
                for j in range(3):
                    builder.store(_halved(builder, builder.load(eights[i][j])), fours[i][j])

        _along(builder, a_rows.width, step, then)
        f_rows = _Rows(context, builder, F, arguments[6])
        first_c = context.cast(builder, arguments[7], kinds[7], types.int64)
        first_t = context.cast(builder, arguments[8], kinds[8], types.int64)
        for i in range(3):
            row = f_rows.at(builder.add(first_c, INT64(i)), types.int64)
            two, third = _sums(builder, *(builder.load(fours[i][j]) for j in range(3)))
            builder.store(two, _pointer(builder, row, first_t, 2), align=4)
            builder.store(third, builder.gep(row, [builder.add(first_t, INT64(2))]))
        return context.get_dummy_value()

    return signature, generate


def _adder(count: int) -> Any:
    """rows[row] += the sum of factors[k] * others[indices[k]] for so many k."""

    def add(typing: Any, rows: Any, row: Any, others: Any, indices: Any, factors: Any) -> Any:
        signature = types.void(rows, row, others, indices, factors)
        return signature, _generate_add(1, count)

    return intrinsic(add)


def _pair_adder(count: int) -> Any:
    """The same for two different rows, so that each of the others is read once for both."""

    def add(typing: Any, rows: Any, row: Any, next_: Any, others: Any, indices: Any, factors: Any, more: Any) -> Any:
        signature = types.void(rows, row, next_, others, indices, factors, more)
        return signature, _generate_add(2, count)

    return intrinsic(add)


def _generate_add(targets: int, count: int) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        written, read = (_Rows(context, builder, kinds[i], arguments[i]) for i in (0, 1 + targets))
        rows = [written.at(arguments[i], kinds[i]) for i in range(1, 1 + targets)]
        indices, *factors = (cgutils.unpack_tuple(builder, some, count) for some in arguments[2 + targets :])
        sources = [read.at(index, kinds[2 + targets].dtype) for index in indices]

        def step(at: Any, lanes: int) -> None:
            totals = [_load(builder, row, at, lanes) for row in rows]
            for k, source in enumerate(sources):
                other = _load(builder, source, at, lanes)
                for i, numbers in enumerate(factors):
                    totals[i] = _multiply_add(builder, _spread(builder, numbers[k], lanes), other, totals[i])
            for row, total in zip(rows, totals, strict=True):
                builder.store(total, _pointer(builder, row, at, lanes), align=4)

        _along(builder, written.width, step)
        return context.get_dummy_value()

    return generate


add_three, add_six = _adder(3), _adder(6)
add_three_to_two, add_six_to_two = _pair_adder(3), _pair_adder(6)


@intrinsic  # type: ignore[untyped-decorator]
def copy_row(typing: Any, rows: Any, row: Any, copies: Any, to: Any) -> Any:
    """copies[to] = rows[row]"""
    signature = types.void(rows, row, copies, to)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        source = _Rows(context, builder, rows, arguments[0])
        target = _Rows(context, builder, copies, arguments[2]).at(arguments[3], kinds[3])
        first = source.at(arguments[1], kinds[1])

        def step(at: Any, lanes: int) -> None:
            builder.store(_load(builder, first, at, lanes), _pointer(builder, target, at, lanes), align=4)

        _along(builder, source.width, step)
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, rows: Any, row: Any) -> Any:
    """Have a row brought to the cache."""
    signature = types.void(rows, row)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = _Rows(context, builder, rows, arguments[0])
        byte = ir.IntType(8).as_pointer()
        first = builder.bitcast(array.at(arguments[1], signature.args[1]), byte)
        fetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, INT32, INT32, INT32])
        )
        size = builder.mul(array.width, INT64(4))
        with cgutils.for_range_slice(builder, INT64(0), size, INT64(LINE_BYTES), INT64) as (at, _):
            builder.call(fetch, [builder.gep(first, [at]), INT32(0), INT32(3), INT32(1)])
        return context.get_dummy_value()

    return signature, generate
