"""Updates as vectors, whatever their structure is: the sum of two, and a multiple of one.

    {"w": array, "n": 3} + {"w": array}     {"w": the sum, "n": 3}      what one of them does not name is zero there
    weight x [array, 0.5, "a text"]         [weight x array, weight x 0.5, "a text"]

Both leave what they are given as it is. The structure is of the kinds that `p2p.server.any_update` sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from gossip.errors import UsageError
from p2p.adapters.nesting import fields_of
from p2p.adapters.sparse import is_matrix

Numbers = (np.ndarray, np.generic)
ADDED = "expected arrays of one shape, numbers, sparse matrices, or lists, tuples and dicts of these; or n_push=1"
WEIGHTED = (
    "expected floating-point or complex numbers, and lists, tuples and dicts of these: part of an integer or of an "
    "object is none; or staleness_weight=None"
)


def summed(one: Any, other: Any, place: str = "update") -> Any:
    """The sum of two updates, made anew. Integers are summed in 64 bits; texts and None have to be equal, and stay.

    Raises:
        UsageError: parts in the same place cannot be added; the place is named.
    """
    if is_matrix(one) and is_matrix(other):
        return _sum_of_matrices(one, other, place)
    if isinstance(one, Numbers) and isinstance(other, Numbers):
        return _sum_of_arrays(one, other, place)
    if _is_number(one) and _is_number(other):
        return one + other
    if isinstance(one, Mapping) and type(one) is type(other):
        return _like(one, {key: _entry(one, other, key, f"{place}[{key!r}]") for key in {**one, **other}})
    if isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        return _items_like(
            one, [summed(*pair, f"{place}[{at}]") for at, pair in enumerate(zip(one, other, strict=True))]
        )
    if isinstance(one, str | None) and type(one) is type(other) and one == other:
        return one
    raise UsageError(f"{place} is {_words(one)} in one chunk and {_words(other)} in another, {ADDED}")


def scaled(update: Any, weight: float, place: str = "update") -> Any:
    """The update times `weight`, made anew but for what is as it was. Texts and None stay.

    Raises:
        UsageError: a part is no number that can be multiplied, or an integer; its place is named.
    """
    if is_matrix(update) and update.dtype.kind in "fc":
        return update if weight == 1 else (update * weight).astype(update.dtype).asformat(update.format)
    if isinstance(update, Numbers) and update.dtype.kind in "fc":
        return update if weight == 1 else np.multiply(update, weight, dtype=update.dtype)
    if isinstance(update, float | complex):
        return update * weight
    if isinstance(update, Mapping):
        return _like(update, {key: scaled(part, weight, f"{place}[{key!r}]") for key, part in update.items()})
    if isinstance(update, list | tuple):
        return _items_like(update, [scaled(part, weight, f"{place}[{at}]") for at, part in enumerate(update)])
    if update is None or isinstance(update, str):
        return update
    raise UsageError(f"staleness_weight and {place}, which is {_words(update)}: {WEIGHTED}")


def _entry(one: Mapping[Any, Any], other: Mapping[Any, Any], key: Any, place: str) -> Any:
    if key in one and key in other:
        return summed(one[key], other[key], place)
    return deepcopy(one[key] if key in one else other[key])


def _sum_of_arrays(one: Any, other: Any, place: str) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):  # who sends the sum looks at its numbers
        return np.add(one, other, dtype=_dtype_of_sum(one, other, place))


def _sum_of_matrices(one: Any, other: Any, place: str) -> Any:
    dtype = _dtype_of_sum(one, other, place)
    return (one.astype(dtype) + other.astype(dtype)).asformat(one.format)


def _dtype_of_sum(one: Any, other: Any, place: str) -> Any:
    if one.shape != other.shape or "b" in (one.dtype.kind, other.dtype.kind):
        raise UsageError(f"{place} is {_words(one)} in one chunk and {_words(other)} in another, {ADDED}")
    dtype = np.result_type(one.dtype, other.dtype)
    return {"i": np.int64, "u": np.uint64}.get(dtype.kind, dtype)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex | np.number) and not isinstance(value, bool)


def _like(mapping: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """A dict of the same class."""
    kind: Any = type(mapping)
    return kind(mapping.default_factory, parts) if hasattr(mapping, "default_factory") else kind(parts)


def _items_like(items: list[Any] | tuple[Any, ...], parts: list[Any]) -> Any:
    """A list, tuple or namedtuple of the same class."""
    kind: Any = type(items)
    return tuple.__new__(kind, parts) if fields_of(items) else kind(parts)


def _words(value: Any) -> str:
    if isinstance(value, Numbers) or is_matrix(value):
        return f"a {type(value).__name__} of {value.dtype}, shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
