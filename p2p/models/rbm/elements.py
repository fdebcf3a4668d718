"""From the elements of a partition to blocks of rows of the size that a step takes.

    row (n_visible,)        block (n, n_visible)        either with what is known of it: (row, label), (block, labels)

Single rows are stacked. Blocks with more rows than a step takes are cut, their rows in a random order: that of
`numpy.random`, which is set for each chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.errors import UsageError

Labeled = tuple[NDArray[Any], NDArray[Any] | None]
"""Rows (n, n_visible), and their labels (n,) if there are any."""


def rows_in(element: Any) -> int:
    """How many rows an element of a partition is."""
    shape = np.shape(element[0] if _is_pair(element) else element)
    return int(shape[0]) if len(shape) == 2 else 1


def blocks(elements: Iterable[Any], width: int, rows: int) -> Iterator[Labeled]:
    """Blocks of at most `rows` rows of `width` numbers.

    Raises:
        UsageError: an element is neither a row nor a block, or some elements have labels and others have none.
    """
    waiting: list[tuple[Any, Any]] = []
    has_labels: bool | None = None
    for element in elements:
        x, y = element if _is_pair(element) else (element, None)
        x = _array(x, width)
        if has_labels not in (None, y is not None):
            raise UsageError("some rows have labels and others have none, expected either for all rows")
        has_labels = y is not None
        if x.ndim == 2:
            yield from _pieces(x, None if y is None else _labels(y, len(x)), rows)
            continue
        waiting.append((x, y))
        if len(waiting) == rows:
            yield _stacked(waiting)
            waiting = []
    if waiting:
        yield _stacked(waiting)


def _is_pair(element: Any) -> bool:
    return isinstance(element, tuple) and len(element) == 2


def _array(x: Any, width: int) -> NDArray[Any]:
    try:
        array = np.asarray(x)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2) or array.shape[-1] != width:
        raise UsageError(
            f"a row has dtype {array.dtype} and shape {array.shape}, expected {width} numbers, a block of rows (n, "
            f"{width}), or a tuple of either and its labels"
        )
    return array


def _labels(y: Any, rows: int) -> NDArray[Any]:
    labels = np.asarray(y)
    if labels.shape != (rows,):
        raise UsageError(f"labels have shape {labels.shape}, expected ({rows},): one for each row of the block")
    return labels


def _pieces(x: NDArray[Any], labels: NDArray[Any] | None, rows: int) -> Iterator[Labeled]:
    if len(x) <= rows:
        if len(x):
            yield x, labels
        return
    order = np.random.permutation(len(x))
    for start in range(0, len(x), rows):
        some = order[start : start + rows]
        yield x[some], None if labels is None else labels[some]


def _stacked(waiting: list[tuple[Any, Any]]) -> Labeled:
    x = np.stack([row for row, _ in waiting])
    return x, None if waiting[0][1] is None else _labels([label for _, label in waiting], len(x))
