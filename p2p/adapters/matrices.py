"""Sparse matrices of scipy, taken apart into the arrays that they are made of, and put together again.

    coo, csr, csc, dok, lil    numbers, and their places: an array for each axis; entries keep their order
    bsr                        data, indices, indptr
    dia                        data, offsets

Entries that are there twice stay two. scipy is imported only where there is a matrix to be put together.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from gossip.arrays import Array
from gossip.errors import MismatchError

BY_ENTRIES = ("coo", "csr", "csc", "dok", "lil")
BY_PARTS = ("bsr", "dia")
FORMATS = (*BY_ENTRIES, *BY_PARTS)
MAJOR = {"csr": 0, "csc": 1}
"""The axis along which entries lie."""


def format_of(value: Any) -> str | None:
    """Its format; None if it is of no class of scipy.sparse, but of a subclass, or of another library."""
    form, _, kind = type(value).__name__.partition("_")
    scipy_sparse = sys.modules.get("scipy.sparse")  # who has a matrix has imported it
    is_its_own = getattr(scipy_sparse, type(value).__name__, None) is type(value)
    return form if form in FORMATS and kind in ("array", "matrix") and is_its_own else None


def is_array(value: Any) -> bool:
    """Whether it is an array, as csr_array, and no matrix, whose `*` multiplies matrices."""
    return type(value).__name__.endswith("_array")


def apart(value: Any) -> list[Array]:
    """The arrays that `together` makes the matrix of; they alias it."""
    if value.format == "bsr":
        return [value.data, value.indices, value.indptr]
    if value.format == "dia":
        return [value.data, value.offsets]
    found = value.tocoo()
    return [found.data, *(np.asarray(axis) for axis in found.coords)]


def together(form: str, array: bool, shape: Sequence[int], parts: Sequence[Array]) -> Any:
    """A matrix of that format and shape, an array or a matrix; it may alias `parts`.

    Raises:
        MismatchError: these are no parts of such a matrix.
    """
    from scipy import sparse

    if form not in FORMATS:
        raise MismatchError(f"a sparse matrix of format {form!r:.40}, expected one of {', '.join(FORMATS)}")
    kind = "array" if array else "matrix"
    numbers, *places = parts
    try:
        if form in BY_PARTS:
            made = getattr(sparse, f"{form}_{kind}")((numbers, *places), shape=tuple(shape))
            if form == "bsr":
                made.check_format(full_check=True)
            return made
        entries = getattr(sparse, f"coo_{kind}")((numbers, tuple(places)), shape=tuple(shape))
    except (TypeError, ValueError, IndexError) as error:
        raise MismatchError(f"the parts of a {form}_{kind} of {tuple(shape)} do not fit together: {error}") from None
    if form in MAJOR and len(shape) == 2 and _is_sorted(places[MAJOR[form]]):
        major = MAJOR[form]
        ends = np.searchsorted(places[major], np.arange(shape[major] + 1))
        return getattr(sparse, f"{form}_{kind}")((numbers, places[1 - major], ends), shape=tuple(shape))
    return entries.asformat(form)


def _is_sorted(numbers: Array) -> bool:
    return bool((numbers[1:] >= numbers[:-1]).all())
