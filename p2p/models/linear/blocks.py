"""From the rows of a partition to blocks of them: single rows are stacked, and blocks are taken as they are.

    (features (d,), label)              a row; features may also be a sparse matrix of one row
    (features (n, d), labels (n,))      a block of n rows: a dense array or any sparse matrix of scipy

Blocks are the fast way: no row is touched by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from gossip.arrays import Array
from gossip.errors import UsageError

BLOCK_ROWS = 4096
"""Of single rows so many are stacked: enough that products of matrices are fast, and some MB of a hundred features."""

Features = Any
"""(rows, features): a dense array, or a sparse matrix in CSR form."""


def rows_in(element: Any) -> int:
    """How many rows an element of a partition is; 1 for what is none at all, which `blocks` refuses."""
    features = element[0] if isinstance(element, tuple | list) and len(element) == 2 else None
    shape: tuple[int, ...] = getattr(features, "shape", ())
    return int(shape[0]) if len(shape) == 2 else 1


def blocks(elements: Iterable[Any], features: int, dtype: Any = np.float64) -> Iterator[tuple[Features, Array]]:
    """(features, labels) of all rows, some at a time: (rows, features), of `dtype`, and (rows,).

    Raises:
        UsageError: an element is neither a row nor a block, has another number of features, or holds NaN.
    """
    waiting: list[tuple[Any, Any]] = []
    for element in elements:
        if not isinstance(element, tuple | list) or len(element) != 2:
            raise UsageError(
                f"a row is {element!r:.80}, expected (features, label), or a block of rows: (features (n, "
                f"{features}), labels (n,))"
            )
        if len(getattr(element[0], "shape", ())) == 2:
            yield block(element[0], element[1], features, dtype)
            continue
        waiting.append((element[0], element[1]))
        if len(waiting) == BLOCK_ROWS:
            yield _stacked(waiting, features, dtype)
            waiting = []
    if waiting:
        yield _stacked(waiting, features, dtype)


def block(x: Any, y: Any, features: int, dtype: Any = np.float64) -> tuple[Features, Array]:
    """A block as (dense array or CSR matrix of `dtype`, labels), checked."""
    labels = np.asarray(y).reshape(-1)
    x = sparse.csr_array(x, dtype=dtype) if sparse.issparse(x) else _dense(x, dtype)
    if x.ndim != 2 or x.shape[1] != features:
        raise UsageError(f"features of shape {x.shape}, expected ({len(labels)}, {features})")
    if x.shape[0] != len(labels):
        raise UsageError(f"a block of {x.shape[0]} rows with {len(labels)} labels, expected as many")
    if not np.isfinite(x.data if sparse.issparse(x) else x).all():
        raise UsageError(f"features are NaN or infinite in {x.dtype}, expected numbers")
    return x, labels


def _dense(x: Any, dtype: Any) -> Array:
    try:
        with np.errstate(over="ignore"):  # `block` tells what became infinite
            return np.asarray(x, dtype)
    except (TypeError, ValueError):
        raise UsageError(f"features are {x!r:.80}, expected numbers, as many in each row") from None


def _stacked(rows: list[tuple[Any, Any]], features: int, dtype: Any) -> tuple[Features, Array]:
    for x, _ in rows:
        if np.shape(x) != (features,):
            raise UsageError(f"features of shape {np.shape(x)}, expected ({features},) in each row")
    return block(np.stack([_dense(x, dtype) for x, _ in rows]), [y for _, y in rows], features, dtype)
