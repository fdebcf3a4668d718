"""Loops over single numbers, compiled by numba the first time they are called, and kept on disk where that is possible.

Numba is imported by the first call, not by the import of what it compiles: a process that trains nothing, such as an
agent, does without its half second and its memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

ANY_ORDER = {"contract", "reassoc", "nsz"}
"""What a loop that adds up may do to be fast; not, to take for granted that no number is NaN or infinite."""


def compiled(*, any_order: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the function, of arrays and numbers, compiled for the types it is called with; releases the GIL.

    With `any_order` sums of floats need not be taken from left to right, which processors do several times as fast.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        fast: Callable[..., Any] | None = None

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            nonlocal fast
            if fast is None:
                fast = compile_and_keep(function, fastmath=ANY_ORDER if any_order else False)
            return fast(*arguments)

        return call

    return decorate


def compile_and_keep(function: Callable[..., Any], signature: Any = None, **options: Any) -> Callable[..., Any]:
    """`function` compiled as numba's `njit` does with `options`, at once if there is a `signature`.

    It is kept on disk for later processes, unless no directory can be written, or is full.
    """
    import numba

    options["nogil"] = True
    try:
        return numba.njit(signature, cache=True, **options)(function)  # type: ignore[no-any-return]
    except (RuntimeError, OSError):
        return numba.njit(signature, **options)(function)  # type: ignore[no-any-return]
