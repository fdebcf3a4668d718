"""Rows or blocks of rows as batches of tensors.

    row      (x, y)      of one sample: arrays, lists of numbers and numbers, and tuples or dicts of these
    block    (xs, ys)    the same of many, along the first axis of each array

Rows are stacked to a block once; a batch is some rows of it, in the order of a permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from gossip.errors import UsageError

Block = Any
"""Arrays or tensors, and tuples or dicts of them, all of the same length."""


def check_pair(row: Any, kind: str) -> None:
    """Raise `UsageError` for what is no pair of inputs and targets."""
    if not isinstance(row, tuple | list) or len(row) != 2:
        length = f" of {len(row)}" if isinstance(row, tuple | list) else ""
        raise UsageError(f"a {kind} is a {type(row).__name__}{length}, expected a pair (x, y) of inputs and targets")


def stacked(rows: list[Any]) -> Block:
    """One block of all rows. `UsageError` for rows that are no pairs, or differ in shape."""
    for row in rows:
        check_pair(row, "row")
    return _over([tuple(row) for row in rows], _stack)


def block_of(element: Any) -> Block:
    """An element of a partition as a block. `UsageError` for what is no pair of arrays."""
    check_pair(element, "block")
    return _over([tuple(element)], lambda values: values[0] if hasattr(values[0], "shape") else _numbers(values))


def length(block: Block) -> int:
    """How many rows a block has. `UsageError` if its arrays do not agree."""
    lengths = {len(array) if array.ndim else 0 for array in _leaves(block)}
    if len(lengths) != 1:
        raise UsageError(
            f"the arrays of a block have {', '.join(map(str, sorted(lengths)))} rows, expected as many in each"
        )
    return lengths.pop()


def pick(block: Block, rows: Any) -> Block:
    """These rows of a block."""
    return _over([block], lambda arrays: arrays[0][rows])


def tensors(block: Block, floats: Any, device: str) -> Any:
    """A block as tensors on `device`; numbers with fractions of 32 bits and more get the dtype `floats`."""
    import torch

    def tensor(arrays: list[Any]) -> Any:
        found = arrays[0] if torch.is_tensor(arrays[0]) else torch.from_numpy(np.require(arrays[0], None, ["C", "W"]))
        if found.dtype in (torch.float32, torch.float64):
            found = found.to(floats)
        return found.to(device)

    return _over([block], tensor)


def of_length(partition: Any, rows: int) -> Iterator[Block]:
    """The blocks of a partition, cut anew to `rows` rows each, but the last; `partition` may be a function."""
    rest: list[Block] = []
    count = 0
    for element in partition() if callable(partition) else partition:
        block = block_of(element)
        size, begin = length(block), 0
        while count + size - begin >= rows:
            end = begin + rows - count
            yield _joined([*rest, pick(block, slice(begin, end))])
            rest, count, begin = [], 0, end
        if begin < size:
            rest.append(pick(block, slice(begin, size)))
            count += size - begin
    if rest:
        yield _joined(rest)


def _joined(blocks: list[Block]) -> Block:
    return blocks[0] if len(blocks) == 1 else _over(blocks, _concatenate)


def _stack(values: list[Any]) -> Any:
    if hasattr(values[0], "detach"):
        import torch

        return torch.stack(values)
    return _numbers(values, np.stack)


def _numbers(values: list[Any], make: Callable[[Any], Any] = lambda values: np.asarray(values[0])) -> Any:
    """An array of the values; `UsageError` if they are no numbers, or differ in shape."""
    try:
        array = make(values)
    except ValueError:
        shapes = ", ".join(sorted({str(np.shape(value)) for value in values})[:3])
        raise UsageError(f"rows differ in shape ({shapes}), expected the same in each: pad them") from None
    if array.dtype.kind not in "biuf":
        raise UsageError(f"a row has a {type(values[0]).__name__}, expected arrays and numbers")
    return array


def _concatenate(values: list[Any]) -> Any:
    if hasattr(values[0], "detach"):
        import torch

        return torch.cat(values)
    return np.concatenate(values)


def _over(blocks: list[Any], change: Callable[[list[Any]], Any]) -> Any:
    """One like each of `blocks`, in whose arrays' places stands what `change` makes of theirs."""
    first = blocks[0]
    if isinstance(first, tuple):
        if any(not isinstance(block, tuple) or len(block) != len(first) for block in blocks):
            raise UsageError(f"rows differ: expected {len(first)} parts in each")
        return tuple(_over([block[index] for block in blocks], change) for index in range(len(first)))
    if isinstance(first, dict):
        return {key: _over([block[key] for block in blocks], change) for key in first}
    return change(blocks)


def _leaves(block: Block) -> Iterable[Any]:
    if isinstance(block, tuple):
        for part in block:
            yield from _leaves(part)
    elif isinstance(block, dict):
        for part in block.values():
            yield from _leaves(part)
    else:
        yield block
