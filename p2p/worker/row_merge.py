"""The loops over rows that an exchange of a large model spends its time in, compiled: one pass for the products that
the rule of `p2p.worker.combine` needs, and one to merge and encode.

Arrays of a model are (count, width), float32 or float64; w, base and r are as in `p2p.worker.working_copy`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arrays import Array
from gossip.updates.rows import EXPONENT_MAX
from p2p.compiled import compiled


def products(w: Array, base: Array, r: Array, rows: NDArray[Any]) -> Array:
    """(d.d, d.m, m.m) of `rows` (k,): (3, k), for the own change d = w - base and the others' m = r - base."""
    result = np.empty((3, len(rows)), w.dtype)
    _products(w, base, r, rows, result)
    return result


def merge(
    w: Array,
    base: Array,
    r: Array,
    rows: NDArray[Any],
    products: Array,
    own: Array,
    others: Array,
    send: NDArray[np.bool_],
    dtype: str,
) -> tuple[Array, NDArray[np.int8]]:
    """Bring `rows` (k,) of w and base level with r, in place; return what is sent: integers (n, width), exponents (n,).

    A row to `send` (k,) publishes own * d + others * m: the nearest integers of `dtype` times 2 ** exponent are sent,
    and the rest stays in w - base. Any other keeps all of d for later; so does one that is too large or too small for
    an exponent, for which `send` becomes False. `products` are those of the rows.
    """
    room = np.count_nonzero(send)
    values, exponents = np.empty((room, w.shape[1]), dtype), np.empty(room, np.int8)
    limit = np.iinfo(values.dtype).max
    bits = limit.bit_length()
    sent = _merge(w, base, r, rows, products, own, others, send, values, exponents, w.dtype.type(limit), bits)
    return values[:sent], exponents[:sent]


@compiled(any_order=True)
def _products(w: Any, base: Any, r: Any, rows: Any, result: Any) -> None:
    zero = result.dtype.type(0)
    for k in range(rows.shape[0]):
        row = rows[k]
        dd = dm = mm = zero
        for i in range(w.shape[1]):
            d = w[row, i] - base[row, i]
            m = r[row, i] - base[row, i]
            dd += d * d
            dm += d * m
            mm += m * m
        result[0, k], result[1, k], result[2, k] = dd, dm, mm


@compiled()
def _merge(
    w: Any,
    base: Any,
    r: Any,
    rows: Any,
    products: Any,
    own: Any,
    others: Any,
    send: Any,
    values: Any,
    exponents: Any,
    limit: Any,
    bits: Any,
) -> int:
    one = w.dtype.type(1)
    sent = 0
    for k in range(rows.shape[0]):
        row, a, b = rows[k], own[k], others[k]
        if send[k]:
            square = a * a * products[0, k] + 2 * a * b * products[1, k] + b * b * products[2, k]
            # a hundredth more, so that a row of one number does not round up to one more than there is room for
            exponent = math.frexp(1.01 * math.sqrt(max(square, 0)))[1] - bits
            send[k] = square > 0 and -EXPONENT_MAX <= exponent <= EXPONENT_MAX
        if send[k]:
            unit = w.dtype.type(math.ldexp(1, exponent))
            per_unit = one / unit
            for i in range(w.shape[1]):
                now = r[row, i]  # read once: the agent may be writing it
                change = a * (w[row, i] - base[row, i]) + b * (now - base[row, i])
                value = min(limit, max(-limit, np.rint(change * per_unit)))
                values[sent, i] = value
                base[row, i] = now + value * unit
                w[row, i] = now + change
            exponents[sent] = exponent
            sent += 1
        else:
            for i in range(w.shape[1]):
                now = r[row, i]
                w[row, i] = now + (w[row, i] - base[row, i])
                base[row, i] = now
    return sent
