"""Arguments of a caller, checked and made plain Python: numpy's integers and floats become int and float.

Each check returns the value, or raises `UsageError` with the argument's name, the value that came and the one expected.
A bool is no number, 2.0 is no integer, and a NaN or an infinity is no number of anything.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import fields
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from gossip.errors import UsageError

SECONDS_MAX = 1e9
"""Thirty years: what waits for longer overflows the clocks of systems."""

P = ParamSpec("P")
T = TypeVar("T")


def integer(name: str, value: Any, least: int | None = None, expected: str = "") -> int:
    """`value` as an int, at least `least`; `expected` says so in other words."""
    limit = expected or ("" if least is None else f"at least {least}")
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise _unfit(name, value, "expected an integer" + (f", {limit}" if limit else ""))
    if least is not None and value < least:
        raise UsageError(f"{name}={int(value)}, expected {limit}")
    return int(value)


def number(
    name: str, value: Any, expected: str = "a finite number", holds: Callable[[float], bool] = math.isfinite
) -> float:
    """`value` as a number that is finite and of which `holds` is true, else `expected` is said."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise _unfit(name, value, f"expected {expected}")
    plain = value if isinstance(value, int) else value.item() if isinstance(value, np.integer) else float(value)
    try:
        fits = math.isfinite(float(plain)) or isinstance(plain, float)
    except OverflowError:  # an int with hundreds of digits
        fits = False
    if not fits or not holds(plain):
        raise UsageError(f"{name}={plain!r:.80}, expected {expected}")
    return plain


def seconds(name: str, value: Any, *, zero: bool = False) -> float:
    """A time: more than nothing, or with `zero` at least that; at most `SECONDS_MAX`."""
    if zero:
        return number(name, value, f"seconds from 0 to {SECONDS_MAX:g}", lambda time: 0 <= time <= SECONDS_MAX)
    return number(
        name, value, f"more than 0 seconds, {SECONDS_MAX:g} at the most", lambda time: 0 < time <= SECONDS_MAX
    )


def probability(name: str, value: Any, *, below_one: bool = False) -> float:
    """A number from 0 to 1, or less than 1."""
    if below_one:
        return number(name, value, "a probability below 1", lambda share: 0 <= share < 1)
    return number(name, value, "a probability", lambda share: 0 <= share <= 1)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise _unfit(name, value, "expected True or False")
    return bool(value)


def one_of(name: str, value: Any, choices: Collection[T]) -> T:
    """One of `choices`, of the same type."""
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    *most, last = map(repr, choices)
    raise _unfit(name, value, f"expected {', '.join(most)} or {last}" if most else f"expected {last}")


def series(name: str, value: Any, check: Callable[[str, Any], T], expected: str) -> tuple[T, ...]:
    """A tuple or list of values that `check` takes."""
    if not isinstance(value, list | tuple):
        raise _unfit(name, value, f"expected {expected}")
    return tuple(check(name, each) for each in value)


def instance(name: str, value: Any, kind: Any) -> Any:
    """An instance of the class `kind`."""
    if not isinstance(value, kind):
        raise UsageError(f"{name} is a {type(value).__name__}, expected a {kind.__name__}")
    return value


def function(name: str, value: Any, call: str) -> Any:
    """Something that can be called, as `call` shows."""
    if not callable(value):
        raise UsageError(f"{name} is a {type(value).__name__}, expected a function {call}")
    return value


def _unfit(name: str, value: Any, expected: str) -> UsageError:
    got = "" if value is None else f": got a {type(value).__name__}"
    return UsageError(f"{name}={value!r:.80}, {expected}{got}")


# ------------------------------------------------------------------------------------------------- by their annotations

BY_TYPE: dict[str, Callable[[str, Any], Any]] = {"int": integer, "float": number, "bool": flag}


def checked(annotation: Any, name: str, value: Any) -> Any:
    """`value` as the annotation wants it: an int, a float or a bool, or one of them and None; others as they are."""
    kinds = [kind.strip() for kind in str(annotation).split("|")]
    if kinds[0] in BY_TYPE and kinds[1:] in ([], ["None"]):
        return None if value is None and kinds[1:] else BY_TYPE[kinds[0]](name, value)
    return value


def check_fields(value: Any, prefix: str = "") -> None:
    """The same of the fields of a frozen dataclass, which hold them as they should be afterwards."""
    for each in fields(value):
        found = getattr(value, each.name)
        wanted = checked(each.type, prefix + each.name, found)
        if wanted is not found:
            object.__setattr__(value, each.name, wanted)


def plain(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose numbers are checked by their annotations before it is called."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            bound.arguments[name] = checked(signature.parameters[name].annotation, name, value)
        return function(*bound.args, **bound.kwargs)

    return call


def names(name: str, value: Any) -> tuple[str, ...]:
    """Names, each once."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise _unfit(name, value, 'expected a tuple or list of names, such as ("w", "b")')
    if twice := _twice(value):
        raise UsageError(f"{name}={value!r:.80}, expected each name once, got {twice!r} twice")
    return tuple(value)


def _twice(values: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
